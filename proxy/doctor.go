package proxy

import (
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// Doctor looks whether all is as rcfs has made it, and mends what it can. It returns what it found, and what
// has been found since it was called last, at the start of the daemon for instance.
func (s *System) Doctor() ([]Finding, error) {
	for _, h := range s.all() {
		for _, c := range h.list() {
			h.examine(c)
		}
	}
	names, err := rosters.Names()
	if err != nil {
		return nil, err
	}
	list := s.taken()
	for _, name := range names {
		if what := s.abandoned(name); what != "" {
			list = append(list, Finding{Hierarchy: name, What: what})
		}
	}
	return list, nil
}

// abandoned says what is wrong with a hierarchy that the kernel holds, "" for nothing.
func (s *System) abandoned(name string) string {
	s.mu.Lock()
	if s.hierarchies[name] != nil || s.fadings.Load() > 0 {
		s.mu.Unlock()
		return ""
	}
	why := s.strange[name]
	r, err := rosters.Open(name) // not while a mount makes it
	s.mu.Unlock()
	switch {
	case errors.Is(err, ErrForeign), errors.Is(err, ErrFading):
		return ""
	case err == nil:
		err = r.Close()
	}
	if why == "" {
		why = "it is of a daemon that has died; the next rcfsd that starts takes it over"
	}
	if err != nil {
		why += ": " + err.Error()
	}
	return why
}

// inContainer reports whether a container is there. Of a hierarchy that was not restored nothing is known,
// so all of it is.
func (s *System) inContainer(hierarchy string, id uint64) bool {
	_, strange := s.strange[hierarchy]
	h := s.hierarchies[hierarchy]
	return strange || h != nil && h.Container(id) != nil
}

// sweep removes what earlier daemons have left that belongs to no container.
func (s *System) sweep(f func(Sweeper) ([]string, error)) {
	for _, sweeper := range sweepers {
		removed, err := f(sweeper)
		for _, what := range removed {
			s.report(Finding{What: what, Done: "removed"})
		}
		if err != nil {
			s.report(Finding{What: "not everything could be removed: " + err.Error()})
		}
	}
}

// shares reports whether the error of Reopen says no more than that a container shares its parent's: a group
// each has for itself.
func shares(s Subsystem, err error) bool {
	return s.Kind() == KindNamespace && errors.Is(err, fs.ErrNotExist)
}

// mend brings back an object of c that Reopen did not find: the same one, if a task is in it or it has a
// keeper, else a new one. Nil: neither could be.
func (h *Hierarchy) mend(c *Container, slot int, why error) Object {
	s := h.sys.subsystems[slot]
	parent := c.parent.states.at(slot).object
	done := "held again"
	o, err := h.rescue(c, slot, nil)
	if errors.Is(err, fs.ErrNotExist) {
		done = "made anew, nothing of what was set in it is left"
		o, err = h.makeAnew(c, slot, parent)
	}
	if err != nil {
		o = nil
		err = fmt.Errorf("%w; it shares its parent's now", err)
	}
	h.report(Finding{Container: c.Path(), Subsystem: s.Name(), What: why.Error(), Done: outcome(done, err)})
	return o
}

func (h *Hierarchy) makeAnew(c *Container, slot int, parent Object) (Object, error) {
	b := h.binding()
	s := h.sys.subsystems[slot]
	if err := s.Destroy(c); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	o, err := s.Create(c, parent)
	if err != nil {
		return nil, err
	}
	for _, other := range b.slots {
		if p, ok := h.sys.subsystems[other].(Preparer); ok && b.lead(other) == slot {
			if err := p.Prepare(o, parent); err != nil {
				return nil, errors.Join(err, s.Destroy(c))
			}
		}
	}
	return o, nil
}

// rescue finds the object of c again with the help of a member that has it: want, if that is known.
func (h *Hierarchy) rescue(c *Container, slot int, want Object) (Object, error) {
	s := h.sys.subsystems[slot]
	r, ok := s.(Rescuer)
	if !ok {
		return nil, fs.ErrNotExist
	}
	tids, err := c.members()
	if err != nil {
		return nil, err
	}
	for _, tid := range tids {
		t, err := openTask(tid)
		if err != nil {
			continue // it has ended
		}
		defer t.Close()
		o, err := s.Current(t)
		if err == nil && o.ID() != c.parent.states.at(slot).object.ID() && (want == nil || want.ID() == o.ID()) {
			return r.Rescue(c, t)
		}
	}
	return r.Rescue(c, nil)
}

// examine looks at one container: whether its objects are there, and its members in them. Whoever else the
// machine has is in the root.
func (h *Hierarchy) examine(c *Container) {
	if c == h.root {
		return
	}
	h.shape.Lock()
	if !c.isRemoved() {
		for _, slot := range h.binding().leads {
			if c.own&(1<<slot) != 0 {
				h.examineObject(c, slot)
			}
		}
	}
	h.shape.Unlock()
	h.examineMembers(c)
}

// examineObject mends an own object of c that somebody has taken away or replaced. Its caller holds h.shape.
func (h *Hierarchy) examineObject(c *Container, slot int) {
	s := h.sys.subsystems[slot]
	have := c.states.at(slot)
	f := Finding{Container: c.Path(), Subsystem: s.Name()}
	o, err := s.Reopen(c, c.parent.states.at(slot).object)
	if err == nil && o.ID() == have.object.ID() {
		return
	}
	if err != nil {
		f.What = err.Error()
		if o, err := h.rescue(c, slot, have.object); err == nil && o.ID() == have.object.ID() {
			f.Done = "held again"
			h.report(f)
			return
		}
	}
	if c.close() != nil { // children share it, or a task is on its way in
		f.What = have.String() + " is not there"
		h.report(f)
		return
	}
	defer c.reopen()
	if err == nil {
		f.What, f.Done = o.String()+" has been put in the place of "+have.String(), "that is the container's now"
		h.report(f)
	} else if o = h.mend(c, slot, err); o == nil {
		return
	}
	h.replace(c, have, h.sys.table.adopt(o))
}

// replace gives c another state, in all slots where it has that one.
func (h *Hierarchy) replace(c *Container, old, state *State) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for slot := range MaxSubsystems {
		if c.states.at(slot) == old {
			c.states.set(slot, h.sys.table.share(state))
			h.sys.table.retire(old)
		}
	}
	h.sys.table.drop(state) // adopt held it once
}

