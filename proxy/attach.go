package proxy

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"rcfs/proxy/inject"
)

// stopTime is how long a target may take to stop. One that takes longer sleeps where no signal
// reaches it, and nothing of it has been changed.
const stopTime = 300 * time.Millisecond

// Attach is one transaction: a task, with all its threads or alone, enters a container. Its life
// is the order of the methods' calls in Run; whatever happens before the roster is written is
// undone in reverse order.
type Attach struct {
	c      *Container
	writer Writer
	task   *Task
	whole  bool

	threads []thread
	plan    plan
	record  *record     // its place in the journal; nil for a part of another move
	still   func() bool // whether there still is a reason for it; nil: there is
	only    slotSet     // the slots that it is about; 0: all
	asker   int         // a thread that waits for the answer to another request, and cannot be stopped; 0: none
	trace   tracer
	undo    []func() error
	left    bool // the container may be removed
}

// tracer is what a move asks of package inject: the threads of its target, seized. The methods are
// those of inject.Trace.
type tracer interface {
	Wait(until time.Time) error
	Threads() []int
	Enter([]inject.Namespace, map[int][]inject.Change) error
	Undo() error
	SetResult(tid, n int) error
	Release() error
}

// seize seizes all threads of a process, or one.
func seize(on *inject.Tracer, t *Task, whole bool) (tracer, error) {
	seize, id := on.SeizeThread, t.TID
	if whole {
		seize, id = on.Seize, t.TGID
	}
	trace, err := seize(id)
	if err != nil {
		return nil, err // and no tracer that is a nil *inject.Trace
	}
	return trace, nil
}

// thread is one thread of the target as it was found. Only what is bound is looked at: a move
// leaves the rest of the thread's proxy alone.
type thread struct {
	tid     int
	places  []Location // by slot, of the leads that are Placers
	differs slotSet    // the slots in which it has to enter the container's state
	changes []Change   // what it has to change itself for that
	stops   bool       // it has to be still for that
	path    string     // of its container
}

// plan is what differs between where the threads are and where they shall be.
type plan struct {
	outside []int // lead slots of Placers, in the order of placing
	inside  []int // lead slots of Enterers, in the order of entering
	changes bool  // a thread has to change something itself
	still   bool  // the target has to be still meanwhile
	oneWay  bool  // one of them is Sovereign
	roster  bool
}

// stops reports whether the target is stopped.
func (p *plan) stops() bool { return len(p.inside) > 0 || p.changes || p.still }

func (p *plan) empty() bool { return len(p.outside) == 0 && len(p.inside) == 0 && !p.roster }

// OwnWrite lets a task that moves itself get the answer to its write. It waits for that answer,
// so it can only be stopped once it has it, at the end of the very same system call.
type OwnWrite struct {
	// Answer is called when the target has been told to stop. It lets the write return.
	Answer func()
	// Result turns the error of a move that failed after that into what the write returns.
	Result func(error) int
}

// NewAttach prepares to attach the task that one line of a write names: a number, or 0 for the
// writer itself. With procs the number stands for the process it belongs to; without, the number
// of a thread that does not lead its process stands for that thread alone. The refusals that
// need no look at the task's states come from here. Run or Close it.
func (c *Container) NewAttach(line string, procs bool, w Writer) (*Attach, error) {
	id, err := parseID(line)
	if err != nil {
		return nil, c.refuse("attach", err)
	}
	if id == 0 {
		id = w.TID
	} else if id, err = w.global(id); err != nil {
		return nil, c.refuse("attach", fmt.Errorf("%q: %w", line, err))
	}
	t, err := FindTask(id)
	if err != nil {
		return nil, &Error{Op: "attach", Container: c.Path(), Task: id, Err: err}
	}
	a := &Attach{c: c, writer: w, task: t, whole: procs || t.Whole()}
	if err := a.admit(); err != nil {
		a.task.Close() // by now it may be the leader
		return nil, err
	}
	return a, nil
}

