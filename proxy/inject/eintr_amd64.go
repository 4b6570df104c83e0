package inject

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Those that only this processor has.
func init() {
	eintrCalls[unix.SYS_EPOLL_WAIT] = eintrCall{timeout: inMilliseconds(3, 0)}
	eintrCalls[selectCall] = eintrCall{timeout: inTimeval(4), silent: true}
	notedIn[selectCall] = 4
}

// selectCall is the call that notes what remains of its time in a timeval.
const selectCall = unix.SYS_SELECT

// inTimeval is the timeout of a call whose argument i points to a timeval.
func inTimeval(i int) func(*tracer, int, *[6]uint64) (timeout, bool) {
	return func(_ *tracer, tid int, args *[6]uint64) (timeout, bool) {
		d, ok := readTimespec(tid, args[i])
		return timeout{d.Truncate(time.Second) + d%time.Second*1000, 0}, ok
	}
}

// evidence says whether a thread must have been seen asleep in a call. Here the registers tell.
const evidence = false

func seesCall(int) bool { return false }

// broken is the call of a stopped thread that the stop has ended, its arguments and what it has come to.
func (s *tracer) broken(th *thread, _ *sleep) (nr int64, args [6]uint64, result int64) {
	r := &th.regs
	return r.callNumber(), r.arguments(), r.result()
}

// makeAgain has the kernel make the call again, giveAnswer has that answer that it got no further.
func (th *thread) makeAgain([6]uint64, int64) { th.regs.setResult(erestartNoHand) }
func (th *thread) giveAnswer(e unix.Errno)    { th.regs.setResult(-int64(e)) }

// pending is the call that a stopped thread is in, or will make again.
func (th *thread) pending() pendingCall {
	r := &th.regs
	return pendingCall{r.callNumber(), r.stack(), r.ip()}
}

// goesIn is about arm64: here the kernel itself makes calls again whose registers are put back.
func (s *tracer) goesIn(*thread) bool { return false }

func (s *tracer) letIn([]*thread) {}

// mark reads the mark of a call, setMark sets it. It is in the upper half of orig_rax. The kernel takes a call's number from the
// lower half of rax and keeps the whole in orig_rax, where no program can read it;
// when it makes the call again it loads rax from there. The end of the call puts the result into
// rax, and the mark is gone.
func (th *thread) mark() mark {
	r := &th.regs
	if int64(r.Orig_rax) < 0 {
		return 0
	}
	return mark(r.Orig_rax >> 32)
}

func (th *thread) setMark(m mark) {
	r := &th.regs
	if haveMarks() {
		r.Orig_rax = uint64(m)<<32 | uint64(uint32(r.Orig_rax))
	}
}

// haveMarks says whether this kernel overlooks the upper half (Linux 5.13; tried,
// not looked up by version).
var haveMarks = sync.OnceValue(func() bool {
	pid, _, _ := unix.RawSyscall(unix.SYS_GETPID|1<<32, 0, 0, 0)
	return int(pid) == unix.Getpid()
})
