package inject

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// At the event stop this kernel has forgotten the call (do_signal() in arch/arm64/kernel/signal.c).
// One that answers EINTR has the answer where its first argument was, and nothing says that it is
// the stop that has ended it, and not a handler before. So a call is made again only where the thread was seen
// asleep in a call when it had been seized: a handler that ran since would have shown.
//
// To make it again right from the stop would lose an EINTR: the kernel does not know that the
// thread is in a call, and would let the handler of a signal run first, and then the call
// sleep. So would any call that is put back after the thread has been elsewhere. So the thread
// is led to the entry of the call, with those signals blocked that come on the way; the
// call sees them.

// selectCall is not a call of this processor.
const selectCall = -1

// evidence says whether a thread must have been seen asleep in a call.
const evidence = true

// seesCall says whether a thread sleeps in a system call.
func seesCall(tid int) bool {
	var text [32]byte
	n := readInto(proc(tid, "syscall"), text[:])
	number, _, _ := bytes.Cut(text[:n], []byte(" "))
	nr, err := strconv.Atoi(string(number))
	return err == nil && nr >= 0 // else it runs, or has been stopped
}

// broken is the call of a stopped thread that the stop has ended, its arguments and what it has come to.
func (s *tracer) broken(th *thread, sl *sleep) (nr int64, args [6]uint64, result int64) {
	r := &th.regs
	nr, args, result = r.callNumber(), r.arguments(), r.result()
	_, eintr := eintrCalls[nr]
	if !eintr || !th.seen || th.groupStop { // a group stop is not of our making, and EINTR its usual answer
		return -1, args, 0
	}
	if result == -int64(unix.EINTR) && s.afterCall(th, r) {
		var ok bool
		if args[0], ok = firstArgument(th.tid, nr); !ok {
			return -1, args, 0
		}
		return nr, args, result
	}
	// The kernel makes it again, or the thread is there for the first time.
	back := pendingCall{nr, r.stack(), r.ip() + uint64(len(syscallInsn))}
	if sl != nil && sl.call == back && !sl.overtaken(th.tid) {
		return nr, args, erestartNoHand
	}
	return -1, args, 0
}

// firstArgument is that of the call that a stopped thread has been in. The kernel still has it, and shows it when the
// thread seems to be in a call.
func firstArgument(tid int, nr int64) (argument uint64, ok bool) {
	if !setCallNumber(tid, int32(nr)) {
		return 0, false
	}
	_, args, ok := pendingOf(tid)
	return args[0], setCallNumber(tid, -1) && ok
}

// ntSystemCall is the register set that is a call's number (NT_ARM_SYSTEM_CALL).
const ntSystemCall = 0x404

func setCallNumber(tid int, nr int32) bool {
	_, err := regset(unix.PTRACE_SETREGSET, tid, ntSystemCall, binary.NativeEndian.AppendUint32(nil, uint32(nr)))
	return err == nil
}

// makeAgain has the thread make the call again, giveAnswer has that answer that it got no further.
func (th *thread) makeAgain(args [6]uint64, result int64) {
	if r := &th.regs; result != erestartNoHand { // else it is so already
		r.Regs[0] = args[0]
		r.Pc -= uint64(len(syscallInsn))
	}
}

func (th *thread) giveAnswer(e unix.Errno) {
	th.regs.setResult(-int64(e))
	th.regs.Pc += uint64(len(syscallInsn))
}

// pending is the call that a revived thread will make again.
func (th *thread) pending() pendingCall {
	r := &th.regs
	return pendingCall{r.callNumber(), r.stack(), r.ip() + uint64(len(syscallInsn))}
}

// mark and setMark keep the mark of a call in the tracer's own memory: no register has a place for it. So
// it lives as long as the trace, and goes on in the deadline.
func (th *thread) mark() mark     { return th.due }
func (th *thread) setMark(m mark) { th.due = m }

// goesIn says whether a stopped thread, which is about to be let go, has to be led into the call that it will
// make again. One whose group is stopped waits for SIGCONT where it is.
func (s *tracer) goesIn(th *thread) bool {
	return (th.revived || th.visited) && !th.groupStop && s.openCode(th.tid) == nil && s.code.isCall(th.regs.ip())
}

