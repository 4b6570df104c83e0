package inject

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Trace is a set of seized threads. Its methods are synchronous and may be
// called from any goroutine, one at a time.
type Trace struct {
	calls chan func(*tracer)
	ended chan struct{} // closed when the goroutine has ended
	tid   int           // of the OS thread that is the tracer
}

// Seize attaches to every thread of process pid (a tgid) and tells each to
// stop, without waiting for it: a thread that waits for an answer from the
// caller (a FUSE write) stops only after the answer. Errors: ErrGone,
// ErrTraced, ErrUnsupported; then nothing stays attached.
func Seize(pid int) (*Trace, error) { return start(&tracer{pid: pid}) }

// SeizeThread is Seize for the one thread tid alone.
func SeizeThread(tid int) (*Trace, error) {
	pid := readStatus(tid, "Tgid")
	if pid <= 0 {
		return nil, fmt.Errorf("seize thread %d: %w", tid, ErrGone)
	}
	return start(&tracer{pid: pid, only: tid})
}

// Wait waits until every thread, also those born meanwhile, has stopped. When
// ctx ends first it returns ErrTimeout; other errors are ErrGone and
// ErrUnsupported. After an error the threads that have stopped stay stopped, so
// that SetResult can still tell a writer of the failure; Release lets all go,
// those that had not stopped included.
func (t *Trace) Wait(ctx context.Context) error {
	var err error
	if doErr := t.do(func(s *tracer) { err = s.wait(ctx) }); doErr != nil {
		return doErr
	}
	return err
}

// Threads returns the tids of the stopped threads, ascending; none before Wait
// and after Release.
func (t *Trace) Threads() []int {
	var tids []int
	_ = t.do(func(s *tracer) { tids = s.stoppedTIDs() })
	return tids
}

// Enter makes every stopped thread enter the namespaces, in the order given.
// A thread that is in one already does not enter it again. It is all or
// nothing: when one thread refuses, those that have entered are put back, and
// the error is an *EnterError; if putting back fails too, that error is joined
// to it.
func (t *Trace) Enter(to []Namespace) error {
	var err error
	if doErr := t.do(func(s *tracer) { err = s.enter(to) }); doErr != nil {
		return doErr
	}
	return err
}

// Undo puts all threads back where they were before the last Enter. There is
// no way back out of a user namespace, so let nothing that may fail come after
// it. Threads that were split (Namespace.SplitFS) stay so, and the error says so.
func (t *Trace) Undo() error {
	var err error
	if doErr := t.do(func(s *tracer) { err = s.undo() }); doErr != nil {
		return doErr
	}
	return err
}

// SetResult replaces the return value of the system call of the write family
// (write, writev, pwrite64, pwritev, pwritev2, sendfile, splice, tee, vmsplice,
// copy_file_range) that the stopped thread tid had just completed: a task that
// moved itself so learns that it could not. n >= 0 is a count of bytes, n < 0 a
// negative errno. It is an error when tid was not stopped right at the end of
// such a call.
func (t *Trace) SetResult(tid int, n int) error {
	var err error
	if doErr := t.do(func(s *tracer) { err = s.setResult(tid, n) }); doErr != nil {
		return doErr
	}
	return err
}

// Release lets every thread go on, exactly as it was. It is idempotent, safe
// after any error, and must always be called.
func (t *Trace) Release() error {
	var err error
	var clean bool
	select {
	case t.calls <- func(s *tracer) { clean, err = s.release() }:
		<-t.ended
	case <-t.ended:
		return nil // released before
	}
	if !clean {
		t.awaitDetach()
	}
	return err
}

var errReleased = errors.New("the trace has been released")

// do runs f on the tracer's OS thread: to the kernel the tracer is a thread,
// not a process.
func (t *Trace) do(f func(*tracer)) error {
	done := make(chan struct{})
	select {
	case t.calls <- func(s *tracer) { f(s); close(done) }:
		<-done
		return nil
	case <-t.ended:
		return errReleased
	}
}

// start starts the goroutine of a Trace and seizes.
func start(s *tracer) (*Trace, error) {
	t := &Trace{calls: make(chan func(*tracer)), ended: make(chan struct{})}
	failed := make(chan error)
	go onOwnThread(func() {
		defer close(t.ended)
		t.tid = unix.Gettid()
		err := s.seize()
		if err != nil {
			s.release()
		}
		failed <- err
		for err == nil && !s.released {
			(<-t.calls)(s)
		}
		if !s.dirty {
			runtime.UnlockOSThread() // the thread may serve other goroutines
		}
	})
	if err := <-failed; err != nil {
		<-t.ended
		if s.dirty {
			t.awaitDetach()
		}
		return nil, fmt.Errorf("seize process %d: %w", s.pid, err)
	}
	return t, nil
}

// onOwnThread runs f locked to an OS thread that is not the process's first.
// That one cannot end (Go parks it for ever), and the kernel hands the
// children of ended threads to it, for whose stops f would then be asked.
func onOwnThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != os.Getpid() {
		f()
		return
	}
	elsewhere := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		close(elsewhere)
		f()
	}()
	<-elsewhere
	runtime.UnlockOSThread()
}

// awaitDetach waits for the end of the tracer's OS thread. A thread that is
// seized but runs cannot be detached, except by the end of its tracer:
// exit_ptrace() in kernel/ptrace.c then detaches all that is left.
func (t *Trace) awaitDetach() {
	for range 2000 {
		if unix.Tgkill(os.Getpid(), t.tid, 0) != nil {
			return
		}
		time.Sleep(50 * time.Microsecond)
	}
}
