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

// callNumber is the number of the system call at whose end the thread is. It
// stays in x8; that the thread is at its very end the caller must know.
func (r *regs) callNumber() int64 { return int64(r.Regs[8]) }

// stack is the stack pointer, ip the instruction pointer.
func (r *regs) stack() uint64 { return r.Sp }
func (r *regs) ip() uint64    { return r.Pc }

func (r *regs) setIP(ip uint64) { r.Pc = ip }

// frameResult is where, relative to the stack pointer at the first instruction
// of a signal handler, the kernel keeps x0: siginfo, 168 bytes of ucontext with
// the padded signal mask, the fault address (struct rt_sigframe).
const frameResult = 128 + 176 + 8
