package inject

import (
	"bytes"
	"encoding/binary"
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
	same := func(ip uint64) bool { // as when it was seized
		return sl != nil && sl.call == pendingCall{nr, r.stack(), ip} && !sl.overtaken(th.tid)
	}
	if result == -int64(unix.EINTR) && s.afterCall(th, r) {
		if !same(r.ip()) {
			th.due = 0
		}
		var ok bool
		if args[0], ok = firstArgument(th.tid, nr); !ok {
			return -1, args, 0
		}
		return nr, args, result
	}
	// The kernel makes it again, if the thread is not there for the first time.
	if same(r.ip() + uint64(len(syscallInsn))) {
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
func (s *tracer) letIn(threads []*thread) {
	var ways []*way
	for _, th := range threads {
		s.thread.dirty = true
		mask, err := ptraceGetMask(th.tid)
		if err == nil {
			err = ptraceSyscall(th.tid, 0)
		}
		if err == nil { // else it was killed
			ways = append(ways, &way{thread: th, old: mask, mask: mask, since: time.Now()})
		}
	}
	for {
		outside := 0
		ways = slices.DeleteFunc(ways, func(w *way) bool {
			gone := s.lead(w)
			if !gone && !w.inside {
				outside = w.tid
			}
			return gone
		})
		switch {
		case len(ways) == 0:
			return
		case outside != 0:
			_, _, _ = s.thread.alarm.stopOf(outside)
		default: // nothing tells a tracer that a thread has gone to sleep
			nap(20 * time.Microsecond)
		}
	}
}

// way is a thread's way into its call.
type way struct {
	*thread
	old, mask uint64 // the signals that are blocked, before and now
	inside    bool
	since     time.Time
}

// sleepPatience bounds the wait for a thread to sleep in its call.
const sleepPatience = 100 * time.Millisecond

// lead leads a thread on, and says whether nothing is left to do.
func (s *tracer) lead(w *way) (gone bool) {
	ev, stopped, err := stopOf(w.tid)
	switch {
	case err != nil:
		return true // killed
	case !stopped && w.inside:
		return s.sleeps(w) || time.Since(w.since) > sleepPatience
	case !stopped:
		// On the way it sleeps for long only when it is frozen.
		stat, err := readStat(w.tid)
		frozen := err == nil && (stat.state == 'S' || stat.state == 'D') && time.Since(w.since) > sleepPatience
		return err != nil || stat.dead() || frozen && w.mask == w.old || time.Since(w.since) > stepLimit
	case w.inside:
		if ev.sig == syscallStop { // at the end of the call; a signal comes with the tracer's end
			_ = ptraceDetach(w.tid)
		}
		return true
	case ev.sig == syscallStop:
		return s.letThrough(w)
	case ev.code != 0 && ev.sig != int(unix.SIGTRAP):
		s.leaveStopped(w)
		return true
	}
	sig := 0
	if ev.code == 0 {
		sig = ev.sig
		if unblockable&(1<<(sig-1)) == 0 && catches(w.tid, sig) {
			// So the kernel puts it back, to be delivered when it is blocked no more.
			w.mask |= 1 << (sig - 1)
			err = ptraceSetMask(w.tid, w.mask)
		}
	}
	return err != nil || ptraceSyscall(w.tid, sig) != nil
}

// letThrough lets a thread go in from the entry.
func (s *tracer) letThrough(w *way) (gone bool) {
	if w.mask != w.old && ptraceSetMask(w.tid, w.old) != nil {
		return true // killed
	}
	if !w.revived { // the kernel makes it go on next time
		_ = ptraceCont(w.tid, 0)
		return true
	}
	w.inside, w.since = true, time.Now()
	return ptraceSyscall(w.tid, 0) != nil
}

// sleeps says whether a thread sleeps in its call, and sets the deadline. It would be stopped at the call's
// end, so whatever sleeps is in it.
func (s *tracer) sleeps(w *way) bool {
	stat, err := readStat(w.tid)
	if err != nil || stat.state != 'S' {
		return false
	}
	_, slept, ok := lastRan(w.tid)
	if _, stopped, err := stopOf(w.tid); stopped || err != nil {
		return false
	}
	if ok && w.deadline > 0 {
		setDeadline(s.pid, w.tid, w.deadline, w.pending(), slept)
	}
	return true
}

// leaveStopped leaves a thread whose group has been stopped meanwhile: that makes a call answer EINTR.
func (s *tracer) leaveStopped(w *way) {
	if w.mask != w.old {
		_ = ptraceSetMask(w.tid, w.old) // ESRCH: killed
	}
	if w.revived {
		w.giveAnswer(unix.EINTR)
		_ = ptraceSetRegs(w.tid, &w.regs)
	}
	_ = ptraceDetach(w.tid)
}
