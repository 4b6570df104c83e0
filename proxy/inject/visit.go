package inject

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// visit is a thread in the blob. Between two calls of run it is stopped at the
// mark.
type visit struct {
	th     *thread
	state  int // which of the two in the slot
	marker int // the signal that marks the mark, 0 for none
	begun  bool
	regs   regs // at the mark
}

// visit readies a thread for the blob: nothing has happened to it yet.
func (s *tracer) visit(th *thread, state int) (*visit, error) {
	marker, err := s.marker(th)
	if err != nil {
		return nil, err
	}
	if err := th.vector.save(th.tid); err != nil {
		return nil, s.lost(th, err)
	}
	if err := s.code.install(); err != nil {
		return nil, s.lost(th, err)
	}
	at := s.code.stateAt(state)
	s.code.owners[state], s.code.noted[state] = th.tid, true
	if err := s.code.write(at, blobState(s.code, at, th, marker)); err != nil {
		return nil, s.lost(th, err)
	}
	return &visit{th: th, state: state, marker: marker}, nil
}

// run lets the thread run from an entry of the blob to the mark.
func (s *tracer) run(v *visit, entry uint64) error {
	th := v.th
	entry += s.code.slot
	steps := s.code.slot + blobSteps
	if v.begun {
		v.regs.enterAgain(entry, steps, 1)
	} else {
		v.regs = th.regs
		v.regs.enterBlob(entry, s.code.stateAt(v.state), steps, th.kept)
	}
	// Registers first: were the tracer to die between the two, a mask set
	// first would stay for ever.
	if err := ptraceSetRegs(th.tid, &v.regs); err != nil {
		return s.lost(th, err)
	}
	if !v.begun {
		th.visited = true
		blocked := ^uint64(0)
		if v.marker != 0 {
			blocked &^= uint64(1) << (v.marker - 1)
		}
		if v.marker == int(unix.SIGCONT) {
			blocked &^= stopping // or it would take them away
		}
		if err := ptraceSetMask(th.tid, blocked); err != nil {
			return s.lost(th, err)
		}
		v.begun = true
	}
	var err error
	if v.marker != 0 {
		err = s.runToMark(v)
	} else {
		err = s.stepToMark(v)
	}
	if err != nil {
		return err
	}
	_, _, th.kept, _ = v.regs.blobResult()
	return nil
}

// leave puts registers and mask back, unless the thread was lost.
func (s *tracer) leave(v *visit) error {
	th := v.th
	if !th.stopped || !v.begun {
		s.code.owners[v.state] = 0
		return nil
	}
	if v.marker == 0 {
		if err := s.toEventStop(th); err != nil {
			return err
		}
	}
	if err := th.vector.restore(th.tid); err != nil {
		return s.lost(th, err)
	}
	// The registers of the mark lead out of the blob just as well, so either order will do.
	if err := ptraceSetMask(th.tid, th.mask); err != nil {
		return s.lost(th, err)
	}
	if err := ptraceSetRegs(th.tid, &th.regs); err != nil {
		return s.lost(th, err)
	}
	s.code.owners[v.state] = 0
	return nil
}

// runToMark lets the thread run until it has raised the marker, and reads its
// registers there. Nothing but SIGSTOP and the like, and a marker of other origin, can come
// before; they are passed on.
//
// SIGCONT makes every thread of the process stop (JOBCTL_TRAP_NOTIFY), and waits for that itself:
// the mark is an event stop then, and the signal is left to do nothing when the thread is let go.
func (s *tracer) runToMark(v *visit) error {
	th := v.th
	for sig := 0; ; {
		if err := ptraceCont(th.tid, sig); err != nil {
			return s.lost(th, err)
		}
		ev, err := s.awaitStop(th)
		if err != nil {
			return err
		}
		sig = 0
		if ev.code != 0 && v.marker != int(unix.SIGCONT) {
			continue // group stop: it stays stopped when we have left
		}
		if err := ptraceGetRegs(th.tid, &v.regs); err != nil {
			return s.lost(th, err)
		}
		marked := v.regs.ip() == s.code.slot+blobMarked
		switch {
		case marked && (ev.sig == v.marker || ev.code != 0):
			return nil
		case ev.code == 0:
			sig = ev.sig
		case ev.sig != int(unix.SIGTRAP): // a group stop has come before it
			return s.markWithout(v)
		}
	}
}

// markWithout goes on to the mark without a signal.
func (s *tracer) markWithout(v *visit) error {
	v.marker = 0
	if err := s.code.write(s.code.stateAt(v.state)+stateMarker, make([]byte, 4)); err != nil {
		return s.lost(v.th, err)
	}
	if ip := v.regs.ip(); ip >= s.code.slot+blobAsked && ip < s.code.slot+blobMarked {
		v.regs.setIP(s.code.slot + blobMark) // it may have read the marker
		if err := ptraceSetRegs(v.th.tid, &v.regs); err != nil {
			return s.lost(v.th, err)
		}
	}
	return s.stepToMark(v)
}

// stepToMark is runToMark for a program that catches every signal: were the
// tracer to die, the marker's handler would run, and make a sleep answer EINTR
// (rt_sigreturn(2) forgets what restart_syscall(2) would go on with). The thread runs the same blob without a marker, and stops at every
// system call instead. At such a stop the tracer's death delivers nothing, since
// it is not a signal's number that PTRACE_O_TRACESYSGOOD reports (send_sig() in
// ptrace_report_syscall() refuses it).
func (s *tracer) stepToMark(v *visit) error {
	th := v.th
	for sig := 0; ; {
		if err := ptraceSyscall(th.tid, sig); err != nil {
			return s.lost(th, err)
		}
		ev, err := s.awaitStop(th)
		if err != nil {
			return err
		}
		sig = 0
		switch {
		case ev.code != 0:
			continue // group stop
		case ev.sig != syscallStop:
			sig = ev.sig // SIGSTOP
			continue
		}
		if err := ptraceGetRegs(th.tid, &v.regs); err != nil {
			return s.lost(th, err)
		}
		if v.regs.ip() == s.code.slot+blobAsked {
			return nil
		}
	}
}

// toEventStop takes a thread from the stop at a system call to an event stop:
// registers put back at the former would show the program -ERESTART.
func (s *tracer) toEventStop(th *thread) error {
	for sig := 0; ; {
		if err := ptraceInterrupt(th.tid); err != nil {
			return s.lost(th, err)
		}
		if err := ptraceCont(th.tid, sig); err != nil {
			return s.lost(th, err)
		}
		ev, err := s.awaitStop(th)
		if err != nil || ev.code == unix.PTRACE_EVENT_STOP {
			return err
		}
		sig = ev.sig
	}
}

// awaitStop waits for the next stop of the one thread that runs.
func (s *tracer) awaitStop(th *thread) (event, error) {
	for deadline := time.Now().Add(stepLimit); ; {
		ev, ok, err := s.thread.alarm.stopOf(th.tid)
		switch {
		case err != nil:
			return ev, s.lost(th, err)
		case ok:
			return ev, nil
		case s.killed(th):
			return ev, s.lost(th, unix.ESRCH)
		case time.Now().After(deadline):
			th.stopped, s.thread.dirty = false, true
			return ev, fmt.Errorf("thread %d runs an injected call: %w", th.tid, ErrTimeout)
		}
	}
}
