package proxy

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// Hierarchy is a set of bound subsystems and a tree of containers.
type Hierarchy struct {
	sys    *System
	name   string
	base   string
	bound  atomic.Pointer[binding] // replaced under sys.mu and shape
	roster Roster
	root   *Container

	shape sync.Mutex // serialises what changes the tree or its notes; held over system calls

	mu       sync.RWMutex          // guards the containers' fields and byID; never held over a system call
	byID     map[uint64]*Container // guarded by mu
	watchers map[*watcher]struct{} // guarded by mu

	views []View // guarded by sys.mu
}

// View is one mount of a hierarchy.
type View interface {
	// Where is the directory it is mounted on.
	Where() string
	// Alive reports whether it is still mounted.
	Alive() bool
}

// Name returns the hierarchy's name.
func (h *Hierarchy) Name() string { return h.name }

// Root returns the container that stands for what the machine had before.
func (h *Hierarchy) Root() *Container { return h.root }

// System returns the system that h belongs to.
func (h *Hierarchy) System() *System { return h.sys }

// Container returns the container with that id, nil if it was removed.
func (h *Hierarchy) Container(id uint64) *Container {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.byID[id]
}

// find returns the container of a path, nil if there is none.
func (h *Hierarchy) find(path string) *Container {
	c := h.root
	for name := range strings.SplitSeq(path, "/") {
		if c != nil && name != "" {
			c = c.Child(name)
		}
	}
	return c
}

// Containers returns how many containers there are, the root included.
func (h *Hierarchy) Containers() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return len(h.byID)
}

// open makes the root container of what the roster has, and binds subsystems. A failure leaves
// nothing bound.
func (h *Hierarchy) open(bound []int) error {
	entry, err := h.roster.Entry("")
	if err != nil {
		return err
	}
	h.root = &Container{h: h, id: entry.ID, owner: entry.Owner, mode: entry.Mode}
	h.byID = map[uint64]*Container{entry.ID: h.root}
	h.bound.Store(&binding{subsystems: h.sys.subsystems})
	return h.bind(bound)
}

func (h *Hierarchy) binding() *binding { return h.bound.Load() }

// restore finds the containers that an earlier daemon left.
func (h *Hierarchy) restore() error {
	if err := h.restoreNotes(h.root); err != nil {
		return err
	}
	return h.restoreBelow(h.root)
}

func (h *Hierarchy) restoreBelow(parent *Container) error {
	entries, err := h.roster.Children(parent.Path())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name, reserved) {
			continue
		}
		c := h.newContainer(parent, e)
		h.reopen(c)
		h.publish(c)
		if err := errors.Join(h.restoreNotes(c), h.restoreBelow(c)); err != nil {
			return err
		}
	}
	return nil
}

// reopen finds the states of c. What somebody has taken away is mended, as far as that can be.
func (h *Hierarchy) reopen(c *Container) {
	b := h.binding()
	for _, slot := range b.groupsFirst() {
		if lead := b.lead(slot); lead != slot {
			c.states.set(slot, h.sys.table.share(c.states.at(lead)))
			c.own |= c.own >> lead & 1 << slot
			continue
		}
		s := h.sys.subsystems[slot]
		o, err := s.Reopen(c, c.parent.states.at(slot).object)
		if err != nil && !shares(s, err) {
			o = h.mend(c, slot, err)
		}
		if o == nil {
			c.states.set(slot, h.sys.table.share(c.parent.states.at(slot)))
			continue
		}
		c.states.set(slot, h.sys.table.hold(o))
		c.own |= 1 << slot
	}
}

func (h *Hierarchy) restoreNotes(c *Container) error {
	path := c.Path()
	unshare, err := h.roster.Note(path, noteUnshare)
	if err != nil {
		return err
	}
	b := h.binding()
	c.fresh = b.namespaces
	if unshare != "" {
		c.fresh = 0
		for _, name := range strings.Fields(unshare) {
			if slot := b.namespaceSlot(name); slot >= 0 {
				c.fresh |= 1 << slot
			}
		}
	}
	attrs, err := h.roster.Note(path, noteAttrs)
	if err != nil {
		return err
	}
	c.attrs, err = parseAttrs(attrs)
	return err
}

func (h *Hierarchy) newContainer(parent *Container, e Entry) *Container {
	return &Container{
		h: h, id: e.ID, parent: parent, name: e.Name, owner: e.Owner, mode: e.Mode, fresh: parent.fresh,
		states: newStateList(len(h.binding().slots)),
	}
}

// publish makes c visible.
func (h *Hierarchy) publish(c *Container) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.byID[c.id] = c
	p := c.parent
	if p.byName == nil {
		p.byName = make(map[string]*Container)
	}
	p.byName[c.name] = c
	i, _ := slices.BinarySearchFunc(p.children, c.id, compareID)
	p.children = slices.Insert(p.children, i, c)
}

// retract takes back what publish did.
func (h *Hierarchy) retract(c *Container) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.byID, c.id)
	p := c.parent
	delete(p.byName, c.name)
	if i, ok := slices.BinarySearchFunc(p.children, c.id, compareID); ok {
		p.children = slices.Delete(p.children, i, i+1)
	}
}

