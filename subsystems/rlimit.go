package subsystems

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// Resource limits, "SOFT:HARD" each or one number for both: getrlimit(2).
func init() {
	v := &value{controller: controller{name: "rlimit"}}
	for resource, r := range resources {
		v.items = append(v.items, limitItem(r.name, resource))
	}
	registerValue(v)
}

// resources by their numbers in include/uapi/asm-generic/resource.h, and what /proc/PID/limits calls them.
var resources = []struct{ name, label string }{
	{"cpu", "Max cpu time"}, {"fsize", "Max file size"}, {"data", "Max data size"}, {"stack", "Max stack size"},
	{"core", "Max core file size"}, {"rss", "Max resident set"}, {"nproc", "Max processes"}, {"nofile", "Max open files"},
	{"memlock", "Max locked memory"}, {"as", "Max address space"}, {"locks", "Max file locks"}, {"sigpending", "Max pending signals"},
	{"msgqueue", "Max msgqueue size"}, {"nice", "Max nice priority"}, {"rtprio", "Max realtime priority"}, {"rttime", "Max realtime timeout"},
}

// limitOf returns a limit of a task. Of another user's prlimit(2) tells only who has CAP_SYS_RESOURCE.
func limitOf(tid, resource int) (l unix.Rlimit, err error) {
	if err = unix.Prlimit(tid, resource, nil, &l); err != unix.EPERM {
		return l, err
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", tid))
	if err != nil {
		return l, err
	}
	for line := range strings.Lines(string(limits)) {
		if rest, ok := strings.CutPrefix(line, resources[resource].label+" "); ok {
			if f := strings.Fields(rest); len(f) >= 2 {
				return parseLimit(f[0] + ":" + f[1])
			}
		}
	}
	return l, fmt.Errorf("/proc/%d/limits does not have %q", tid, resources[resource].label)
}

func limitItem(name string, resource int) item {
	return item{
		name: name,
		read: func(tid int) (string, error) {
			l, err := limitOf(tid, resource)
			return limitText(l), err
		},
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
			own, err := limitOf(w.TID, resource)
			if err != nil {
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
