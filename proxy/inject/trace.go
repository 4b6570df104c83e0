package inject

import (
	"context"
	"errors"
)

var errTodo = errors.New("inject: not written yet")

// Trace is a set of seized threads. Its methods are synchronous and may be
// called from any goroutine, one at a time.
type Trace struct{}

// Seize attaches to every thread of process pid (a tgid) and tells each to
// stop, without waiting for it: a thread that waits for an answer from the
// caller (a FUSE write) stops only after the answer. Errors: ErrGone,
// ErrTraced, ErrUnsupported; then nothing stays attached.
func Seize(pid int) (*Trace, error) { return nil, errTodo }

// SeizeThread is Seize for the one thread tid alone.
func SeizeThread(tid int) (*Trace, error) { return nil, errTodo }

// Wait waits until every thread, also those born meanwhile, has stopped. When
// ctx ends first it returns ErrTimeout and everything has been let go: threads
// that had stopped go on at once, and one that is still running (a seized
// running thread cannot be detached) as soon as it stops, watched in the
// background. Other errors: ErrGone, ErrUnsupported; then too all is let go.
func (t *Trace) Wait(ctx context.Context) error { return errTodo }

// Threads returns the tids of the stopped threads, ascending.
func (t *Trace) Threads() []int { return nil }

// Enter makes every stopped thread enter the namespaces, in the order given.
// It is all or nothing: when one thread refuses, those that have entered are
// put back, and the error is an *EnterError; if putting back fails too, that
// error is joined to it.
func (t *Trace) Enter(to []Namespace) error { return errTodo }

// Undo puts all threads back where they were before the last Enter.
func (t *Trace) Undo() error { return errTodo }

// SetResult replaces the return value of the system call of the write family
// (write, writev, pwrite64, pwritev, pwritev2, sendfile, splice, tee, vmsplice,
// copy_file_range) that the stopped thread tid had just completed: a task that
// moved itself so learns that it could not. n >= 0 is a count of bytes, n < 0 a
// negative errno. It is an error when tid was not stopped right at the end of
// such a call.
func (t *Trace) SetResult(tid int, n int) error { return errTodo }

// Release lets every thread go on, exactly as it was. It is idempotent, safe
// after any error, and must always be called.
func (t *Trace) Release() error { return nil }
