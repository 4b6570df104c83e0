package inject

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Errors that say why a task could not be worked on; use errors.Is. Each also
// is an errno: errors.Is(ErrGone, unix.ESRCH) holds, and errors.As finds it.
var (
	// ErrGone: there is no such task, or it died meanwhile (ESRCH).
	ErrGone error = &taskError{"task is gone", unix.ESRCH}
	// ErrTraced: another program is the task's tracer (EBUSY).
	ErrTraced error = &taskError{"task is traced by another program", unix.EBUSY}
	// ErrTimeout: a thread did not stop in time (EAGAIN). Try later.
	ErrTimeout error = &taskError{"task did not stop in time", unix.EAGAIN}
	// ErrUnsupported: a kernel thread, or not of our own machine
	// architecture, for example a 32-bit program (EOPNOTSUPP).
	ErrUnsupported error = &taskError{"task is of a kind that cannot be moved", unix.EOPNOTSUPP}
)

// taskError is a sentinel that unwraps to its errno.
type taskError struct {
	text  string
	errno syscall.Errno
}

func (e *taskError) Error() string { return e.text }
func (e *taskError) Unwrap() error { return e.errno }

// EnterError says which thread refused to enter which namespace, or to make which change, and why.
type EnterError struct {
	TID    int    // the thread that refused
	Type   int    // the namespace's CLONE_NEW* flag; 0 when none was reached yet
	Change string // the name of a change, "" of a namespace
	Err    error  // as a rule a syscall.Errno
}

func (e *EnterError) Error() string {
	if e.Change != "" {
		return fmt.Sprintf("thread %d changes %s: %v", e.TID, e.Change, e.Err)
	}
	return fmt.Sprintf("thread %d enters %s namespace: %v", e.TID, typeName(e.Type), e.Err)
}

// Unwrap returns the reason.
func (e *EnterError) Unwrap() error { return e.Err }

// isBusy says whether err is a refusal that another moment may not repeat.
func isBusy(err error) bool { return errors.Is(err, ErrTraced) || errors.Is(err, ErrTimeout) }