// shareDemanding makes new containers share what is Demanding unless they are told otherwise.
func (h *Hierarchy) shareDemanding() error {
	b := h.binding()
	if b.demanding == 0 {
		return nil
	}
	return h.root.setFresh(h.root.fresh &^ b.demanding)
}

// foreign reports whether an object of a namespace subsystem is no container's.
func (h *Hierarchy) foreign(slot int, o Object) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, c := range h.byID {
		if c.states.at(slot) != nil && c.states.at(slot).object.ID() == o.ID() {
			return false
		}
	}
	return true
}

func compareID(c *Container, id uint64) int {
	switch {
	case c.id < id:
		return -1
	case c.id > id:
		return 1
	}
	return 0
}

// reserved is what the names begin with that are not for containers.
const reserved = ".rcfs"

// checkName says whether a child of c may have that name.
func (h *Hierarchy) checkName(c *Container, name string, ownFiles func(string) bool) error {
	switch {
	case len(name) > 255: // NAME_MAX
		return ErrNameTooLong
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\n\x00") ||
		strings.HasPrefix(name, reserved):
		return fmt.Errorf("%q: %w", name, ErrName)
	case ownFiles(name) || h.HasFile(name, c == h.root) || c.Child(name) != nil:
		return fmt.Errorf("%q: %w", name, ErrExists)
	}
	return nil
}

// Make makes a container: for each bound controller a new group, for each bound namespace a new
// one or, where the parent's rcfs.unshare does not name it, the parent's. When a subsystem
// fails, what the others made is undone. taken tells the names that the file system uses itself.
func (h *Hierarchy) Make(parent *Container, name string, owner Owner, taken func(string) bool) (*Container, error) {
	h.shape.Lock()
	defer h.shape.Unlock()
	if parent.isRemoved() {
		return nil, parent.refuse("mkdir", ErrRemoved)
	}
	if err := h.checkName(parent, name, taken); err != nil {
		return nil, parent.refuse("mkdir", err)
	}
	path := strings.TrimPrefix(parent.Path()+"/"+name, "/")
	if err := h.checkLimits(path); err != nil {
		return nil, parent.refuse("mkdir", err)
	}
	var c *Container
	if err := h.change(intent{Op: opMake, Path: octets(path)}, func() error {
		entry, err := h.roster.Create(path, owner)
		if err != nil {
			return parent.refuse("mkdir", err)
		}
		c = h.newContainer(parent, entry)
		if err := h.populate(c); err != nil {
			return errors.Join(err, h.destroy(c), h.roster.Remove(path))
		}
		return nil
	}); err != nil {
		return nil, err
	}
	h.publish(c)
	return c, nil
}

// Limits of a hierarchy. A container takes some hundred bytes here, and kilobytes in the kernel; whoever has been
// delegated one shall not have the daemon run out of either. A path fits into what the kernel takes for one.
const (
	MaxContainers = 1 << 20
	MaxDepth      = 128
	maxPath       = 3500
)

// checkLimits refuses one container too many. ErrLimit: there are MaxContainers, or it would be deeper
// than MaxDepth, or its path too long for the kernel.
func (h *Hierarchy) checkLimits(path string) error {
	switch {
	case h.Containers() >= MaxContainers:
		return fmt.Errorf("%d containers: %w", MaxContainers, ErrLimit)
	case strings.Count(path, "/") >= MaxDepth:
		return fmt.Errorf("%d containers deep: %w", MaxDepth, ErrLimit)
	case len(path) > maxPath:
		return fmt.Errorf("a path of %d bytes: %w", len(path), ErrLimit)
	}
	return nil
}

// populate gives c its states, the groups first: what a namespace shows can depend on them.
func (h *Hierarchy) populate(c *Container) error {
	b := h.binding()
	for _, slot := range b.groupsFirst() {
		s := h.sys.subsystems[slot]
		parent := c.parent.states.at(slot)
		fail := func(err error) error {
			return &Error{Op: "mkdir", Container: c.Path(), Subsystem: s.Name(), Err: err}
		}
		shared := s.Kind() == KindNamespace && c.parent.fresh&(1<<slot) == 0
		switch lead := b.lead(slot); {
		case lead != slot:
			c.states.set(slot, h.sys.table.share(c.states.at(lead)))
			c.own |= c.own >> lead & 1 << slot
		case shared:
			c.states.set(slot, h.sys.table.share(parent))
		default:
			o, err := s.Create(c, parent.object)
			if err != nil {
				return fail(err)
			}
			c.states.set(slot, h.sys.table.adopt(o))
			c.own |= 1 << slot
		}
		if p, ok := s.(Preparer); ok && !shared {
			if err := p.Prepare(c.states.at(slot).object, parent.object); err != nil {
				return fail(err)
			}
		}
	}
	if c.fresh != b.namespaces {
		return h.roster.SetNote(c.Path(), noteUnshare, noteOf(b.namesOf(c.fresh)))
	}
	return nil
}

