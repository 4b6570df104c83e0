package inject

import (
	"encoding/binary"
	"math"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Some system calls answer EINTR to any stop, even one that no handler follows
// (signal(7), "Interruption of system calls … by stop signals"). Nothing has come of them
// then, so they are made again, as the kernel does with others. One with a timeout would
// begin it anew. Its registers and its memory are the program's and must not change:
// compilers rely on the registers, other threads on the memory. So it is made again as
// it was, and when its time is over (deadline.go) it is stopped once more and given
// the answer that it would have given itself.
//
// When that is, is kept in a mark, which lives exactly as long as the call and
// which the program cannot see (setMark). On arm64 there is none, and more to be done
// (eintr_arm64.go).
//
// Ppoll(2) and select(2) note in their timeout what remains of it, when the stop comes. The
// time until the thread goes on is taken from that too.

// eintrCall is a kind of such calls.
type eintrCall struct {
	// socket says that it does so only where its first argument is a socket.
	socket bool
	// silent says that more than a number is its answer: nobody can give it that.
	silent bool
	// timeout finds how long a call waits; false: for ever, or it is not known.
	timeout func(s *tracer, tid int, args *[6]uint64) (timeout, bool)
}

// eintrCalls are the calls of all processors, by number.
var eintrCalls = map[int64]eintrCall{
	unix.SYS_EPOLL_PWAIT:     {timeout: inMilliseconds(3, 0)},
	unix.SYS_EPOLL_PWAIT2:    {timeout: inTimespec(3, 0)},
	unix.SYS_SEMOP:           {},
	unix.SYS_SEMTIMEDOP:      {timeout: inTimespec(3, unix.EAGAIN)},
	unix.SYS_MSGRCV:          {},
	unix.SYS_MSGSND:          {},
	unix.SYS_RT_SIGTIMEDWAIT: {timeout: inTimespec(2, unix.EAGAIN)},
	unix.SYS_IO_GETEVENTS:    {timeout: inTimespec(4, 0)},
	unix.SYS_IO_PGETEVENTS:   {timeout: inTimespec(4, 0)},
	unix.SYS_IO_URING_ENTER:  {timeout: ofUring},
	unix.SYS_FALLOCATE:       {}, // on tmpfs, which takes back what it has done

	// These answer EINTR only where their timeout lies in memory that cannot be written
	// (poll_select_finish() in fs/select.c).
	unix.SYS_PPOLL:    {timeout: inTimespec(2, 0)},
	unix.SYS_PSELECT6: {timeout: inTimespec(4, 0), silent: true}, // it clears sets

	// On a socket with a timeout (sock_intr_errno()).
	unix.SYS_READ:     {socket: true, timeout: ofSocket(unix.SO_RCVTIMEO)},
	unix.SYS_READV:    {socket: true, timeout: ofSocket(unix.SO_RCVTIMEO)},
	unix.SYS_RECVFROM: {socket: true, timeout: ofSocket(unix.SO_RCVTIMEO)},
	unix.SYS_RECVMSG:  {socket: true, timeout: ofSocket(unix.SO_RCVTIMEO)},
	unix.SYS_RECVMMSG: {socket: true, timeout: ofSocket(unix.SO_RCVTIMEO)},
	unix.SYS_ACCEPT:   {socket: true, timeout: ofSocket(unix.SO_RCVTIMEO)},
	unix.SYS_ACCEPT4:  {socket: true, timeout: ofSocket(unix.SO_RCVTIMEO)},
	unix.SYS_SPLICE:   {socket: true, timeout: ofSocket(unix.SO_RCVTIMEO)},
	unix.SYS_WRITE:    {socket: true, timeout: ofSocket(unix.SO_SNDTIMEO)},
	unix.SYS_WRITEV:   {socket: true, timeout: ofSocket(unix.SO_SNDTIMEO)},
	unix.SYS_SENDTO:   {socket: true, timeout: ofSocket(unix.SO_SNDTIMEO)},
	unix.SYS_SENDMSG:  {socket: true, timeout: ofSocket(unix.SO_SNDTIMEO)},
	unix.SYS_SENDMMSG: {socket: true, timeout: ofSocket(unix.SO_SNDTIMEO)},
	unix.SYS_SENDFILE: {socket: true, timeout: ofSocket(unix.SO_SNDTIMEO)},
	unix.SYS_CONNECT:  {socket: true, timeout: ofConnect},
}

// notedIn are the calls that note in an argument what remains of their time, and which.
var notedIn = map[int64]int{unix.SYS_PPOLL: 2, unix.SYS_PSELECT6: 4}

// timeout is how long a call waits, and what the call answers when that is over.
type timeout struct {
	time   time.Duration
	answer unix.Errno
}

// longest is a timeout from which on it is taken for none: no mark stands for more.
const longest = 1 << 30 * time.Millisecond

// timeoutOf finds the timeout of a call.
func (s *tracer) timeoutOf(tid int, nr int64, args *[6]uint64) (timeout, bool) {
	c, ok := eintrCalls[nr]
	if !ok || c.timeout == nil || c.socket && !isSocket(tid, args[0]) {
		return timeout{}, false
	}
	t, ok := c.timeout(s, tid, args)
	return t, ok && t.time < longest
}

// erestartNoHand is -ERESTARTNOHAND as a result: the call is made again unless
// a signal handler runs, which is what EINTR is for.
const erestartNoHand = -514

// revive makes the call of a stopped thread go on that the stop has ended, and
// says whether it changed the registers.
func (s *tracer) revive(th *thread) bool {
	sl := th.sleep
	th.sleep = nil
	nr, args, result := s.broken(th, sl)
	c, ok := eintrCalls[nr]
	// Some are made again by the kernel, but with the whole of their time, or without
	// regard to that of the stop.
	broken := result == -int64(unix.EINTR) || result == erestartNoHand
	if !ok || !broken || c.socket && !isSocket(th.tid, args[0]) {
		return false
	}
	_, notes := notedIn[nr]
	th.noted = notes && result == erestartNoHand
	th.makeAgain(args, result)
	if th.mark() != 0 {
		return true
	}
	if t, ok := s.timeoutOf(th.tid, nr, &args); ok {
		th.setMark(markOf(monotonic() + t.time))
		th.sleep = sl // to be dated
	}
	return true
}

// date corrects the mark of a call in which the thread slept when it was seized, and says whether
// it did.
func (s *tracer) date(th *thread) bool {
	sl := th.sleep
	th.sleep = nil
	if sl == nil || sl.timeout == 0 || sl.call != th.pending() || sl.overtaken(th.tid) {
		return false
	}
	behind, ok := s.clockBehind(sl.cpu)
	if !ok {
		return false
	}
	at := min(sl.began+behind, sl.seen) + sl.timeout
	// One whose time is over has perhaps ended by itself, and this is the next.
	if at <= monotonic() {
		return false
	}
	th.setMark(markOf(at))
	return true
}

// letGo sees to it that the call of a stopped thread ends in time, which is about to be let
// go. If the caller has to see to that, it returns the deadline.
func (s *tracer) letGo(th *thread) (deadline time.Duration, err error) {
	r := &th.regs
	if s.date(th) { // else it was when all had stopped
		if err := ptraceSetRegs(th.tid, r); err != nil {
			return 0, err
		}
	}
	if !th.revived || th.mark() == 0 {
		return 0, nil
	}
	now := monotonic()
	deadline = th.mark().time(now)
	nr, args := r.callNumber(), r.arguments()
	if i := notedIn[nr]; th.noted && writeTime(th.tid, args[i], max(deadline-now, 0), nr == selectCall) {
		return 0, nil
	}
	t, ok := s.timeoutOf(th.tid, nr, &args)
	if !ok || eintrCalls[nr].silent {
		return 0, nil
	}
	if deadline > now {
		return deadline, nil
	}
	th.revived = false
	th.giveAnswer(t.answer)
	return 0, ptraceSetRegs(th.tid, r)
}

// mark is a time of CLOCK_MONOTONIC in milliseconds, modulo 2³¹; 0 is none.
type mark uint32

// markOf rounds up: a call may end too late by a millisecond, never too early.
func markOf(at time.Duration) mark {
	return max(mark((at+time.Millisecond-1)/time.Millisecond)&math.MaxInt32, 1)
}

// time is the one that the mark stands for, at most twelve days from now.
func (m mark) time(now time.Duration) time.Duration {
	ms := now / time.Millisecond
	away := int32((m-mark(ms))<<1) >> 1
	return (ms + time.Duration(away)) * time.Millisecond
}

// inMilliseconds is the timeout of a call whose argument i is a number of
// milliseconds, for ever if negative.
func inMilliseconds(i int, answer unix.Errno) func(*tracer, int, *[6]uint64) (timeout, bool) {
	return func(_ *tracer, _ int, args *[6]uint64) (timeout, bool) {
		ms := int32(args[i])
		return timeout{time.Duration(ms) * time.Millisecond, answer}, ms >= 0
	}
}

// inTimespec is the timeout of a call whose argument i points to a timespec.
func inTimespec(i int, answer unix.Errno) func(*tracer, int, *[6]uint64) (timeout, bool) {
	return func(_ *tracer, tid int, args *[6]uint64) (timeout, bool) {
		d, ok := readTimespec(tid, args[i])
		return timeout{d, answer}, ok
	}
}

// ofSocket is the timeout of a call whose first argument is a socket, which has it as an
// option.
func ofSocket(option int) func(*tracer, int, *[6]uint64) (timeout, bool) {
	return func(s *tracer, tid int, args *[6]uint64) (timeout, bool) {
		d, _, ok := s.socketTimeout(tid, int(args[0]), option)
		return timeout{d, unix.EAGAIN}, ok
	}
}

// ofConnect is the timeout of connect(2), which answers as the family of the socket wants.
func ofConnect(s *tracer, tid int, args *[6]uint64) (timeout, bool) {
	d, family, ok := s.socketTimeout(tid, int(args[0]), unix.SO_SNDTIMEO)
	switch family {
	case unix.AF_UNIX:
		return timeout{d, unix.EAGAIN}, ok
	case unix.AF_INET, unix.AF_INET6:
		return timeout{d, unix.EINPROGRESS}, ok
	}
	return timeout{}, false
}

// Flags of io_uring_enter(2).
const (
	uringArgument   = 1 << 3 // IORING_ENTER_EXT_ARG: the fifth argument is a struct
	uringAbsolute   = 1 << 5 // IORING_ENTER_ABS_TIMER
	uringRegistered = 1 << 6 // IORING_ENTER_EXT_ARG_REG: it lies in a region that only the kernel knows
)

// ofUring is the timeout of io_uring_enter(2). When that answers EINTR it has submitted nothing.
func ofUring(_ *tracer, tid int, args *[6]uint64) (timeout, bool) {
	if args[3]&(uringArgument|uringAbsolute|uringRegistered) != uringArgument {
		return timeout{}, false
	}
	var argument [24]byte // struct io_uring_getevents_arg
	if !readMemory(tid, args[4], argument[:]) {
		return timeout{}, false
	}
	d, ok := readTimespec(tid, binary.NativeEndian.Uint64(argument[16:]))
	return timeout{d, unix.ETIME}, ok
}

// readTimespec reads a duration in a thread's memory; false where there is none.
func readTimespec(tid int, at uint64) (time.Duration, bool) {
	var raw [16]byte
	if at == 0 || !readMemory(tid, at, raw[:]) {
		return 0, false
	}
	sec, nsec := int64(binary.NativeEndian.Uint64(raw[:])), int64(binary.NativeEndian.Uint64(raw[8:]))
	if sec < 0 || sec >= int64(longest/time.Second) {
		return 0, false
	}
	return time.Duration(sec)*time.Second + time.Duration(nsec), true
}

// writeTime writes a duration into a thread's memory, where the kernel has written one before: a
// timespec or a timeval.
func writeTime(tid int, at uint64, d time.Duration, timeval bool) bool {
	part := d % time.Second
	if timeval {
		part = (part + time.Microsecond - 1) / time.Microsecond
	}
	raw := binary.NativeEndian.AppendUint64(nil, uint64(d/time.Second))
	raw = binary.NativeEndian.AppendUint64(raw, uint64(part))
	local := []unix.Iovec{{Base: &raw[0], Len: uint64(len(raw))}}
	n, err := unix.ProcessVMWritev(tid, local, []unix.RemoteIovec{{Base: uintptr(at), Len: len(raw)}}, 0)
	return err == nil && n == len(raw)
}

// readMemory reads a thread's memory.
func readMemory(tid int, at uint64, p []byte) bool {
	local := []unix.Iovec{{Base: &p[0], Len: uint64(len(p))}}
	n, err := unix.ProcessVMReadv(tid, local, []unix.RemoteIovec{{Base: uintptr(at), Len: len(p)}}, 0)
	return err == nil && n == len(p)
}

// isSocket says whether a descriptor of a thread is a socket. That is asked before any is
// taken: to close the copy of another may do something to the file (FUSE_FLUSH).
func isSocket(tid int, fd uint64) bool {
	var to [16]byte
	n, err := unix.Readlink(proc(tid, "fd/"+strconv.Itoa(int(int32(fd)))), to[:])
	return err == nil && strings.HasPrefix(string(to[:n]), "socket:")
}

// socketTimeout reads an option of a thread's socket, SO_RCVTIMEO or SO_SNDTIMEO, and the socket's
// family.
func (s *tracer) socketTimeout(tid, fd, option int) (d time.Duration, family int, ok bool) {
	pidfd, err := s.openPidfd(tid)
	if err != nil {
		return 0, 0, false
	}
	defer unix.Close(pidfd)
	local, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return 0, 0, false
	}
	defer unix.Close(local)
	tv, err := unix.GetsockoptTimeval(local, unix.SOL_SOCKET, option)
	if err != nil || tv.Nano() <= 0 {
		return 0, 0, false
	}
	family, err = unix.GetsockoptInt(local, unix.SOL_SOCKET, unix.SO_DOMAIN)
	return time.Duration(tv.Nano()), family, err == nil
}
