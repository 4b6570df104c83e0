package inject

import "time"

// thread is one seized thread.
type thread struct {
	tid     int
	stopped bool
	// groupStop is set where the stop is that of the whole group, by SIGSTOP or the like.
	groupStop bool
	regs      regs   // as they were at the stop; put back verbatim
	mask      uint64 // the blocked signals, likewise

	// vector is put back too.
	vector vector

	// sleep is the call that the thread was in when it was seized, until it is dated.
	sleep *sleep

	// revived says that the call the stop has ended is to be made again.
	revived bool
	// visited says that the thread has left the stop in which it was found, so that the kernel
	// no longer knows that its call was interrupted.
	visited bool
	// due is the mark of the call on arm64, and deadline what letGo has said of it.
	due      mark
	deadline time.Duration

	// seen says that the thread was seen asleep in a call, and that no handler has run since.
	seen bool

	// noted says that the call the stop has ended has noted in memory what remains of its time.
	noted bool

	// before is set when a signal was delivered between the interrupt and
	// the stop: the registers before the handler's frame was set up.
	before *regs

	// entered are the steps that the thread has taken, newest last.
	entered []step
	// rounds is how often it went around to settle.
	rounds int
	// kept are descriptors of the thread's old root and working directory,
	// for undo.
	kept kept
}

// kept are up to two descriptors in a thread's table, the one opened last
// first; negative where there is none.
type kept [2]int

var none = kept{-1, -1}

// step is one call that a thread makes: setns(2), or another.
type step struct {
	from, to Namespace // of setns; of another call the namespace that it is for
	call     *call
	undo     *call  // of a change
	change   string // its name
}

// call is a system call other than setns(2).
type call struct {
	nr       uintptr
	args     [3]uint64
	text     string // "" or what args[textArg] shall point to, with a zero behind it
	textArg  int
	optional bool // no harm if it fails
	keep     bool // it returns a descriptor that is to be kept
}

// snapshotThread reads what restore puts back.
func (s *tracer) snapshotThread(th *thread) error {
	if err := ptraceGetRegs(th.tid, &th.regs); err != nil {
		return err
	}
	if s.date(th) {
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
	if err := th.vector.restore(th.tid); err != nil {
		return err
	}
	if err := ptraceSetRegs(th.tid, &th.regs); err != nil {
		return err
	}
	return ptraceSetMask(th.tid, th.mask)
}
