package inject

// thread is one seized thread.
type thread struct {
	tid     int
	stopped bool
	regs    regs   // as they were at the stop; put back verbatim
	mask    uint64 // the blocked signals, likewise

	// before is set when a signal was delivered between the interrupt and
	// the stop: the registers before the handler's frame was set up.
	before *regs

	// entered are the namespaces that thread has left, newest last.
	entered []step
}

// step is one setns(2) that a thread has made.
type step struct {
	from, to Namespace
}

// snapshot reads what restore puts back, and lets an endless call go on that
// the stop has ended.
func (th *thread) snapshot() error {
	if err := ptraceGetRegs(th.tid, &th.regs); err != nil {
		return err
	}
	if th.before == nil && th.regs.resumeEndless() { // no handler has come in between
		if err := ptraceSetRegs(th.tid, &th.regs); err != nil {
			return err
		}
	}
	var err error
	th.mask, err = ptraceGetMask(th.tid)
	return err
}

// restore puts registers and mask back. The thread must be in a stop inside
// get_signal: at a syscall-exit stop the -ERESTART codes would reach the program.
func (th *thread) restore() error {
	if err := ptraceSetRegs(th.tid, &th.regs); err != nil {
		return err
	}
	return ptraceSetMask(th.tid, th.mask)
}
