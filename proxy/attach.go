package proxy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"time"

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
	record  *record // in the journal, once something may have changed
	trace   *inject.Trace
	undo    []func() error
}

// thread is one thread of the target as it was found.
type thread struct {
	tid     int
	objects []Object // by slot
	from    *TaskProxy
	to      *TaskProxy
	path    string // of its container
}

// plan is what differs between where the threads are and where they shall be.
type plan struct {
	outside []int // lead slots of Placers
	inside  []int // lead slots of Enterers, in the order of entering
	roster  bool
}

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
	if a.task.TGID == os.Getpid() {
		return a.refuse("", fmt.Errorf("rcfs does not move itself: %w", ErrBusy))
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

// Close gives up an Attach that is not Run.
func (a *Attach) Close() {
	a.c.leave()
	a.task.Close()
}

// Own reports whether the writer belongs to the target: then Run has to answer the write before
// the target can stop, if it has to stop.
func (a *Attach) Own() bool {
	return a.writer.TID != 0 && (a.writer.TID == a.task.TID || a.whole && a.task.Has(a.writer.TID))
}

// Run attaches the task, all or nothing. own is nil unless Own. An error says which subsystem
// refused; if not everything could be put back it says that too.
func (a *Attach) Run(own *OwnWrite) error {
	defer a.Close()
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	m := &a.c.h.sys.moves
	mine, err := m.begin(ctx, a.task.TGID, own != nil)
	if err != nil {
		return a.refuse("", err)
	}
	before, err := a.c.h.sys.forks.before()
	if err == nil {
		err = a.transact(ctx, mine, own)
	}
	m.end(a.task.TGID, mine)
	if err == nil && len(a.plan.outside) > 0 && a.trace == nil {
		a.settle(before)
	}
	if a.record != nil {
		a.c.h.sys.journal.end(a.record)
	}
	return err
}

func (a *Attach) transact(ctx context.Context, mine *move, own *OwnWrite) (err error) {
	if err := a.look(); err != nil {
		return err
	}
	if a.plan.empty() {
		return nil
	}
	if err := a.check(); err != nil {
		return err
	}
	// Now that it may. Before the write of a target that moves itself is answered, too: from then
	// on it has moved.
	if a.record, err = a.c.h.sys.journal.begin(a.c, a.task, a.whole); err != nil {
		return a.refuse("", err)
	}
	defer func() {
		if err != nil {
			err = a.rollback(err)
		}
		if a.trace != nil {
			a.tell(own, err)
			close(mine.freed)
			// A target that died while it was moved needs no letting go.
			if e := a.trace.Release(); err == nil && e != nil && !errors.Is(e, inject.ErrGone) {
				err = a.refuse("", e)
			}
		}
	}()
	if len(a.plan.inside) > 0 {
		close(mine.stopped)
		if err := a.stop(ctx, own); err != nil {
			return err
		}
	}
	if err := a.place(false); err != nil {
		return err
	}
	if err := a.inject(); err != nil {
		return err
	}
	if err := a.place(true); err != nil {
		return err
	}
	if err := a.c.h.roster.Place(a.task, a.c.Path(), a.whole); err != nil {
		return a.refuse("", fmt.Errorf("roster: %w", noTask(err)))
	}
	return nil
}

// look finds out where every thread is and what has to change.
func (a *Attach) look() error {
	tids := []int{a.task.TID}
	if a.whole {
		var err error
		if tids, err = a.task.Threads(); err != nil {
			return a.refuse("", err)
		}
	}
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
	a.plan = a.c.h.sys.planFor(a.c, a.threads)
	return nil
}

func (a *Attach) lookAt(tid int) (th thread, err error) {
	t := a.task
	if tid != t.TID {
		if t, err = openTask(tid); err != nil {
			return th, err
		}
		defer t.Close()
	}
	t.Forget()
	sys := a.c.h.sys
	th.tid = tid
	if th.objects, err = sys.current(t); err != nil {
		return th, err
	}
	th.from = sys.table.Find(th.objects)
	states := a.c.slots()
	a.c.h.keepForeign(&states, th.from)
	th.to = sys.table.Replace(th.from, &states)
	th.path, err = a.c.h.roster.Locate(t)
	return th, err
}

// keepForeign takes out of the states to enter what a task need not enter: the root container
// stands for what the machine had before, and a Demanding namespace that the task has from
// elsewhere is part of that.
func (h *Hierarchy) keepForeign(states *slots, from *TaskProxy) {
	demanding := h.binding().demanding
	root := h.root.slots()
	for slot := range states {
		root := root[slot]
		if demanding&(1<<slot) != 0 && states[slot] == root && from.slots[slot] != root && h.foreign(slot, from.slots[slot]) {
			states[slot] = nil
		}
	}
}

// slots returns the states of c, which stay as long as c cannot be removed.
func (c *Container) slots() slots {
	c.h.mu.RLock()
	defer c.h.mu.RUnlock()
	return c.states
}

// planFor compares the proxies of all threads with those they shall have.
func (s *System) planFor(c *Container, threads []thread) plan {
	var p plan
	path := c.Path()
	for _, th := range threads {
		p.roster = p.roster || th.path != path
	}
	for _, slot := range c.h.binding().leads {
		differs := slices.ContainsFunc(threads, func(th thread) bool { return th.from.slots[slot] != th.to.slots[slot] })
		if !differs {
			continue
		}
		if _, ok := s.subsystems[slot].(Placer); ok {
			p.outside = append(p.outside, slot)
		} else {
			p.inside = append(p.inside, slot)
		}
	}
	sort.SliceStable(p.inside, func(i, j int) bool { return s.enterer(p.inside[i]).EnterOrder() < s.enterer(p.inside[j]).EnterOrder() })
	return p
}

func (s *System) enterer(slot int) Enterer { return s.subsystems[slot].(Enterer) }

// check lets everything that differs refuse before anything is changed.
func (a *Attach) check() error {
	a.task.Forget()
	if len(a.plan.inside) > 0 {
		st, err := a.task.Status()
		if err != nil {
			return a.refuse("", err)
		}
		if st.TracerPID != 0 {
			return a.refuse("", fmt.Errorf("%w by %d", ErrTraced, st.TracerPID))
		}
		if err := a.writer.owns(st); err != nil {
			return a.refuse("", err)
		}
	}
	b := a.c.h.binding()
	for _, slot := range b.slots {
		checker, ok := a.c.h.sys.subsystems[slot].(Checker)
		if !ok || !a.plan.changes(b.lead(slot)) {
			continue
		}
		to := a.c.Object(slot)
		for _, from := range a.distinct(slot) {
			if err := checker.Check(a.task, from, to); err != nil {
				return a.refuse(a.c.h.sys.subsystems[slot].Name(), noTask(err))
			}
		}
	}
	return nil
}

func (p *plan) changes(lead int) bool {
	return slices.Contains(p.outside, lead) || slices.Contains(p.inside, lead)
}

// distinct returns the objects that threads have in a slot, each once.
func (a *Attach) distinct(slot int) []Object {
	var list []Object
	for _, th := range a.threads {
		o := th.objects[slot]
		if !slices.ContainsFunc(list, func(other Object) bool { return other.ID() == o.ID() }) {
			list = append(list, o)
		}
	}
	return list
}

// stop stops all threads and looks at them again, now that nothing can change any more.
func (a *Attach) stop(ctx context.Context, own *OwnWrite) (err error) {
	if a.whole {
		a.trace, err = inject.Seize(a.task.TGID)
	} else {
		a.trace, err = inject.SeizeThread(a.task.TID)
	}
	if err != nil {
		a.trace = nil
		return a.refuse("", fromInject(err))
	}
	if own != nil {
		own.Answer()
	}
	if err := a.trace.Wait(ctx); err != nil {
		return a.refuse("", fromInject(err))
	}
	return a.look()
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

// place moves the target into the container's groups, those of Freezers or the others.
func (a *Attach) place(freezers bool) error {
	for _, slot := range a.plan.outside {
		sub := a.c.h.sys.subsystems[slot]
		if f, ok := sub.(Freezer); freezers != (ok && f.Freezes()) {
			continue
		}
		if err := sub.(Placer).Place(a.task, a.c.Object(slot), a.whole); err != nil {
			return a.refuse(sub.Name(), noTask(err))
		}
		a.undo = append(a.undo, func() error { return a.placeBack(slot) })
	}
	return nil
}

// placeBack puts every thread into the group it came from: the process to where its first
// thread was, and then the threads that were elsewhere.
func (a *Attach) placeBack(slot int) error {
	sub := a.c.h.sys.subsystems[slot]
	placer := sub.(Placer)
	home := a.threads[0].objects[slot]
	errs := []error{placer.Place(a.task, home, a.whole)}
	for _, th := range a.threads[1:] {
		if th.objects[slot].ID() == home.ID() {
			continue
		}
		t, err := openTask(th.tid)
		if err != nil {
			continue // it has ended
		}
		t.TGID = a.task.TGID
		errs = append(errs, placer.Place(t, th.objects[slot], false))
		t.Close()
	}
	return a.gone(sub.Name(), errors.Join(errs...))
}

// gone leaves out that the target has ended: nothing needs to be put back then.
func (a *Attach) gone(subsystem string, err error) error {
	if err == nil || errors.Is(noTask(err), ErrNoTask) || !a.task.Alive() {
		return nil
	}
	return fmt.Errorf("%s: not put back: %w", subsystem, err)
}

// inject makes the stopped threads enter the container's namespaces.
func (a *Attach) inject() error {
	if len(a.plan.inside) == 0 {
		return nil
	}
	sys := a.c.h.sys
	var to []inject.Namespace
	for _, slot := range a.plan.inside {
		ns, err := sys.enterer(slot).Open(a.c.Object(slot))
		if err != nil {
			return a.refuse(sys.subsystems[slot].Name(), err)
		}
		defer ns.File.Close()
		to = append(to, inject.Namespace{Type: ns.Type, FD: int(ns.File.Fd())})
	}
	if err := a.trace.Enter(to); err != nil {
		name := ""
		var e *inject.EnterError
		if errors.As(err, &e) {
			i := slices.IndexFunc(to, func(ns inject.Namespace) bool { return ns.Type == e.Type })
			if i >= 0 {
				name = sys.subsystems[a.plan.inside[i]].Name()
			}
		}
		return a.refuse(name, fromInject(err))
	}
	a.undo = append(a.undo, func() error { return a.gone("namespaces", a.trace.Undo()) })
	return nil
}

// rollback puts back what was done, last first.
func (a *Attach) rollback(err error) error {
	for _, f := range slices.Backward(a.undo) {
		if e := f(); e != nil {
			a.c.h.sys.log.Error("attach not undone", "task", a.task.TID, "container", a.c.Path(), "error", e)
			err = errors.Join(err, e)
		}
	}
	a.undo = nil
	return err
}

// tell puts the error of a move that failed into the system call by which the target asked
// for it.
func (a *Attach) tell(own *OwnWrite, err error) {
	if own == nil || err == nil || errors.Is(err, ErrNoTask) {
		return
	}
	if e := a.trace.SetResult(a.writer.TID, own.Result(err)); e != nil {
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
		for _, pid := range pids {
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
	child, err := a.c.NewAttach(fmt.Sprint(pid), true, Writer{})
	if err != nil {
		return false, err
	}
	err = child.Run(nil)
	return err == nil, err
}

// half reports whether t is in one of the groups that the move has changed, but not in the
// container.
func (a *Attach) half(t *Task) (bool, error) {
	path, err := a.c.h.roster.Locate(t)
	if err != nil || path == a.c.Path() {
		return false, err
	}
	for _, slot := range a.plan.outside {
		o, err := a.c.h.sys.subsystems[slot].Current(t)
		if err != nil {
			return false, err
		}
		if to := a.c.Object(slot); to != nil && o.ID() == to.ID() {
			return true, nil
		}
	}
	return false, nil
}

// refuse says who refused what.
func (a *Attach) refuse(subsystem string, err error) error {
	return &Error{Op: "attach", Container: a.c.Path(), Subsystem: subsystem, Task: a.task.TID, Err: err}
}