// admit checks who moves whom.
func (a *Attach) admit() error {
	if a.whole && !a.task.Whole() {
		leader, err := FindTask(a.task.TGID)
		if err != nil {
			return a.refuse("", err)
		}
		a.task.Close()
		a.task = leader
	}
	if subsystem, err := a.c.h.sys.ours(a.task); err != nil {
		return a.refuse(subsystem, err)
	}
	if !a.whole {
		if name := a.c.h.binding().wholeOnly(); name != "" {
			return a.refuse(name, ErrThread)
		}
	}
	st, err := a.task.Status()
	if err != nil {
		return a.refuse("", err)
	}
	if err := a.writer.mayMove(st); err != nil {
		return a.refuse("", err)
	}
	if err := a.c.enter(); err != nil {
		return a.refuse("", err)
	}
	return nil
}

// ours returns an error if t is the daemon itself, or a process that a subsystem keeps.
func (s *System) ours(t *Task) (subsystem string, err error) {
	if slices.Contains(s.host.pids(), t.TGID) {
		return "", fmt.Errorf("rcfs does not move itself: %w", ErrBusy)
	}
	for _, sub := range s.subsystems {
		k, ok := sub.(Keeper)
		if !ok {
			continue
		}
		kept, err := k.Keeps(t)
		if err == nil && kept {
			err = fmt.Errorf("rcfs keeps a container by this process: %w", ErrBusy)
		}
		if err != nil {
			return sub.Name(), noTask(err)
		}
	}
	return "", nil
}

// Close gives up an Attach that is not Run.
func (a *Attach) Close() {
	a.leave()
	a.task.Close()
}

// leave lets the container be removed again. It may be called twice.
func (a *Attach) leave() {
	if !a.left {
		a.left = true
		a.c.leave()
	}
}

// Own reports whether the writer belongs to the target and that may have to stop: then Run has to
// answer the write before it can.
func (a *Attach) Own() bool {
	return a.c.h.binding().stops && a.writer.TID != 0 &&
		(a.writer.TID == a.task.TID || a.whole && a.task.Has(a.writer.TID))
}

// Run attaches the task, all or nothing. own is nil unless Own. An error says which subsystem
// refused; if not everything could be put back it says that too.
func (a *Attach) Run(own *OwnWrite) (err error) {
	journal := a.c.h.sys.journal
	if a.record, err = journal.reserve(); err != nil {
		a.Close()
		return a.refuse("", err)
	}
	defer journal.release(a.record)
	return a.run(own)
}

func (a *Attach) run(own *OwnWrite) error {
	defer a.Close()
	until := time.Now().Add(stopTime)
	m := &a.c.h.sys.moves
	mine, waited, err := m.begin(until, a.task.TGID, own != nil)
	if err != nil {
		return a.refuse("", err)
	}
	if waited {
		a.task.Forget() // what the other move has changed
	}
	before, err := a.c.h.sys.forks.before()
	if a.still != nil && !a.still() {
		err = errSuperseded
	}
	if err == nil {
		err = a.transact(until, mine, own)
	}
	if err == nil {
		a.c.h.sys.journal.supersede(a.task, a.c.h.name)
	}
	m.end(a.task.TGID, mine)
	if err == nil && len(a.plan.outside) > 0 && a.trace == nil {
		a.settle(before)
	}
	return err
}

func (a *Attach) transact(until time.Time, mine *move, own *OwnWrite) (err error) {
	// A process whose leader is being replaced by execve(2) looks dead for a moment, here or there.
	err = a.prepare()
	for errors.Is(err, ErrNoTask) && a.task.lives() == nil && time.Now().Before(until) {
		err = a.prepare()
	}
	if err != nil || a.plan.empty() {
		return err
	}
	// Now that it may. Before the write of a target that moves itself is answered, too: from then
	// on it has moved.
	if a.record != nil {
		a.record.write(a.c, a.task, a.whole)
	}
	if !a.plan.stops() {
		return a.change()
	}
	if a.asks() {
		st, err := a.task.Status()
		if err != nil || st.Threads > 1 || a.plan.changes {
			return a.refuse("", errors.Join(err, fmt.Errorf("it asks for this itself, and cannot be stopped before it is answered: %w", ErrBusy)))
		}
		return a.change() // it does nothing but wait
	}
	inject.Do(func(on *inject.Tracer) { err = a.changeStopped(until, on, mine, own) })
	return err
}

// asks reports whether the target waits for the answer to another request.
func (a *Attach) asks() bool {
	return a.asker != 0 && (a.asker == a.task.TID || a.whole && a.task.Has(a.asker))
}

