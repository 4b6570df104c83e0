package inject

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// sigmaskSize is the kernel's sizeof(sigset_t), which PTRACE_GETSIGMASK
	// insists on.
	sigmaskSize = 8
	// syscallStop is what PTRACE_O_TRACESYSGOOD makes of a syscall stop.
	syscallStop = int(unix.SIGTRAP) | 0x80
	// ntPRStatus names the general registers to PTRACE_GETREGSET.
	ntPRStatus = 1
)

// ptrace is the raw call, for requests that never sleep: the Go scheduler is not
// told of it.
func ptrace(request, tid int, addr, data uintptr) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// ptraceSeize attaches to a thread. Unlike the other requests it may sleep, for
// as long as the process is in execve(2) (cred_guard_mutex).
func ptraceSeize(tid int) error {
	const options = unix.PTRACE_O_TRACESYSGOOD
	seize := func(options uintptr) error {
		_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(tid), 0, options, 0, 0)
		if errno != 0 {
			return errno
		}
		return nil
	}
	err := seize(options | unix.PTRACE_O_SUSPEND_SECCOMP)
	if err != unix.EPERM && err != unix.EINVAL {
		return err
	}
	// Suspending seccomp takes CAP_SYS_ADMIN and CONFIG_CHECKPOINT_RESTORE.
	return seize(options)
}

func ptraceInterrupt(tid int) error { return ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0) }

func ptraceCont(tid, sig int) error { return ptrace(unix.PTRACE_CONT, tid, 0, uintptr(sig)) }

func ptraceSyscall(tid, sig int) error { return ptrace(unix.PTRACE_SYSCALL, tid, 0, uintptr(sig)) }

func ptraceDetach(tid int) error { return ptrace(unix.PTRACE_DETACH, tid, 0, 0) }

func ptraceGetMask(tid int) (mask uint64, err error) {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_GETSIGMASK, uintptr(tid),
		sigmaskSize, uintptr(unsafe.Pointer(&mask)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return mask, nil
}

func ptraceSetMask(tid int, mask uint64) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SETSIGMASK, uintptr(tid),
		sigmaskSize, uintptr(unsafe.Pointer(&mask)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// ptraceGetRegs reads the general registers. A task of another architecture
// has a set of another size: ErrUnsupported.
func ptraceGetRegs(tid int, r *regs) error {
	iov := unix.Iovec{Base: (*byte)(unsafe.Pointer(r)), Len: uint64(unsafe.Sizeof(*r))}
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_GETREGSET, uintptr(tid),
		ntPRStatus, uintptr(unsafe.Pointer(&iov)), 0, 0)
	if errno != 0 {
		return errno
	}
	if iov.Len != uint64(unsafe.Sizeof(*r)) {
		return ErrUnsupported
	}
	return nil
}

func ptraceSetRegs(tid int, r *regs) error {
	iov := unix.Iovec{Base: (*byte)(unsafe.Pointer(r)), Len: uint64(unsafe.Sizeof(*r))}
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SETREGSET, uintptr(tid),
		ntPRStatus, uintptr(unsafe.Pointer(&iov)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// event is a stop as waitid(2) reports it.
type event struct {
	sig  int // the signal of the stop; syscallStop for a syscall stop
	code int // PTRACE_EVENT_*, 0 for a signal-delivery stop or syscall stop
}

// siginfo is the kernel's siginfo_t for SIGCHLD on a 64-bit machine.
type siginfo struct {
	signo, errno, code, _ int32
	pid, uid, status      int32
	_                     [100]byte
}

// syscall6 is RawSyscall6, or Syscall6 for a call that may sleep.
type syscall6 func(nr, a1, a2, a3, a4, a5, a6 uintptr) (r1, r2 uintptr, errno syscall.Errno)

func waitid(do syscall6, idType, id, options int) (info siginfo, err error) {
	_, _, errno := do(unix.SYS_WAITID, uintptr(idType), uintptr(id),
		uintptr(unsafe.Pointer(&info)), uintptr(options), 0, 0)
	if errno != 0 {
		return info, errno
	}
	return info, nil
}

// stopOf sees the stop of tracee tid, if it has stopped. It asks for stops
// only, never for exits, so it cannot reap a child that somebody else in this
// process waits for; and for one tid only, since the stops of this OS thread's
// own children would be reported with those of its tracees, even when another
// thread traces them (wait_consider_task() in kernel/exit.c). It leaves the stop
// as it is (WNOWAIT): the signal of one that has been taken is lost when the
// tracer dies (wait_task_stopped() clears exit_code). ECHILD: dead.
func stopOf(tid int) (event, bool, error) {
	info, err := waitid(syscall.RawSyscall6, unix.P_PID, tid, stops|unix.WNOHANG)
	return info.event(), err == nil && info.pid != 0, err
}

const stops = unix.WSTOPPED | unix.WALL | unix.WNOTHREAD | unix.WNOWAIT

// event is the stop of which it tells.
func (i *siginfo) event() event {
	return event{sig: int(i.status) & 0xff, code: int(i.status) >> 8}
}

// reapThread reaps tid, not a leader, if it has exited: until then a sibling's
// execve(2) would wait for us. It says whether tid is gone. It looks before it
// takes: a wait for exits takes the stops of tracees too, whatever its options
// (wait_task_stopped() in kernel/exit.c).
func reapThread(tid int) bool {
	const options = unix.WEXITED | unix.WALL | unix.WNOHANG
	info, err := waitid(syscall.RawSyscall6, unix.P_PID, tid, options|unix.WNOWAIT)
	if err == nil && info.exited() {
		_, err = waitid(syscall.RawSyscall6, unix.P_PID, tid, options)
		return err == nil || err == unix.ECHILD
	}
	return err == unix.ECHILD
}

// exited says whether it tells of an exit: CLD_EXITED, CLD_KILLED, CLD_DUMPED.
func (i *siginfo) exited() bool { return i.pid != 0 && i.code >= 1 && i.code <= 3 }
