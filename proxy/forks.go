package proxy

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// forks tells which processes were born around a move that did not stop its target. The kernel
// numbers processes in a row, so these are the numbers given out since a moment before it.
type forks struct {
	loadavg int // a descriptor
	pidMax  int

	mu    sync.Mutex
	marks [2]mark // guarded by mu; the older one is at least settleTime old, once there is one
}

type mark struct {
	pid int // the last number given out
	at  time.Time
}

const (
	// A number is taken some microseconds before the child inherits its groups
	// (alloc_pid and cgroup_can_fork in copy_process); a forking thread can lose the
	// processor in between. Whoever took a number this long ago has inherited.
	settleTime = 50 * time.Millisecond
	// No more numbers than this are looked at from before the move.
	maxSpan = 64
)

func openForks() (*forks, error) {
	f, err := unix.Open("/proc/loadavg", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /proc/loadavg: %w", err)
	}
	text, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		unix.Close(f)
		return nil, err
	}
	max, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		unix.Close(f)
		return nil, err
	}
	fk := &forks{loadavg: f, pidMax: max}
	if fk.marks[0].pid, err = fk.last(); err != nil {
		unix.Close(f)
		return nil, err
	}
	fk.marks[0].at = time.Now()
	fk.marks[1] = fk.marks[0]
	return fk, nil
}

// last returns the number given out last in this pid namespace: the fifth field of
// /proc/loadavg, see proc_loadavg(5).
func (f *forks) last() (int, error) {
	var b [128]byte
	n, err := unix.Pread(f.loadavg, b[:], 0)
	if err != nil {
		return 0, fmt.Errorf("read /proc/loadavg: %w", err)
	}
	fields := strings.Fields(string(b[:n]))
	if len(fields) != 5 {
		return 0, fmt.Errorf("/proc/loadavg: %q", b[:n])
	}
	return strconv.Atoi(fields[4])
}

// before returns a number from which on a child may be born during a move that begins now.
func (f *forks) before() (int, error) {
	last, err := f.last()
	if err != nil {
		return 0, err
	}
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.marks[1].at) >= settleTime {
		f.marks[0], f.marks[1] = f.marks[1], mark{last, now}
	}
	// Where nothing was moved for long the mark is old. A forking thread that is kept from the
	// processor does not see that many others get a number.
	if from := f.marks[0].pid; from <= last && last-from <= maxSpan {
		return from, nil
	}
	return max(0, last-maxSpan), nil
}

// since returns the numbers given out after from.
func (f *forks) since(from int) ([]int, error) {
	last, err := f.last()
	if err != nil {
		return nil, err
	}
	span := last - from
	if span < 0 {
		span += f.pidMax // they start anew at pid_max
	}
	var pids []int
	for i := range span {
		pid := from + i + 1
		if pid > f.pidMax {
			pid -= f.pidMax
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

func (f *forks) close() error { return unix.Close(f.loadavg) }