// letIn lets threads go into their calls. To detach one at the entry would end the call
// (__ptrace_unlink() in kernel/ptrace.c makes it look for signals). So they run on, and the end of the
// tracer's OS thread detaches them.
func (s *tracer) letIn(threads []*thread) error {
	if len(threads) == 0 {
		return nil
	}
	s.thread.dirty = true
	var errs []error
	for _, th := range threads {
		var err error
		if th.mask, err = ptraceGetMask(th.tid); err == nil {
			err = ptraceSyscall(th.tid, 0)
		}
		if th.stopped = err == nil; !th.stopped {
			errs = append(errs, s.lost(th, err))
		}
	}
	var inside []*thread
	for _, th := range threads {
		if !th.stopped {
			continue
		}
		in, err := s.toEntry(th)
		if err != nil {
			errs = append(errs, err)
		} else if in && th.revived {
			inside = append(inside, th)
		}
	}
	for until := time.Now().Add(sleepPatience); len(inside) > 0; inside = inside[1:] {
		th := inside[0]
		if slept, ok := awaitSleep(th.tid, until); ok && th.deadline > 0 {
			setDeadline(s.pid, th.tid, th.deadline, th.pending(), slept)
		}
	}
	return errors.Join(slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, ErrGone) })...)
}

// toEntry waits until a thread is at the entry of its call, and lets it go in. False: it goes on
// elsewhere.
func (s *tracer) toEntry(th *thread) (in bool, err error) {
	mask := th.mask
	for end := time.Now().Add(stepLimit); ; {
		ev, ok, err := s.thread.alarm.stopOf(th.tid)
		if err != nil {
			return false, s.lost(th, err)
		}
		if !ok {
			stat, err := readStat(th.tid)
			switch {
			case err != nil || stat.dead():
				return false, s.lost(th, unix.ESRCH)
			case mask == th.mask && (stat.state == 'S' || stat.state == 'D'), time.Now().After(end): // it is frozen
				return false, nil
			}
			continue
		}
		sig := 0
		switch {
		case ev.sig == syscallStop:
			if mask != th.mask {
				err = ptraceSetMask(th.tid, th.mask)
			}
			if err == nil {
				err = ptraceSyscall(th.tid, 0)
			}
			if err != nil {
				return false, s.lost(th, err)
			}
			return true, nil
		case ev.code != 0 && ev.sig != int(unix.SIGTRAP):
			return false, s.leaveStopped(th, mask != th.mask)
		case ev.code != 0:
		case unblockable&(1<<(ev.sig-1)) == 0 && catches(th.tid, ev.sig):
			// With that the kernel puts it back, to be delivered when it is blocked no more.
			mask |= 1 << (ev.sig - 1)
			if err := ptraceSetMask(th.tid, mask); err != nil {
				return false, s.lost(th, err)
			}
			fallthrough
		default:
			sig = ev.sig
		}
		if err := ptraceSyscall(th.tid, sig); err != nil {
			return false, s.lost(th, err)
		}
	}
}

// leaveStopped leaves a thread whose group has been stopped meanwhile: that makes the call answer EINTR.
func (s *tracer) leaveStopped(th *thread, masked bool) (err error) {
	if masked {
		err = ptraceSetMask(th.tid, th.mask)
	}
	if err == nil && th.revived {
		th.giveAnswer(unix.EINTR)
		err = ptraceSetRegs(th.tid, &th.regs)
	}
	if err == nil {
		err = ptraceDetach(th.tid)
	}
	if err != nil {
		return s.lost(th, err)
	}
	return nil
}

// sleepPatience bounds the wait for threads to sleep in their calls. Nothing tells a tracer of that.
const sleepPatience = 100 * time.Millisecond

// awaitSleep waits until a thread sleeps in the call that it has been let into, and says how often it has gone to
// sleep then. It would be stopped at the end of the call, so what sleeps is in it. False: it has ended.
func awaitSleep(tid int, until time.Time) (slept int, ok bool) {
	for ; time.Now().Before(until); nap(20 * time.Microsecond) {
		if stat, err := readStat(tid); err == nil && stat.state == 'S' {
			_, slept, ok = lastRan(tid)
		}
		ev, stopped, err := stopOf(tid)
		switch {
		case err != nil:
			return 0, false
		case stopped:
			if ev.sig == syscallStop {
				_ = ptraceDetach(tid) // ESRCH: killed
			}
			return 0, false // else the tracer's end delivers the signal
		case ok:
			return slept, true
		}
	}
	return 0, false
}
