package inject

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// limit is the target's soft limit of open files, raised for the time of a
// move so that a full descriptor table does not forbid it.
type limit struct {
	pid    int
	before *unix.Rlimit // nil when it was not raised
}

// raiseLimit raises the limit by n, as far as the hard limit allows.
func raiseLimit(pid, n int) (*limit, error) {
	var old unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old); err != nil {
		return nil, fmt.Errorf("read the limit of open files of process %d: %w", pid, err)
	}
	raised := old
	raised.Cur = min(old.Cur+uint64(n), old.Max)
	if raised.Cur <= old.Cur {
		return &limit{}, nil
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &raised, nil); err != nil {
		return &limit{}, nil // the move then may say EMFILE
	}
	return &limit{pid: pid, before: &old}, nil
}

// lower puts the limit back.
func (l *limit) lower() error {
	if l.before == nil {
		return nil
	}
	if err := unix.Prlimit(l.pid, unix.RLIMIT_NOFILE, l.before, nil); err != nil && err != unix.ESRCH {
		return fmt.Errorf("put the limit of open files of process %d back: %w", l.pid, err)
	}
	return nil
}
