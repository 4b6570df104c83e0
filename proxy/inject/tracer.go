package inject

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// tracer is the state of a Trace; it belongs to one OS thread.
type tracer struct {
	pid     int       // the thread group
	only    int       // the one thread wanted, 0 for all
	ending  *deadline // the one that it is for, if any
	threads map[int]*thread
	skipped map[int]bool // listed but cannot be traced: dead, kernel workers

	thread   *Tracer
	released bool

	code     *code
	pause    time.Duration         // how long the last one was let run
	left     [2]int                // owners of the slot that have been seen not to come back
	computed map[int]time.Duration // the processor time of owners of the slot when first asked for

	asked       bool   // whether the next two are known
	quiet       uint64 // signals that do nothing to the process
	mayContinue bool   // SIGCONT does nothing, as far as the process tells

	behind  map[int]time.Duration // clockBehind of the processors asked so far
	undoFDs []int
}

// seize attaches to all threads there are now. A process whose threads are born
// meanwhile is complete only at the end of wait.
func (s *tracer) seize() error {
	s.threads = map[int]*thread{}
	s.skipped = map[int]bool{}
	for {
		found, err := s.seizeNew()
		switch {
		case err != nil:
			return err
		case len(s.threads) > 0:
			return nil
		case !found && !s.alive():
			return ErrGone // what is listed is dead
		}
	}
}

// alive says whether the process, or the one thread wanted, has not ended.
func (s *tracer) alive() bool {
	tid := s.pid
	if s.only != 0 {
		tid = s.only
	}
	stat, err := readStat(tid)
	return err == nil && !stat.dead()
}

// seizeNew attaches to the threads not yet known, and says whether there were
// any.
func (s *tracer) seizeNew() (found bool, err error) {
	tids := []int{s.only}
	switch {
	case s.only != 0:
	case s.complete():
		return false, nil
	default:
		if tids, err = listThreads(s.pid); err != nil && !s.alive() {
			return false, err
		}
	}
	reaping := false
	for _, tid := range tids {
		if s.threads[tid] != nil || s.stillSkipped(tid) {
			continue
		}
		found = true
		if !reaping && len(s.threads) > 0 {
			defer s.reapWhile(tids)()
			reaping = true
		}
		if err := s.seizeThread(tid); err != nil {
			return found, err
		}
	}
	return found, nil
}

// complete says whether all threads are known and stopped: there are as many as
// that, and a stopped one does not beget another.
func (s *tracer) complete() bool {
	return len(s.threads) > 0 && s.running() == 0 && countThreads(s.pid) == len(s.threads)
}