// prepare plans the move, and lets it be refused before anything is changed.
func (a *Attach) prepare() error {
	tids, err := a.tids()
	if err != nil {
		return a.refuse("", err)
	}
	if err := a.look(tids); err != nil || a.plan.empty() {
		return err
	}
	return a.check()
}

// changeStopped is change, of a target whose threads are stopped meanwhile.
func (a *Attach) changeStopped(until time.Time, on *inject.Tracer, mine *move, own *OwnWrite) error {
	close(mine.stopped)
	err := a.stop(until, on, own)
	if err == nil {
		err = a.change()
	} else {
		a.strike()
	}
	if a.trace == nil {
		return err
	}
	a.tell(own, err)
	close(mine.freed)
	// From now on the target can end, and whoever waits for that can remove the container.
	a.leave()
	// A target that died while it was moved needs no letting go. Another one has been moved
	// or not, and the answer says which, whatever comes now.
	if e := a.trace.Release(); e != nil && !errors.Is(e, inject.ErrGone) {
		a.c.h.sys.log.Error("task not let go as it was", "task", a.task.TID, "container", a.c.Path(), "error", e)
	}
	return err
}

// change makes the changes planned, or none.
func (a *Attach) change() error {
	steps := []func() error{a.placeEarly, a.inject, a.placeLate, a.enroll}
	if a.plan.oneWay {
		steps = []func() error{a.placeEarly, a.enroll, a.inject, a.placeLate}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			err = a.rollback(err)
			a.strike()
			return err
		}
	}
	return nil
}

// strike takes a move that was refused out of the journal, before the target hears of it: no later
// daemon may finish it.
func (a *Attach) strike() {
	if a.record != nil {
		a.record.strike()
	}
}

// look finds out where every thread is and what has to change.
func (a *Attach) look(tids []int) error {
	a.threads = a.threads[:0]
	for _, tid := range tids {
		th, err := a.lookAt(tid)
		if errors.Is(err, ErrNoTask) && len(tids) > 1 {
			continue // a thread has ended
		}
		if err != nil {
			return a.refuse("", err)
		}
		a.threads = append(a.threads, th)
	}
	if len(a.threads) == 0 {
		return a.refuse("", ErrNoTask)
	}
	a.plan = a.c.planFor(a.threads)
	a.order()
	return nil
}

// tids returns the threads that are to move.
func (a *Attach) tids() ([]int, error) {
	if a.whole {
		st, err := a.task.Status()
		if err != nil || st.Threads > 1 {
			return a.task.Threads()
		}
	}
	return []int{a.task.TID}, nil
}

// order puts the namespaces into the order of entering.
func (a *Attach) order() {
	sys := a.c.h.sys
	a.task.Entering = nil
	for _, slot := range a.plan.inside {
		a.task.Entering = append(a.task.Entering, a.c.Object(slot))
		_, sovereign := sys.subsystems[slot].(Sovereign)
		a.plan.oneWay = a.plan.oneWay || sovereign
	}
	order := func(slot int) int { return sys.enterer(slot).EnterOrder(a.task, a.c.Object(slot)) }
	sort.SliceStable(a.plan.inside, func(i, j int) bool { return order(a.plan.inside[i]) < order(a.plan.inside[j]) })
}

func (a *Attach) lookAt(tid int) (th thread, err error) {
	t := a.task
	if tid != t.TID {
		t = t.Thread(tid)
	}
	h := a.c.h
	th.tid = tid
	th.places = make([]Location, len(h.sys.subsystems))
	states := a.c.slots()
	for _, slot := range h.binding().leads {
		if a.only != 0 && a.only&(1<<slot) == 0 {
			continue
		}
		in := false
		if in, th.places[slot], err = h.isIn(t, slot, states[slot]); err != nil {
			return th, fmt.Errorf("%s: %w", h.sys.subsystems[slot].Name(), err)
		}
		if in {
			continue
		}
		th.differs |= 1 << slot
		if c, ok := h.sys.subsystems[slot].(Changer); ok {
			changes, err := c.Changes(t, locationOf(states[slot].object))
			if err != nil {
				return th, fmt.Errorf("%s: %w", h.sys.subsystems[slot].Name(), err)
			}
			th.changes = append(th.changes, changes...)
		}
		if s, ok := h.sys.subsystems[slot].(Stopper); ok && !th.stops {
			if th.stops, err = s.Stops(t, locationOf(states[slot].object)); err != nil {
				return th, fmt.Errorf("%s: %w", h.sys.subsystems[slot].Name(), err)
			}
		}
	}
	th.path, err = h.roster.Locate(t)
	return th, err
}

