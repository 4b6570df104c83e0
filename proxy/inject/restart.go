package inject

import "bytes"

// settle makes sure that the registers of all threads say how they go on. On
// arm64 the kernel makes a system call that the stop has interrupted ready to be made
// again before the stop (do_signal() in arch/arm64/kernel/signal.c); but that a
// nanosleep(2) or the like has to go on by restart_syscall(2), for what remains
// of its time, it notes in no register before it leaves the stop, and forgets it
// when the thread leaves it elsewhere. So such a thread goes once around: it
// begins to make the call again, perhaps with that number now, and is
// interrupted once more at once. One that had not yet begun takes two rounds.
func (s *tracer) settle() (again bool) {
	for _, th := range s.threads {
		if th.rounds == 2 || !th.regs.mayGoOn() || !s.code.isCall(th.regs.ip()) {
			continue
		}
		again = true
		th.rounds++
		th.stopped = false
		_ = ptraceSyscall(th.tid, 0) // ESRCH: killed, sweep finds it
	}
	return again
}

// isCall says whether a system call instruction is at an address.
func (c *code) isCall(at uint64) bool {
	insn := make([]byte, len(syscallInsn))
	return c.read(at, insn) == nil && bytes.Equal(insn, syscallInsn)
}
