package subsystems

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// Resource limits, "SOFT:HARD" each or one number for both: getrlimit(2).
func init() {
	v := &value{controller: controller{name: "rlimit"}}
	for resource, name := range []string{
		"cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile",
		"memlock", "as", "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime",
	} { // by their numbers in include/uapi/asm-generic/resource.h
		v.items = append(v.items, limitItem(name, resource))
	}
	registerValue(v)
}

func limitItem(name string, resource int) item {
	read := func(tid int) (string, error) {
		var l unix.Rlimit
		err := unix.Prlimit(tid, resource, nil, &l)
		return limitText(l), err
	}
	return item{
		name: name,
		read: read,
		write: func(tid int, text string) error {
			l, err := parseLimit(text)
			if err == nil {
				err = unix.Prlimit(tid, resource, &l, nil)
			}
			return err
		},
		parse: func(text string) (string, error) {
			l, err := parseLimit(text)
			return limitText(l), err
		},
		admit: func(w proxy.Writer, text string) error {
			var own unix.Rlimit
			if err := unix.Prlimit(w.TID, resource, nil, &own); err != nil {
				return gone(err)
			}
			if l, err := parseLimit(text); err != nil || l.Max <= own.Max {
				return err
			}
			return w.Capable(unix.CAP_SYS_RESOURCE)
		},
		check: checkLimit,
	}
}

// checkLimit is strict where rcfsd may not raise a hard limit: one that is lowered could not be given back.
func checkLimit(from, to string) error {
	old, err := parseLimit(from)
	if err != nil {
		return err
	}
	next, err := parseLimit(to)
	if err != nil || next.Max == old.Max || mayRaiseLimits() {
		return err
	}
	if next.Max > old.Max {
		return fmt.Errorf("rcfsd has no CAP_SYS_RESOURCE to raise a hard limit: %w", proxy.ErrNotCapable)
	}
	return fmt.Errorf("rcfsd has no CAP_SYS_RESOURCE to raise the hard limit again: %w", proxy.ErrNotCapable)
}

var mayRaiseLimits = sync.OnceValue(func() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
})

// unlimited is RLIM_INFINITY.
const unlimited = "unlimited"

func limitText(l unix.Rlimit) string { return oneLimitText(l.Cur) + ":" + oneLimitText(l.Max) }

func oneLimitText(n uint64) string {
	if n == math.MaxUint64 {
		return unlimited
	}
	return strconv.FormatUint(n, 10)
}

func parseLimit(text string) (l unix.Rlimit, err error) {
	soft, hard, both := strings.Cut(text, ":")
	if !both {
		hard = soft
	}
	if l.Cur, err = parseOneLimit(soft); err == nil {
		l.Max, err = parseOneLimit(hard)
	}
	if err == nil && l.Cur > l.Max {
		err = fmt.Errorf("soft limit above the hard one: %w", proxy.ErrValue)
	}
	return l, err
}

func parseOneLimit(text string) (uint64, error) {
	if text == unlimited {
		return math.MaxUint64, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("neither a number nor %s: %w", unlimited, proxy.ErrValue)
	}
	return n, nil
}