// isIn reports whether a task is in a state or keeps what it has instead, and where it is if a Placer put it there.
func (h *Hierarchy) isIn(t *Task, slot int, s *State) (in bool, place Location, err error) {
	sub := h.sys.subsystems[slot]
	if p, ok := sub.(Placer); ok {
		place, err = p.Locate(t)
		return place == locationOf(s.object), place, err
	}
	o, err := sub.Current(t)
	if err != nil {
		return false, place, err
	}
	return o.ID() == s.object.ID() || h.keeps(slot, o, s), place, nil
}

// keeps reports whether a task keeps an object that is not the one of the container it enters: the
// root container stands for what the machine had before, and a Demanding namespace that a task has
// from elsewhere is part of that.
func (h *Hierarchy) keeps(slot int, o Object, to *State) bool {
	return h.binding().demanding&(1<<slot) != 0 && to == h.root.slots()[slot] && h.foreign(slot, o)
}

// slots returns the states of c, which stay as long as c cannot be removed.
func (c *Container) slots() slots {
	c.h.mu.RLock()
	defer c.h.mu.RUnlock()
	return c.states.slots()
}

// planFor is what has to change for the threads to be in c.
func (c *Container) planFor(threads []thread) plan {
	var p plan
	path := c.Path()
	var differs slotSet
	for _, th := range threads {
		p.roster = p.roster || th.path != path
		differs |= th.differs
		p.changes = p.changes || len(th.changes) > 0
		p.still = p.still || th.stops
	}
	for _, slot := range c.h.binding().leads {
		if differs&(1<<slot) == 0 {
			continue
		}
		if _, ok := c.h.sys.subsystems[slot].(Placer); ok {
			p.outside = append(p.outside, slot)
		} else {
			p.inside = append(p.inside, slot)
		}
	}
	slices.SortStableFunc(p.outside, func(i, j int) int { return c.h.sys.rank(i) - c.h.sys.rank(j) })
	return p
}

// rank sorts Placers. Which values a task may have, and keeps, depends on the groups that it is in: its processors on
// cpuset, a real-time policy on cpu.
func (s *System) rank(slot int) int {
	if r, ok := s.subsystems[slot].(Reluctant); ok && r.Reluctant() {
		return 0
	}
	if s.subsystems[slot].Kind() == KindValue {
		return 2
	}
	return 1
}

func (s *System) enterer(slot int) Enterer { return s.subsystems[slot].(Enterer) }