// reapWhile reaps, from another OS thread, those of the threads that die, until
// the function it returns is called. A thread in execve(2) kills its siblings
// and waits until their tracer has reaped them, and a PTRACE_SEIZE waits for the
// end of the execve: the two would wait for each other.
func (s *tracer) reapWhile(tids []int) (end func()) {
	ended, done := make(chan struct{}), make(chan struct{})
	timer := time.AfterFunc(2*time.Millisecond, func() {
		defer close(done)
		for {
			for _, tid := range tids {
				if tid != s.pid {
					reapThread(tid)
				}
			}
			select {
			case <-ended:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	return func() {
		close(ended)
		if !timer.Stop() {
			<-done
		}
	}
}

// stillSkipped says whether tid is to be passed over. A thread that executes a
// program takes over the tid of its dead leader.
func (s *tracer) stillSkipped(tid int) bool {
	if !s.skipped[tid] {
		return false
	}
	stat, err := readStat(tid)
	if err != nil || stat.dead() || stat.worker() {
		return true
	}
	delete(s.skipped, tid)
	return false
}

func (s *tracer) seizeThread(tid int) error {
	d := s.ending
	if d == nil {
		d = takeDeadline(tid)
	}
	err := ptraceSeize(tid)
	for range 3 {
		if err != unix.EPERM {
			break
		}
		var passOver bool
		if passOver, err = s.whyNot(tid); passOver || err != nil {
			return err
		}
		err = ptraceSeize(tid) // the reason has gone meanwhile
	}
	switch {
	case err == unix.ESRCH:
		return nil // born and dead between two looks
	case err != nil:
		return fmt.Errorf("ptrace seize thread %d: %w", tid, err)
	}
	th := &thread{tid: tid, kept: none, sleep: s.sleepOf(tid), seen: seesCall(tid)}
	if sl := th.sleep; d != nil && sl != nil && d.call == sl.call && d.slept == sl.slept {
		th.due = markOf(d.at)
	}
	s.threads[tid] = th
	return noSuchProcessIsFine(ptraceInterrupt(tid))
}

// whyNot finds the reason of an EPERM from PTRACE_SEIZE: an error, or that the
// thread is to be passed over, or neither when there is none any more.
func (s *tracer) whyNot(tid int) (passOver bool, err error) {
	stat, err := readStat(tid)
	switch {
	case err != nil:
		return true, nil
	case stat.dead(), stat.worker():
		s.skipped[tid] = true
		return true, nil
	case stat.flags&pfKthread != 0:
		return false, fmt.Errorf("thread %d: %w: it is a kernel thread", tid, ErrUnsupported)
	}
	switch tracer := readStatus(tid, "TracerPid"); {
	case tracer == unix.Gettid():
		// One that we had seized under another tid, before an execve(2).
		s.threads[tid] = &thread{tid: tid, kept: none}
		return true, noSuchProcessIsFine(ptraceInterrupt(tid))
	case tracer > 0:
		return false, fmt.Errorf("thread %d: %w: by thread %d", tid, ErrTraced, tracer)
	}
	return false, nil
}

func noSuchProcessIsFine(err error) error {
	if err == unix.ESRCH {
		return nil
	}
	return err
}

// wait stops all threads.
func (s *tracer) wait(until time.Time) error {
	for {
		if err := s.waitStops(until); err != nil {
			return fmt.Errorf("stop process %d: %w", s.pid, err)
		}
		found, err := s.seizeNew()
		if err != nil {
			return fmt.Errorf("stop process %d: %w", s.pid, err)
		}
		if found {
			continue
		}
		if len(s.threads) == 0 {
			if s.alive() && time.Now().Before(until) {
				continue // in the middle of an execve(2)
			}
			return fmt.Errorf("stop process %d: %w", s.pid, ErrGone)
		}
		again, err := s.snapshot()
		if err != nil {
			return fmt.Errorf("stop process %d: %w", s.pid, err)
		}
		if again {
			continue
		}
		if again, err = s.drained(until); err != nil || !again {
			return err
		}
	}
}

// drained drains the slot, and has the threads settle when that is done. A
// process without a vdso has none.
func (s *tracer) drained(until time.Time) (again bool, err error) {
	for tid := range s.threads {
		if err := s.openCode(tid); err != nil {
			if errors.Is(err, ErrUnsupported) {
				return false, nil
			}
			return false, fmt.Errorf("stop process %d: %w", s.pid, err)
		}
		break
	}
	if !s.drain() {
		return s.settle(), nil
	}
	if time.Now().After(until) {
		return false, fmt.Errorf("stop process %d: %w: a move broken off has not ended", s.pid, ErrTimeout)
	}
	return true, nil
}

// openCode finds the target's code, once.
func (s *tracer) openCode(tid int) (err error) {
	if s.code == nil {
		if s.code, err = openCode(tid); err == nil {
			s.code.current = s.only == 0 // else traces of other threads use it, too
		}
	}
	return err
}

// snapshot reads registers and masks. A thread that is killed or swept away
// by a sibling's exec meanwhile makes it say: again.
func (s *tracer) snapshot() (again bool, err error) {
	for _, th := range s.threads {
		switch err := s.snapshotThread(th); {
		case err == unix.ESRCH:
			th.stopped, again = false, true
		case err != nil:
			return false, fmt.Errorf("read registers of thread %d: %w", th.tid, err)
		}
	}
	return again, nil
}

// waitStops waits until no thread runs.
func (s *tracer) waitStops(until time.Time) error {
	for s.running() > 0 {
		seen, err := s.takeStops()
		switch {
		case err != nil:
			return err
		case seen:
			continue
		case time.Now().After(until):
			return fmt.Errorf("%w: threads %v", ErrTimeout, s.runningTIDs())
		}
		if _, ok, err := s.thread.alarm.stopOf(s.runningTIDs()[0]); !ok && err == nil {
			s.sweep()
		}
	}
	return nil
}

// takeStops handles the stops there are, and says whether there were any.
func (s *tracer) takeStops() (seen bool, err error) {
	for _, th := range s.threads {
		if th.stopped {
			continue
		}
		ev, ok, err := stopOf(th.tid)
		switch {
		case err == unix.ECHILD:
			s.bury(th)
			seen = true
		case err != nil:
			return seen, fmt.Errorf("waitid for thread %d: %w", th.tid, err)
		case ok:
			s.stopSeen(th, ev)
			seen = true
		}
	}
	return seen, nil
}

// bury forgets a dead thread. One that is not a leader is reaped: a sibling's
// execve(2) waits for that. A leader's exit is not ours to reap, it may be a
// child that somebody else in this process waits for; it stays attached until
// the tracer's OS thread ends.
func (s *tracer) bury(th *thread) {
	delete(s.threads, th.tid)
	if th.tid != s.pid {
		reapThread(th.tid)
		return
	}
	s.thread.dirty = true
}

// stopSeen handles a stop on the way to the event stop.
func (s *tracer) stopSeen(th *thread, ev event) {
	if ev.code == unix.PTRACE_EVENT_STOP {
		th.stopped, th.groupStop = true, ev.sig != int(unix.SIGTRAP)
		// At once: were the tracer to die before, the program would see EINTR.
		th.revived = ptraceGetRegs(th.tid, &th.regs) == nil && s.revive(th)
		if th.revived {
			_ = ptraceSetRegs(th.tid, &th.regs) // ESRCH: killed, snapshot finds it
		}
		return
	}
	th.stopped = false
	sig := 0
	if ev.code == 0 && ev.sig != syscallStop {
		sig = ev.sig
		before := new(regs)
		if ptraceGetRegs(th.tid, before) == nil {
			th.before = before
		}
		if catches(th.tid, sig) {
			th.sleep, th.seen = nil, false
		} else if th.sleep != nil {
			th.sleep.slept++ // that was the stop
		}
	}
	// Any stop cancels a pending interrupt: ptrace_stop() in kernel/signal.c.
	_ = ptraceInterrupt(th.tid)
	_ = ptraceCont(th.tid, sig) // ESRCH: killed, sweep finds it
}

// sweep forgets threads that have died, or whose tid another thread has taken
// over by execve(2).
func (s *tracer) sweep() {
	for tid, th := range s.threads {
		if tid != s.pid {
			if reapThread(tid) {
				delete(s.threads, tid)
			}
			continue
		}
		if stat, err := readStat(tid); err != nil || stat.dead() {
			s.bury(th)
			s.skipped[tid] = true
		} else if ptraceInterrupt(tid) == unix.ESRCH {
			delete(s.threads, tid) // not attached: seizeNew will find it
		}
	}
}

func (s *tracer) running() int {
	n := 0
	for _, th := range s.threads {
		if !th.stopped {
			n++
		}
	}
	return n
}

func (s *tracer) runningTIDs() []int {
	var tids []int
	for tid, th := range s.threads {
		if !th.stopped {
			tids = append(tids, tid)
		}
	}
	slices.Sort(tids)
	return tids
}

func (s *tracer) stoppedTIDs() []int {
	if s.running() > 0 {
		return nil
	}
	return slices.Sorted(maps.Keys(s.threads))
}

// release detaches everything that it can; the end of the OS thread does the rest.
func (s *tracer) release() error {
	s.released = true
	var errs []error
	if err := s.forgetUndo(); err != nil && !errors.Is(err, ErrGone) {
		errs = append(errs, err)
	}
	s.linger()
	var going []*thread
	for tid, th := range s.threads {
		if !th.stopped {
			s.thread.dirty = true
			continue
		}
		deadline, err := s.letGo(th)
		if err == nil && s.goesIn(th) {
			th.deadline = deadline
			going = append(going, th)
			continue
		}
		if err == nil {
			err = ptraceDetach(tid)
		}
		if err == nil && deadline > 0 {
			setDeadline(s.pid, tid, deadline, th.pending(), 0)
		}
		switch {
		case err == unix.ESRCH:
			s.thread.dirty = true // killed
		case err != nil:
			s.thread.dirty = true
			errs = append(errs, fmt.Errorf("ptrace detach thread %d: %w", tid, err))
		}
	}
	s.letIn(going)
	s.threads = nil
	s.code.close()
	return errors.Join(errs...)
}

// lingerTime bounds the wait for threads that will stop soon.
const lingerTime = time.Second

// linger waits for the threads that are on the way to their stop. Were they let go there, a
// call that answers EINTR to it would.
func (s *tracer) linger() {
	for end := time.Now().Add(lingerTime); s.running() > 0 && time.Now().Before(end); {
		_ = s.waitStops(time.Now().Add(time.Millisecond))
		if !slices.ContainsFunc(s.runningTIDs(), willStop) {
			return
		}
	}
}

// willStop says whether nothing keeps a thread that has been interrupted from stopping: neither death nor
// a sleep that only death interrupts.
func willStop(tid int) bool {
	stat, err := readStat(tid)
	return err == nil && !stat.dead() && stat.state != 'D'
}
