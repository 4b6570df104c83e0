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
}

// resumeEndless makes an endless call that the stop has broken off with EINTR
// go on, as if it had returned -ERESTARTNOHAND: it is made again unless a
// signal handler runs, which is what EINTR is for. Calls with a timeout would
// start it anew and are left alone. It says whether it changed the registers.
func (r *regs) resumeEndless() bool {
	const erestartNoHand = 514
	endless := eintrCalls[r.callNumber()]
	if endless == nil || int64(r.Rax) != -int64(unix.EINTR) || !endless(r) {
		return false
	}
	r.setResult(-erestartNoHand)
	return true
}