// examineMembers finds tasks that somebody has moved by hand, out of the states of c or into them.
func (h *Hierarchy) examineMembers(c *Container) {
	tids, err := c.members()
	if err != nil {
		return // it was removed
	}
	leads := h.binding().leads
	told := make(map[int]bool)
	for _, tid := range tids {
		h.examineMember(c, tid, leads, told)
	}
	states := c.slots()
	for _, slot := range leads {
		l, ok := h.sys.subsystems[slot].(Lister)
		if !ok || states[slot] == nil || c.own&(1<<slot) == 0 {
			continue
		}
		pids, err := l.Processes(states[slot].object)
		if err != nil {
			continue // it was removed
		}
		for _, pid := range pids {
			h.examineGuest(c, slot, pid)
		}
	}
}

// settled calls f while no move of the task's process is under way. One that is will put things right.
func (s *System) settled(tid int, f func(*Task)) {
	t, err := FindTask(tid)
	if err != nil {
		return // it has ended
	}
	defer t.Close()
	mine, waited, err := s.moves.begin(time.Now().Add(stopTime), t.TGID, false)
	if err != nil {
		return
	}
	defer s.moves.end(t.TGID, mine)
	if waited {
		t.Forget()
	}
	f(t)
}

// holds reports whether t is in a state, and what it is in. By the name it is in what it shares with nobody: values of its own.
func (h *Hierarchy) holds(t *Task, slot int, s *State) (o Object, in bool, err error) {
	sub := h.sys.subsystems[slot]
	o, err = sub.Current(t)
	if err != nil || o == nil || s == nil || o.ID() == s.object.ID() {
		return o, s != nil && o != nil, err
	}
	if p, ok := sub.(Placer); ok {
		at, err := p.Locate(t)
		return o, at.Name == s.String(), err
	}
	return o, false, nil
}

// examineMember looks at one thread, and tells of each process once.
func (h *Hierarchy) examineMember(c *Container, tid int, leads []int, told map[int]bool) {
	h.sys.settled(tid, func(t *Task) {
		path, err := h.roster.Locate(t)
		if err != nil || path != c.Path() || told[t.TGID] {
			return
		}
		states := c.slots()
		for _, slot := range leads {
			s := h.sys.subsystems[slot]
			o, in, err := h.holds(t, slot, states[slot])
			if err != nil || o == nil || in {
				continue
			}
			// A namespace of its own, as unshare(2) makes, is a task's good right.
			if _, enters := s.(Enterer); enters && h.foreign(slot, o) {
				continue
			}
			told[t.TGID] = true
			h.report(Finding{Container: path, Subsystem: s.Name(), Task: tid, What: "somebody has moved it to " + o.String()})
		}
	})
}

// examineGuest looks at a process that is in a group of c.
func (h *Hierarchy) examineGuest(c *Container, slot, pid int) {
	h.sys.settled(pid, func(t *Task) {
		path, err := h.roster.Locate(t)
		if err != nil || path == c.Path() {
			return
		}
		if _, err := h.sys.ours(t); err != nil {
			return // a keeper is in its container's groups only
		}
		if _, in, err := h.holds(t, slot, c.slots()[slot]); err != nil || !in {
			return
		}
		h.report(Finding{Container: c.Path(), Subsystem: h.sys.subsystems[slot].Name(), Task: pid,
			What: fmt.Sprintf("somebody has moved it here, and it is in the container %q", "/"+path)})
	})
}