// destroy removes the objects that were made for c, in reverse order, and lets its states go.
func (h *Hierarchy) destroy(c *Container) error {
	return h.destroySlots(c, h.binding().groupsFirst())
}

func (h *Hierarchy) destroySlots(c *Container, list []int) error {
	b := h.binding()
	var errs []error
	for _, slot := range slices.Backward(list) {
		s := c.states.at(slot)
		if s == nil {
			continue
		}
		if b.lead(slot) == slot && c.own&(1<<slot) != 0 {
			if err := h.sys.subsystems[slot].Destroy(c); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, &Error{Op: "rmdir", Container: c.Path(), Subsystem: h.sys.subsystems[slot].Name(), Err: err})
				continue
			}
		}
		own := c.own&(1<<slot) != 0
		h.mu.Lock()
		c.states.set(slot, nil)
		c.own &^= 1 << slot
		h.mu.Unlock()
		if own {
			h.sys.table.retire(s)
		} else {
			h.sys.table.drop(s)
		}
	}
	return errors.Join(errs...)
}

// Remove removes a container. ErrNotEmpty while it has tasks (zombies are none) or children, or
// while a task is on its way in.
func (h *Hierarchy) Remove(parent *Container, name string) error {
	h.shape.Lock()
	defer h.shape.Unlock()
	c := parent.Child(name)
	if c == nil {
		return parent.refuse("rmdir", fs.ErrNotExist)
	}
	if err := c.close(); err != nil {
		return c.refuse("rmdir", err)
	}
	if err := h.vacant(c); err != nil {
		c.reopen()
		return err
	}
	path := c.Path()
	return h.change(intent{Op: opRemove, Path: octets(path), ID: c.id}, func() error {
		// The roster has the last word on who is in; it refuses while nothing has been taken apart.
		if err := h.roster.Remove(path); err != nil {
			c.reopen()
			if errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.ENOTEMPTY) {
				err = ErrNotEmpty
			}
			return c.refuse("rmdir", err)
		}
		err := h.destroy(c)
		h.retract(c)
		return err
	})
}

// vacant refuses while a task is in c, or one that was moved there by hand is in a group of c.
func (h *Hierarchy) vacant(c *Container) error {
	var b [16]byte
	if n, err := h.roster.Read(c.Path(), "cgroup.procs", b[:], 0); n > 0 || err != nil {
		return c.refuse("rmdir", errors.Join(err, ErrNotEmpty))
	}
	for _, slot := range h.binding().leads {
		v, ok := h.sys.subsystems[slot].(Vacancy)
		if !ok || c.own&(1<<slot) == 0 {
			continue
		}
		if err := v.Vacant(c.states.at(slot).object); err != nil {
			return &Error{Op: "rmdir", Container: c.Path(), Subsystem: h.sys.subsystems[slot].Name(), Err: err}
		}
	}
	return nil
}

// close keeps new tasks out, for Remove.
func (c *Container) close() error {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	if len(c.children) > 0 || c.movers > 0 {
		return ErrNotEmpty
	}
	c.removed = true
	return nil
}

func (c *Container) reopen() {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	c.removed = false
}

// Rename gives the child oldName of parent another name. A container stays below its parent.
func (h *Hierarchy) Rename(parent *Container, oldName string, newParent *Container, newName string, taken func(string) bool) error {
	h.shape.Lock()
	defer h.shape.Unlock()
	c := parent.Child(oldName)
	if c == nil {
		return parent.refuse("rename", fs.ErrNotExist)
	}
	if newParent != parent {
		return c.refuse("rename", ErrParent)
	}
	if err := h.checkName(parent, newName, taken); err != nil {
		return c.refuse("rename", err)
	}
	i := intent{Op: opRename, Path: octets(c.Path()), ID: c.id, Name: octets(newName)}
	if err := h.change(i, func() error { return h.renameStates(c, newName) }); err != nil {
		return err
	}
	h.mu.Lock()
	delete(parent.byName, oldName)
	c.name = newName
	parent.byName[newName] = c
	h.mu.Unlock()
	return nil
}

// renameStates renames everything or nothing, the roster's directory last.
func (h *Hierarchy) renameStates(c *Container, newName string) (err error) {
	var undo []func() error
	defer func() {
		if err == nil {
			return
		}
		for _, f := range slices.Backward(undo) {
			err = errors.Join(err, f())
		}
	}()
	for _, slot := range h.binding().leads {
		r, ok := h.sys.subsystems[slot].(Renamer)
		if !ok || c.own&(1<<slot) == 0 {
			continue
		}
		o := c.states.at(slot).object
		if err := r.Rename(o, c.name, newName); err != nil {
			return &Error{Op: "rename", Container: c.Path(), Subsystem: h.sys.subsystems[slot].Name(), Err: err}
		}
		undo = append(undo, func() error { return r.Rename(o, newName, c.name) })
	}
	if err := h.roster.Rename(c.Path(), newName); err != nil {
		return c.refuse("rename", err)
	}
	return nil
}
