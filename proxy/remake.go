package proxy

import (
	"errors"
	"fmt"
	"os"
	"slices"
)

// Whom a Sovereign's object lets in depends on who owned the container when it was made. So a new
// owner gets a new one, and new ones of all the namespaces that it owned, as long as nothing tells
// the difference: nobody is or was in it, there is nothing below it, and what was set in the
// namespaces can be set again. Else everything stays as it was made.

// remaking is what is done for a new owner of a container.
type remaking struct {
	c      *Container
	list   []int             // the namespaces in the order in which they are made
	values map[string]octets // what is set in them, by control file
}

// remake plans it, and keeps tasks out of c until it ends, if there is anything to be done. Its caller
// holds h.shape.
func (h *Hierarchy) remake(c *Container) (remaking, error) {
	list := h.remakable(c)
	if len(list) == 0 || c.close() != nil { // children, or a task on its way in
		return remaking{}, nil
	}
	var b [16]byte
	n, err := h.roster.Read(c.Path(), "cgroup.procs", b[:], 0)
	values := map[string]octets(nil)
	if err == nil && n == 0 {
		values, err = h.values(c, list)
	}
	if n > 0 || err != nil {
		c.reopen()
		return remaking{}, err
	}
	return remaking{c, list, values}, nil
}

func (re remaking) end() {
	if re.c != nil {
		re.c.reopen()
	}
}

func (re remaking) names() []string {
	var names []string
	for _, slot := range re.list {
		names = append(names, re.c.h.sys.subsystems[slot].Name())
	}
	return names
}

// run does it for the owner that the container has now, who was old before. After an error all is as it
// was, but for what the error says.
func (re remaking) run(old Attr) error {
	if re.c == nil {
		return nil
	}
	h := re.c.h
	err := h.renew(re.c, re.list, re.values)
	if err != nil {
		re.c.setAttr(old)
		err = errors.Join(err, h.renew(re.c, re.list, re.values))
	}
	return err
}

// remakable returns the namespaces of c in the order in which they are made, none where they stay.
func (h *Hierarchy) remakable(c *Container) []int {
	var list []int
	owner := false
	b := h.binding()
	for _, slot := range b.groupsFirst() {
		if c == h.root || c.own&b.namespaces&(1<<slot) == 0 {
			continue
		}
		r, ok := h.sys.subsystems[slot].(Renewable)
		if !ok || !r.Untouched(c.states.at(slot).object) {
			return nil
		}
		_, sovereign := r.(Sovereign)
		owner = owner || sovereign
		list = append(list, slot)
	}
	if !owner {
		return nil
	}
	return list
}

// renew makes the objects of the slots anew, and sets in them what was set before.
func (h *Hierarchy) renew(c *Container, list []int, values map[string]octets) error {
	if err := h.destroySlots(c, list); err != nil {
		return err
	}
	for _, slot := range list {
		s := h.sys.subsystems[slot]
		o, err := s.Create(c, c.parent.states.at(slot).object)
		if err != nil {
			return &Error{Op: "chown", Container: c.Path(), Subsystem: s.Name(), Err: err}
		}
		state := h.sys.table.adopt(o)
		h.mu.Lock()
		c.states.set(slot, state)
		c.own |= 1 << slot
		h.mu.Unlock()
	}
	return h.restoreValues(c, list, values)
}

// values reads the control files that can be written.
func (h *Hierarchy) values(c *Container, list []int) (map[string]octets, error) {
	values := make(map[string]octets)
	for _, f := range h.binding().files {
		if f.Read == nil || f.Write == nil || !slices.Contains(list, f.Slot) || !f.Exists(false) {
			continue
		}
		var text []byte
		buf := make([]byte, 4096)
		for {
			n, err := f.Read(c.Object(f.Slot), buf, int64(len(text)))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.Name, err)
			}
			if n == 0 {
				break
			}
			text = append(text, buf[:n]...)
		}
		values[f.Name] = octets(text)
	}
	return values, nil
}

// restoreValues writes what is not as it was before.
func (h *Hierarchy) restoreValues(c *Container, list []int, before map[string]octets) error {
	now, err := h.values(c, list)
	if err != nil {
		return err
	}
	for _, f := range h.binding().files {
		if old, ok := before[f.Name]; ok && old != now[f.Name] {
			if err := f.Write(c.Object(f.Slot), []byte(old), Writer{TID: os.Getpid()}); err != nil {
				return &Error{Op: "chown", Container: c.Path(), Subsystem: h.sys.subsystems[f.Slot].Name(),
					Err: fmt.Errorf("set %s again: %w", f.Name, err)}
			}
		}
	}
	return nil
}