// check lets everything that differs refuse before the target is stopped.
func (a *Attach) check() error {
	if !a.plan.stops() {
		return nil
	}
	st, err := a.task.Status()
	if err != nil {
		return a.refuse("", err)
	}
	if st.TracerPID != 0 && !inject.Own(st.TracerPID) {
		return a.refuse("", fmt.Errorf("%w by %d", ErrTraced, st.TracerPID))
	}
	if err := a.writer.owns(a.task, st); err != nil {
		return a.refuse("", err)
	}
	for _, leads := range [][]int{a.plan.outside, a.plan.inside} {
		for _, lead := range leads {
			if err := a.checkAll(lead); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkAll asks all subsystems with a common lead.
func (a *Attach) checkAll(lead int) error {
	b := a.c.h.binding()
	for _, slot := range b.slots {
		sub := a.c.h.sys.subsystems[slot]
		checker, ok := sub.(Checker)
		if !ok || b.lead(slot) != lead {
			continue
		}
		if err := checker.Check(a.task, a.c.Object(slot)); err != nil {
			return a.refuse(sub.Name(), noTask(err))
		}
	}
	return nil
}

// stop stops all threads and looks at them again, now that nothing can change any more.
func (a *Attach) stop(until time.Time, on *inject.Tracer, own *OwnWrite) (err error) {
	if a.trace, err = a.c.h.sys.seize(on, a.task, a.whole); err != nil {
		return a.refuse("", fromInject(err))
	}
	if own != nil {
		own.Answer()
	}
	if err := a.trace.Wait(until); err != nil {
		return a.refuse("", fromInject(err))
	}
	a.task.Forget()
	return a.look(a.trace.Threads())
}

// fromInject translates what package inject says into this package's words.
func fromInject(err error) error {
	for _, e := range []struct{ inject, proxy error }{
		{inject.ErrGone, ErrNoTask},
		{inject.ErrTraced, ErrTraced},
		{inject.ErrTimeout, ErrNotStopped},
		{inject.ErrUnsupported, ErrUnsupported},
	} {
		if errors.Is(err, e.inject) {
			return fmt.Errorf("%w: %w", e.proxy, err)
		}
	}
	return err
}

// isLate reports whether a Placer's turn is after the calls of the target: a group that may be frozen, and with it the values
// that depend on groups. What those had before that the task changes itself is to be noted before it does.
func (a *Attach) isLate(s Subsystem) bool {
	if !a.plan.stops() {
		return false
	}
	f, ok := s.(Freezer)
	_, changes := s.(Changer)
	return ok && f.Freezes() || s.Kind() == KindValue && !changes
}

// place moves the target into the container's groups: those whose turn is after its calls, or all others.
func (a *Attach) place(late bool) error {
	for _, slot := range a.plan.outside {
		sub := a.c.h.sys.subsystems[slot]
		if a.isLate(sub) != late {
			continue
		}
		if err := sub.(Placer).Place(a.task, locationOf(a.c.Object(slot)), a.whole); err != nil {
			if why := a.checkAll(slot); why != nil {
				return why
			}
			return a.refuse(sub.Name(), noTask(err))
		}
		a.undo = append(a.undo, func() error {
			home := a.threads[0].places[slot]
			return a.gone(sub.Name(), a.placeBack(
				func(th thread) bool { return th.places[slot] != home },
				func(t *Task, th thread, whole bool) error { return sub.(Placer).Place(t, th.places[slot], whole) }))
		})
	}
	return nil
}

func (a *Attach) placeEarly() error { return a.place(false) }
func (a *Attach) placeLate() error  { return a.place(true) }

// enroll writes the roster.
func (a *Attach) enroll() error {
	roster := a.c.h.roster
	if err := roster.Place(a.task, a.c.Path(), a.whole); err != nil {
		return a.refuse("", fmt.Errorf("roster: %w", noTask(err)))
	}
	a.c.h.moved()
	a.undo = append(a.undo, func() error {
		home := a.threads[0].path
		defer a.c.h.moved()
		return a.gone("roster", a.placeBack(
			func(th thread) bool { return th.path != home },
			func(t *Task, th thread, whole bool) error { return roster.Place(t, th.path, whole) }))
	})
	return nil
}

// placeBack puts every thread into the group it came from: the process to where its first
// thread was, and then the threads that were elsewhere.
func (a *Attach) placeBack(elsewhere func(thread) bool, place func(*Task, thread, bool) error) error {
	errs := []error{place(a.task, a.threads[0], a.whole)}
	for _, th := range a.threads[1:] {
		if !elsewhere(th) {
			continue
		}
		t, err := openTask(th.tid)
		if err != nil {
			continue // it has ended
		}
		t.TGID = a.task.TGID
		errs = append(errs, place(t, th, false))
		t.Close()
	}
	return errors.Join(errs...)
}

// gone leaves out that the target has ended: nothing needs to be put back then.
func (a *Attach) gone(subsystem string, err error) error {
	if err == nil || errors.Is(noTask(err), ErrNoTask) || !a.task.Alive() {
		return nil
	}
	return fmt.Errorf("%s: not put back: %w", subsystem, err)
}

// inject makes the stopped threads enter the container's namespaces, and change what they have to themselves.
func (a *Attach) inject() error {
	if !a.plan.stops() {
		return nil
	}
	sys := a.c.h.sys
	var to []inject.Namespace
	for _, slot := range a.plan.inside {
		ns, err := sys.enterer(slot).Open(a.c.Object(slot))
		if err != nil {
			return a.refuse(sys.subsystems[slot].Name(), err)
		}
		defer unix.Close(ns.FD)
		to = append(to, inject.Namespace{Type: ns.Type, FD: ns.FD, SplitFS: ns.SplitFS})
	}
	changes := make(map[int][]Change)
	for _, th := range a.threads {
		if len(th.changes) > 0 {
			changes[th.tid] = th.changes
		}
	}
	if len(to) == 0 && len(changes) == 0 {
		return nil
	}
	if err := a.trace.Enter(to, changes); err != nil {
		name := ""
		var e *inject.EnterError
		if errors.As(err, &e) && e.Change == "" {
			i := slices.IndexFunc(to, func(ns inject.Namespace) bool { return ns.Type == e.Type })
			if i >= 0 {
				name = sys.subsystems[a.plan.inside[i]].Name()
			}
		}
		return a.refuse(name, fromInject(err))
	}
	a.undo = append(a.undo, func() error { return a.gone("namespaces and own values", a.trace.Undo()) })
	return nil
}

// rollback puts back what was done, last first. What cannot be put back becomes part of the reason.
func (a *Attach) rollback(err error) error {
	for _, f := range slices.Backward(a.undo) {
		if e := f(); e != nil {
			a.c.h.sys.log.Error("attach not undone", "task", a.task.TID, "container", a.c.Path(), "error", e)
			err = alsoFor(err, e)
		}
	}
	a.undo = nil
	return err
}

// alsoFor adds to the reason of a refusal.
func alsoFor(err, more error) error {
	refused, ok := err.(*Error)
	if !ok {
		return errors.Join(err, more)
	}
	both := *refused
	both.Err = fmt.Errorf("%w; %w", refused.Err, more)
	return &both
}

// tellTime is how long a writer may take to the end of its call, once that has been answered: it only
// has to be given a processor.
const tellTime = 3 * time.Second

// tell puts the error of a move that failed into the system call by which the target asked
// for it.
func (a *Attach) tell(own *OwnWrite, err error) {
	if own == nil || err == nil || errors.Is(err, ErrNoTask) {
		return
	}
	result := own.Result(err)
	e := a.trace.SetResult(a.writer.TID, result)
	for end := time.Now().Add(tellTime); errors.Is(e, inject.ErrTimeout) && time.Now().Before(end); {
		_ = a.trace.Wait(time.Now().Add(10 * time.Millisecond)) // what the other threads do is all the same
		e = a.trace.SetResult(a.writer.TID, result)
	}
	if e != nil {
		a.c.h.sys.log.Error("the task does not learn that it was not moved", "task", a.writer.TID, "error", e, "reason", err)
	}
}

// settle moves the children that were forked between the first group and the roster. They
// inherited some groups of the container, but were not in it yet.
func (a *Attach) settle(before int) {
	sys := a.c.h.sys
	for {
		pids, err := sys.forks.since(before)
		if err != nil {
			sys.log.Error("children not looked for", "task", a.task.TID, "error", err)
			return
		}
		moved := false
		for _, pid := range a.kin(pids) {
			m, err := a.settleOne(pid)
			if err != nil && !errors.Is(err, ErrNoTask) {
				sys.log.Error("child not moved after its parent", "task", pid, "error", err)
			}
			moved = moved || m
		}
		if !moved {
			return // else a child that was moved may have forked before
		}
	}
}

// settleOne moves the process pid if it is half in the container.
func (a *Attach) settleOne(pid int) (moved bool, err error) {
	t, err := openTask(pid)
	if err != nil {
		return false, err
	}
	half, err := a.half(t)
	t.Close()
	if err != nil || !half {
		return false, err
	}
	err = a.c.take(pid, true, nil)
	return err == nil, err
}

// half reports whether t is in one of the groups that the move has changed, but not in the
// container.
func (a *Attach) half(t *Task) (bool, error) {
	path, err := a.c.h.roster.Locate(t)
	if err != nil || path == a.c.Path() {
		return false, err
	}
	if _, err := a.c.h.sys.ours(t); err != nil {
		return false, nil // a container's keeper is in its groups only
	}
	for _, slot := range a.plan.outside {
		at, err := a.c.h.sys.subsystems[slot].(Placer).Locate(t)
		if err != nil {
			return false, err
		}
		if to := a.c.Object(slot); to != nil && at.Name == to.String() {
			return true, nil
		}
	}
	return false, nil
}

// refuse says who refused what.
func (a *Attach) refuse(subsystem string, err error) error {
	return &Error{Op: "attach", Container: a.c.Path(), Subsystem: subsystem, Task: a.task.TID, Err: err}
}
