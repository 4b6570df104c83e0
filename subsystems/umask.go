package subsystems

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// The permissions that a process does not give away with what it makes: umask(2). Threads share it as a rule.
func init() {
	registerCaller(&caller{value{controller: controller{name: "umask"}, threads: true, together: true, items: []item{{
		name: "mask",
		read: readMask,
		call: func(text string) (proxy.Call, error) {
			mask, err := strconv.ParseUint(text, 8, 32)
			return proxy.Call{NR: unix.SYS_UMASK, Args: [3]uint64{mask}}, err
		},
		parse: func(text string) (string, error) {
			mask, err := strconv.ParseUint(text, 8, 32)
			if err != nil || mask > 0o777 {
				return "", fmt.Errorf("not an octal number up to 777: %w", proxy.ErrValue)
			}
			return maskText(mask), nil
		},
	}}}})
}

func maskText(mask uint64) string { return fmt.Sprintf("%04o", mask) }

// readMask reads the line of proc_pid_status(5).
func readMask(tid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if text, ok := strings.CutPrefix(line, "Umask:\t"); ok {
			return strings.TrimSpace(text), nil
		}
	}
	return "", fmt.Errorf("the kernel does not tell the umask of %d: %w", tid, unix.ESRCH) // it has ended
}
