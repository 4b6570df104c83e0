package inject

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// stepLimit bounds the wait for a thread that runs our calls. None of them
// sleeps, so it is reached only when the machine is stuck or the thread frozen.
const stepLimit = 10 * time.Second

// call makes a stopped thread run one system call, and returns what that
// returned; an errno is an error. The thread is left at a syscall-exit stop:
// finish must follow.
func (s *tracer) call(th *thread, nr uintptr, args ...uint64) (uint64, error) {
	var a [6]uint64
	copy(a[:], args)
	r := th.regs
	r.setCall(s.code.insn, nr, a)
	if err := ptraceSetRegs(th.tid, &r); err != nil {
		return 0, s.lost(th, err)
	}
	for range 2 { // the entry, then the exit of the call
		if err := s.resume(th, ptraceSyscall, syscallStop, 0); err != nil {
			return 0, err
		}
	}
	if err := ptraceGetRegs(th.tid, &r); err != nil {
		return 0, s.lost(th, err)
	}
	if n := r.result(); n < 0 && n >= -4095 {
		return 0, unix.Errno(-n)
	}
	return uint64(r.result()), nil
}

// begin readies a stopped thread for calls: no signal may be delivered to it,
// or a handler would run upon our registers. Nothing is lost, they stay pending.
func (s *tracer) begin(th *thread) error {
	th.visited = true
	if err := th.vector.save(th.tid); err != nil {
		return s.lost(th, err)
	}
	if err := ptraceSetMask(th.tid, ^uint64(0)); err != nil {
		return s.lost(th, err)
	}
	return nil
}

// finish takes the thread from a syscall-exit stop to an event stop, and puts
// registers and mask back there.
func (s *tracer) finish(th *thread) error {
	if err := ptraceInterrupt(th.tid); err != nil {
		return s.lost(th, err)
	}
	if err := s.resume(th, ptraceCont, int(unix.SIGTRAP), unix.PTRACE_EVENT_STOP); err != nil {
		return err
	}
	if err := th.restore(); err != nil {
		return s.lost(th, err)
	}
	return nil
}

// resume lets the thread go on until the stop wanted.
func (s *tracer) resume(th *thread, how func(tid, sig int) error, sig, code int) error {
	if err := how(th.tid, 0); err != nil {
		return s.lost(th, err)
	}
	for {
		ev, err := s.awaitStop(th)
		switch {
		case err != nil:
			return err
		case (ev.sig == sig || code != 0) && ev.code == code:
			return nil
		}
		if err := s.passStop(th, how, ev, code); err != nil {
			return err
		}
	}
}

// passStop lets the thread go on from a stop that is not ours. All signals are
// blocked but SIGSTOP and SIGKILL, so it is a SIGSTOP, which is passed on, or
// the group stop that follows; the group stays stopped when we have left.
func (s *tracer) passStop(th *thread, how func(tid, sig int) error, ev event, code int) error {
	sig := 0
	if ev.code == 0 && ev.sig != syscallStop {
		sig = ev.sig
	}
	if code == unix.PTRACE_EVENT_STOP { // any stop cancels an interrupt
		if err := ptraceInterrupt(th.tid); err != nil {
			return s.lost(th, err)
		}
	}
	if err := how(th.tid, sig); err != nil {
		return s.lost(th, err)
	}
	return nil
}

// killed says whether the thread was killed in mid-call.
func (s *tracer) killed(th *thread) bool {
	stat, err := readStat(th.tid)
	return err != nil || stat.dead()
}

// lost turns the ESRCH of a stopped thread, which means it was killed, into
// ErrGone.
func (s *tracer) lost(th *thread, err error) error {
	th.stopped, s.thread.dirty = false, true
	if err == unix.ESRCH || err == unix.ECHILD {
		err = ErrGone
	}
	return fmt.Errorf("thread %d in an injected call: %w", th.tid, err)
}
