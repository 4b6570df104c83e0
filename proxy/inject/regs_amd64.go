package inject

import "golang.org/x/sys/unix"

// regs are the general registers of a stopped thread.
type regs struct{ unix.PtraceRegs }

// syscallInsn is the instruction of a system call.
var syscallInsn = []byte{0x0f, 0x05}

// setCall makes the thread execute the syscall instruction at insn. Orig_rax
// becomes -1, "not in a system call", or the kernel would restart the one that
// the stop interrupted with our registers.
func (r *regs) setCall(insn uint64, nr uintptr, args [6]uint64) {
	r.Rip = insn
	r.Rax, r.Orig_rax = uint64(nr), ^uint64(0)
	r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8, r.R9 = args[0], args[1], args[2], args[3], args[4], args[5]
}

// result is what a system call returned.
func (r *regs) result() int64 { return int64(r.Rax) }

func (r *regs) setResult(n int64) { r.Rax = uint64(n) }

// callNumber is the number of the system call at whose end the thread is, or
// -1: interrupts and exceptions leave -1 in orig_rax, and the syscall
// instruction leaves the return address in rcx, which is not rip any more once
// a signal handler has been set up.
func (r *regs) callNumber() int64 {
	if r.Rcx != r.Rip {
		return -1
	}
	return int64(int32(r.Orig_rax)) // the kernel looks at no more
}

// arguments are those of the system call.
func (r *regs) arguments() [6]uint64 { return [6]uint64{r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8, r.R9} }

// stack is the stack pointer, ip the instruction pointer.
func (r *regs) stack() uint64 { return r.Rsp }
func (r *regs) ip() uint64    { return r.Rip }

func (r *regs) setIP(ip uint64) { r.Rip = ip }

// frameResult is where, relative to the stack pointer at the first instruction
// of a signal handler, the kernel keeps rax: struct rt_sigframe is the return
// address, then a ucontext with 40 bytes before its registers, of which rax is
// the 14th (arch/x86/include/asm/sigframe.h, uapi/asm/sigcontext.h).
const frameResult = 8 + 40 + 13*8

// mayGoOn is about arm64: here result and number of an interrupted call are there
// to see, and put back they make the kernel restart it.
func (r *regs) mayGoOn() bool { return false }

// afterCall has nothing to add to what callNumber says.
func (s *tracer) afterCall(*thread, *regs) bool { return true }
