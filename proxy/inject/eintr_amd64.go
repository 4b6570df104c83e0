package inject

import (
	"sync"

	"golang.org/x/sys/unix"
)

// eintrCalls are those of this processor, by number.
var eintrCalls = map[int64]eintrCall{
	unix.SYS_EPOLL_WAIT:      {timeout: inMilliseconds(3, 0)},
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
	unix.SYS_SELECT:   {timeout: inTimeval(4), silent: true},

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
var notedIn = map[int64]int{unix.SYS_PPOLL: 2, unix.SYS_PSELECT6: 4, unix.SYS_SELECT: 4}

// selectCall is the one of them whose timeout is a timeval.
const selectCall = unix.SYS_SELECT

// mark reads the mark of a call, setMark sets it. It is in the upper half of orig_rax. The kernel takes a call's number from the
// lower half of rax and keeps the whole in orig_rax, where no program can read it;
// when it makes the call again it loads rax from there. The end of the call puts the result into
// rax, and the mark is gone.
func (r *regs) mark() mark {
	if int64(r.Orig_rax) < 0 {
		return 0
	}
	return mark(r.Orig_rax >> 32)
}

func (r *regs) setMark(m mark) {
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
