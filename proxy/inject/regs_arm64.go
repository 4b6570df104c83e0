package inject

import "golang.org/x/sys/unix"

// regs are the general registers of a stopped thread.
type regs struct{ unix.PtraceRegs }

// syscallInsn is the instruction of a system call: svc #0.
var syscallInsn = []byte{0x01, 0x00, 0x00, 0xd4}

// setCall makes the thread execute the syscall instruction at insn. The kernel
// has prepared the restart of an interrupted system call before the stop and
// has then forgotten the call (arch/arm64/kernel/signal.c), so nothing else
// need be undone.
func (r *regs) setCall(insn uint64, nr uintptr, args [6]uint64) {
	r.Pc = insn
	r.Regs[8] = uint64(nr)
	copy(r.Regs[:6], args[:])
}

// result is what a system call returned.
func (r *regs) result() int64 { return int64(r.Regs[0]) }

func (r *regs) setResult(n int64) { r.Regs[0] = uint64(n) }

// callNumber is the number of the system call at whose end the thread is, if it
// is at the end of one (afterCall): it stays in x8.
func (r *regs) callNumber() int64 { return int64(r.Regs[8]) }

// arguments are those of the system call, the first one only before it has ended.
func (r *regs) arguments() [6]uint64 { return [6]uint64(r.Regs[:6]) }

// stack is the stack pointer, ip the instruction pointer.
func (r *regs) stack() uint64 { return r.Sp }
func (r *regs) ip() uint64    { return r.Pc }

func (r *regs) setIP(ip uint64) { r.Pc = ip }

// frameResult is where, relative to the stack pointer at the first instruction
// of a signal handler, the kernel keeps x0: siginfo, 168 bytes of ucontext with
// the padded signal mask, the fault address (struct rt_sigframe).
const frameResult = 128 + 176 + 8

// mayGoOn says whether the registers are those of a call that the kernel, once
// it is interrupted, may go on with by restart_syscall.
func (r *regs) mayGoOn() bool {
	const operation, wait, waitBitset = 127, 0, 9 // FUTEX_CMD_MASK, FUTEX_WAIT, FUTEX_WAIT_BITSET
	switch r.Regs[8] {
	case unix.SYS_NANOSLEEP:
		return true
	case unix.SYS_CLOCK_NANOSLEEP:
		return r.Regs[1]&unix.TIMER_ABSTIME == 0
	case unix.SYS_FUTEX:
		op := r.Regs[1] & operation
		return (op == wait || op == waitBitset) && r.Regs[3] != 0
	}
	return false
}

// afterCall says whether a thread is at the end of a system call, and not where
// it will make it again.
func (s *tracer) afterCall(th *thread, r *regs) bool {
	return s.openCode(th.tid) == nil && s.code.isCall(r.Pc-uint64(len(syscallInsn)))
}
