package inject

import "golang.org/x/sys/unix"

// eintrCalls answer EINTR to any stop, even one that no handler follows
// (signal(7), "Interruption of system calls … by stop signals"). The value says
// whether a call has no timeout.
var eintrCalls = map[int64]func(*regs) (endless bool){
	unix.SYS_EPOLL_WAIT:      func(r *regs) bool { return int32(r.R10) < 0 },
	unix.SYS_EPOLL_PWAIT:     func(r *regs) bool { return int32(r.R10) < 0 },
	unix.SYS_EPOLL_PWAIT2:    func(r *regs) bool { return r.R10 == 0 },
	unix.SYS_SEMOP:           func(*regs) bool { return true },
	unix.SYS_SEMTIMEDOP:      func(r *regs) bool { return r.R10 == 0 },
	unix.SYS_MSGRCV:          func(*regs) bool { return true },
	unix.SYS_RT_SIGTIMEDWAIT: func(r *regs) bool { return r.Rdx == 0 },
	unix.SYS_IO_GETEVENTS:    func(r *regs) bool { return r.R8 == 0 },
	unix.SYS_IO_URING_ENTER:  func(r *regs) bool { return r.R10&uringArgument == 0 },
}

// uringArgument are the flags of io_uring_enter(2) with which its fifth argument may have a timeout
// (IORING_ENTER_EXT_ARG and IORING_ENTER_EXT_ARG_REG). When it answers EINTR it has submitted
// nothing, as io_getevents(2) then has taken nothing.
const uringArgument = 1<<3 | 1<<6

// erestartNoHand is -ERESTARTNOHAND as a result: the call is made again unless
// a signal handler runs, which is what EINTR is for.
const erestartNoHand = -514

// resumeEndless makes an endless call that the stop has broken off with EINTR
// go on. Calls with a timeout would start it anew and are left alone. It says
// whether it changed the registers.
func (r *regs) resumeEndless() bool {
	endless := eintrCalls[r.callNumber()]
	if endless == nil || int64(r.Rax) != -int64(unix.EINTR) || !endless(r) {
		return false
	}
	r.setResult(erestartNoHand)
	return true
}

// millisecondCall says whether a call answers EINTR to any stop and has its
// timeout, in milliseconds, in the fourth argument.
func millisecondCall(nr int64) bool { return nr == unix.SYS_EPOLL_WAIT || nr == unix.SYS_EPOLL_PWAIT }

// milliseconds is the timeout of such a call.
func (r *regs) milliseconds() int32 { return int32(r.R10) }

// resumeWith makes such a call go on with another timeout.
func (r *regs) resumeWith(milliseconds int32) {
	r.R10 = uint64(uint32(milliseconds))
	r.setResult(erestartNoHand)
}
