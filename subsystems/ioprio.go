package subsystems

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// The priority of a thread's input and output, "CLASS:LEVEL": ioprio_set(2).
func init() {
	registerValue(&value{controller: controller{name: "ioprio"}, threads: true, items: []item{{
		name: "priority",
		read: func(tid int) (string, error) {
			n, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioThread, uintptr(tid), 0)
			if errno != 0 {
				return "", errno
			}
			return ioprioText(int(n)), nil
		},
		write: func(tid int, text string) error {
			n, err := parseIoprio(text)
			if err != nil {
				return err
			}
			if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioThread, uintptr(tid), uintptr(n)); errno != 0 {
				return errno
			}
			return nil
		},
		parse: func(text string) (string, error) {
			n, err := parseIoprio(text)
			return ioprioText(n), err
		},
		admit: func(w proxy.Writer, text string) error {
			if strings.HasPrefix(text, "realtime:") {
				return w.Capable(unix.CAP_SYS_NICE)
			}
			return nil
		},
	}}})
}

// Of include/uapi/linux/ioprio.h.
const (
	ioprioThread     = 1 // IOPRIO_WHO_PROCESS, which is a thread
	ioprioClassShift = 13
	ioprioLevels     = 8
)

var ioprioClasses = []string{"none", "realtime", "best-effort", "idle"}

// ioprioText leaves out hints (IOPRIO_HINT_*), which are for a request.
func ioprioText(n int) string {
	return fmt.Sprintf("%s:%d", ioprioClasses[n>>ioprioClassShift&3], n&(ioprioLevels-1))
}

func parseIoprio(text string) (int, error) {
	name, level, _ := strings.Cut(text, ":")
	class := slices.Index(ioprioClasses, name)
	if class < 0 {
		return 0, fmt.Errorf("not a class of %s: %w", strings.Join(ioprioClasses, ", "), proxy.ErrValue)
	}
	if level == "" {
		level = "0"
	}
	most := int64(ioprioLevels - 1)
	if name == "none" || name == "idle" {
		most = 0
	}
	level, err := number(level, 0, most)
	if err != nil {
		return 0, err
	}
	return class<<ioprioClassShift | int(level[0]-'0'), nil
}
