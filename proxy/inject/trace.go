package inject

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Tracer is an OS thread that traces: to the kernel, a thread traces and not a process.
type Tracer struct {
	tid   int
	alarm alarm
	dirty bool // something is attached that only the end of the thread detaches
}

// Do calls f with a Tracer on an OS thread that is f's alone, and waits for its end. The Tracer
// and its traces are not for other goroutines, and not for use after that.
func Do(f func(*Tracer)) {
	t := &Tracer{}
	done := make(chan struct{})
	go onOwnThread(func() {
		defer close(done)
		t.tid = unix.Gettid()
		defer t.alarm.close()
		f(t)
		if !t.dirty {
			runtime.UnlockOSThread() // it may serve other goroutines
		}
	})
	<-done
	if t.dirty {
		t.awaitEnd()
	}
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

// awaitEnd waits for the end of the OS thread. A thread that is seized but runs cannot be
// detached, except by the end of its tracer: exit_ptrace() in kernel/ptrace.c then detaches
// all that is left.
func (t *Tracer) awaitEnd() {
	for range 2000 {
		if unix.Tgkill(os.Getpid(), t.tid, 0) != nil {
			return
		}
		time.Sleep(50 * time.Microsecond)
	}
}

// Trace is a set of seized threads.
type Trace struct{ s *tracer }

// Seize attaches to every thread of process pid (a tgid) and tells each to
// stop, without waiting for it: a thread that waits for an answer from the
// caller (a FUSE write) stops only after the answer. Errors: ErrGone,
// ErrTraced, ErrUnsupported; then nothing stays attached.
func (t *Tracer) Seize(pid int) (*Trace, error) { return t.seize(&tracer{pid: pid}) }

// SeizeThread is Seize for the one thread tid alone.
func (t *Tracer) SeizeThread(tid int) (*Trace, error) {
	pid := readStatus(tid, "Tgid")
	if pid <= 0 {
		return nil, fmt.Errorf("seize thread %d: %w", tid, ErrGone)
	}
	return t.seize(&tracer{pid: pid, only: tid})
}

func (t *Tracer) seize(s *tracer) (*Trace, error) {
	if err := ignoreStops(); err != nil {
		return nil, err
	}
	s.thread = t
	if err := s.seize(); err != nil {
		return nil, fmt.Errorf("seize process %d: %w", s.pid, errors.Join(err, s.release()))
	}
	return &Trace{s}, nil
}

// Wait waits until every thread, also those born meanwhile, has stopped. When
// that takes longer than until then it returns ErrTimeout; other errors are ErrGone and
// ErrUnsupported. After an error the threads that have stopped stay stopped, so
// that SetResult can still tell a writer of the failure; Release lets all go,
// those that had not stopped included.
func (t *Trace) Wait(until time.Time) error {
	if t.s.released {
		return errReleased
	}
	return t.s.wait(until)
}

// Threads returns the tids of the stopped threads, ascending; none before Wait
// and after Release.
func (t *Trace) Threads() []int { return t.s.stoppedTIDs() }

// Enter makes every stopped thread enter the namespaces, in the order given, and
// then make its changes, if there are any for its tid.
// A thread that is in a namespace already does not enter it again. It is all or
// nothing: when one thread refuses, those that have entered are put back, and
// the error is an *EnterError; if putting back fails too, that error is joined
// to it.
func (t *Trace) Enter(to []Namespace, changes map[int][]Change) error {
	if t.s.released {
		return errReleased
	}
	return t.s.enter(to, changes)
}

// Undo puts all threads back where they were before the last Enter. There is
// no way back out of a user namespace, so let nothing that may fail come after
// it. Threads that were split (Namespace.SplitFS) stay so, and the error says so.
func (t *Trace) Undo() error {
	if t.s.released {
		return errReleased
	}
	return t.s.undo()
}

// SetResult replaces the return value of the system call of the write family
// (write, writev, pwrite64, pwritev, pwritev2, sendfile, splice, tee, vmsplice,
// copy_file_range) that the stopped thread tid had just completed: a task that
// moved itself so learns that it could not. n >= 0 is a count of bytes, n < 0 a
// negative errno. ErrTimeout: tid has not stopped; Wait again. It is an error when
// it was not stopped right at the end of such a call.
func (t *Trace) SetResult(tid int, n int) error {
	if t.s.released {
		return errReleased
	}
	return t.s.setResult(tid, n)
}

// Release lets every thread go on, exactly as it was. What has not stopped goes on at the end of
// Do; on arm64 what is in a call stays traced until then. It is idempotent, safe after any error, and must
// always be called.
func (t *Trace) Release() error {
	if t.s.released {
		return nil
	}
	return t.s.release()
}

var errReleased = errors.New("the trace has been released")
