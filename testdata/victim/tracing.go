package victim

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() { kinds["tracing"] = tracing }

// tracing is a tracer: it has a child stop at every system call and every signal, says the child's
// number after ready, and checks that the stops are those that the child's program leads to, none
// lost and none added.
func tracing(p *program) {
	mask := ownThread()
	pid, errno := rawTracee()
	if errno != 0 {
		p.must("fork", errno)
	}
	child := int(pid)
	first, err := stopOf(child)
	p.must("wait", err)
	if first != unix.SIGUSR1 {
		p.fault("first stop: %v", first)
	}
	p.must("options", unix.PtraceSetOptions(child, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_EXITKILL))
	p.ready()
	fmt.Println(child)
	const atCall = unix.SIGTRAP | 0x80
	wanted := []unix.Signal{atCall, atCall, atCall, atCall, unix.SIGUSR1}
	for n := 0; !p.stopped(); n++ {
		p.must("PTRACE_SYSCALL", unix.PtraceSyscall(child, 0))
		got, err := stopOf(child)
		if want := wanted[n%len(wanted)]; err != nil || got != want {
			p.fault("stop %d of the tracee: %v, %v instead of %v", n, got, err, want)
			break
		}
	}
	p.must("kill", unix.Kill(child, unix.SIGKILL))
	if _, err := unix.Wait4(child, nil, unix.WALL, nil); err != nil {
		p.fault("wait for the end of the tracee: %v", err)
	}
	p.checkMask(mask)
}

// stopOf waits for a stop of the tracee.
func stopOf(child int) (unix.Signal, error) {
	var status unix.WaitStatus
	if _, err := unix.Wait4(child, &status, unix.WALL, nil); err != nil {
		return 0, err
	}
	if !status.Stopped() {
		return 0, fmt.Errorf("status %#x", status)
	}
	return status.StopSignal(), nil
}

var noSignals unix.Sigset_t

// rawTracee forks a child that lets its parent trace it, and then for ever makes one call and sends
// itself a signal by another.
//
//go:nosplit
//go:norace
func rawTracee() (pid uintptr, errno unix.Errno) {
	pid, _, errno = unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	// Signals are blocked as in its parent. The kernel's set has 8 bytes.
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&noSignals)), 0, 8, 0, 0)
	_, _, _ = unix.RawSyscall(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0)
	self, _, _ := unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0)
	for {
		_, _, _ = unix.RawSyscall(unix.SYS_TGKILL, self, self, uintptr(unix.SIGUSR1))
		_, _, _ = unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
	}
}
