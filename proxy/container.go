package proxy

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Container is a node of a hierarchy's tree: one state for each bound subsystem. It lives in
// the roster as a directory, whose inode number is its id.
type Container struct {
	h      *Hierarchy
	id     uint64
	parent *Container // nil for the root

	name     string                // guarded by h.mu
	owner    Owner                 // guarded by h.mu
	mode     uint32                // guarded by h.mu
	children []*Container          // guarded by h.mu; ascending ids
	byName   map[string]*Container // guarded by h.mu
	states   stateList             // guarded by h.mu; of the bound slots
	own      slotSet               // guarded by h.mu; slots whose object was made for this container
	fresh    slotSet               // guarded by h.mu; slots that a new child does not share
	attrs    map[string]Attr       // guarded by h.mu; of files that differ from the default
	removed  bool                  // guarded by h.mu
	movers   int                   // guarded by h.mu; attaches under way to here

	refusal atomic.Pointer[error] // why the last refused operation was refused
}

// Attr is owner and mode of one file.
type Attr struct {
	Owner
	Mode uint32
}

// Tree returns the hierarchy that c belongs to.
func (c *Container) Tree() *Hierarchy { return c.h }

// Hierarchy returns the name of c's hierarchy.
func (c *Container) Hierarchy() string { return c.h.name }

// Base returns the directory below which c's groups are made.
func (c *Container) Base() string { return c.h.base }

// ContainerID returns the container's number, unique in its hierarchy for its whole life.
func (c *Container) ContainerID() uint64 { return c.id }

// Join puts a process of the daemon's own into the groups that c has by now; see Member.
func (c *Container) Join(pid int) error {
	t, err := FindTask(pid)
	if err != nil {
		return err
	}
	defer t.Close()
	states := c.slots()
	for _, slot := range c.h.binding().leads {
		p, ok := c.h.sys.subsystems[slot].(Placer)
		if !ok || states[slot] == nil {
			continue
		}
		if err := p.Place(t, locationOf(states[slot].object), true); err != nil {
			return fmt.Errorf("%s: %w", c.h.sys.subsystems[slot].Name(), err)
		}
	}
	return nil
}

// Renew moves the members into c's state of s once more; see Renewer. Threads are moved one by one where they may be apart.
func (c *Container) Renew(s Subsystem, w Writer) error {
	slot := slices.Index(c.h.sys.subsystems, s)
	whole := c.h.binding().wholeOnly() != ""
	file := "tasks"
	if whole {
		file = "cgroup.procs"
	}
	tried := make(map[int]int)
	for changed := true; changed; { // else one that was not moved yet may have begotten another
		changed = false
		ids, err := c.ids(file)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if tried[id] == renewals {
				continue
			}
			did, err := c.renew(slot, id, whole, w)
			if err != nil && !errors.Is(err, ErrNoTask) {
				return err
			}
			if did {
				changed = true
				tried[id]++
			}
		}
	}
	return nil
}

// renewals is how often a member is moved that does not stay as it is then.
const renewals = 2

func (c *Container) renew(slot, id int, whole bool, w Writer) (changed bool, err error) {
	a, err := c.NewAttach(strconv.Itoa(id), whole, Writer{})
	if err != nil {
		return false, err
	}
	a.only, a.asker, a.writer.Owner = 1<<slot, w.TID, w.Owner
	st, err := a.task.Status()
	if err == nil {
		err = a.writer.mayMove(st)
	}
	if err != nil {
		a.Close()
		return false, a.refuse("", err)
	}
	err = a.run(nil)
	return !a.plan.empty(), err
}

// Sovereign returns the Sovereign object that c has by now; see Member.
func (c *Container) Sovereign() Object {
	for _, slot := range c.h.binding().slots {
		if _, ok := c.h.sys.subsystems[slot].(Sovereign); ok {
			return c.Object(slot)
		}
	}
	return nil
}

// Parent returns the container above, nil for the root.
func (c *Container) Parent() *Container { return c.parent }

// Name returns the last part of the path.
func (c *Container) Name() string {
	c.h.mu.RLock()
	defer c.h.mu.RUnlock()
	return c.name
}

// Path returns the path from the root of the tree, without a slash at its beginning.
func (c *Container) Path() string {
	c.h.mu.RLock()
	defer c.h.mu.RUnlock()
	return c.path()
}

func (c *Container) path() string {
	var parts []string
	for ; c.parent != nil; c = c.parent {
		parts = append(parts, c.name)
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/")
}

// Attr returns owner and mode of the directory.
func (c *Container) Attr() Attr {
	c.h.mu.RLock()
	defer c.h.mu.RUnlock()
	return Attr{c.owner, c.mode}
}

// FileAttr returns owner and mode of a control file: the container's owner and the given mode
// as long as nobody has changed them.
func (c *Container) FileAttr(file string, mode uint32) Attr {
	c.h.mu.RLock()
	defer c.h.mu.RUnlock()
	if a, ok := c.attrs[file]; ok {
		return a
	}
	return Attr{c.owner, mode}
}

// SetAttr changes owner and mode of the directory, for good. The files that have no owner of
// their own follow: to give a container away is to delegate it. Namespaces that would not let the new
// owner in are made anew, if they are as they were made (remake.go).
func (c *Container) SetAttr(a Attr) error {
	c.h.shape.Lock()
	defer c.h.shape.Unlock()
	old := c.Attr()
	var re remaking
	if a.Owner != old.Owner {
		var err error
		if re, err = c.h.remake(c); err != nil {
			return c.refuse("chown", err)
		}
		defer re.end()
	}
	i := intent{Op: opChown, Path: octets(c.Path()), ID: c.id, From: old, To: a, Anew: re.names(), Value: re.values}
	return c.h.change(i, func() error { return c.changeAttr(old, a, re) })
}

func (c *Container) changeAttr(old, a Attr, re remaking) error {
	path := c.Path()
	if a.Owner != old.Owner {
		if err := c.h.roster.SetOwner(path, a.Owner); err != nil {
			return c.refuse("chown", err)
		}
	}
	if a.Mode != old.Mode {
		if err := c.h.roster.SetMode(path, a.Mode); err != nil {
			return errors.Join(c.refuse("chmod", err), c.h.roster.SetOwner(path, old.Owner))
		}
	}
	c.setAttr(a)
	if err := re.run(old); err != nil {
		c.setAttr(old)
		return errors.Join(err, c.h.setRosterAttr(path, old))
	}
	return nil
}

func (c *Container) setAttr(a Attr) {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	c.owner, c.mode = a.Owner, a.Mode
}

// noteAttrs is the note of the files' own attributes: "name uid gid mode" a line.
const noteAttrs = "attrs"

// SetFileAttr changes owner and mode of a control file, for good.
func (c *Container) SetFileAttr(file string, a Attr) error {
	c.h.shape.Lock()
	defer c.h.shape.Unlock()
	c.h.mu.RLock()
	attrs := make(map[string]Attr, len(c.attrs)+1)
	for k, v := range c.attrs {
		attrs[k] = v
	}
	c.h.mu.RUnlock()
	attrs[file] = a
	if err := c.h.roster.SetNote(c.Path(), noteAttrs, formatAttrs(attrs)); err != nil {
		return c.refuse("chown", err)
	}
	c.h.mu.Lock()
	c.attrs = attrs
	c.h.mu.Unlock()
	return nil
}

func formatAttrs(attrs map[string]Attr) string {
	var lines []string
	for name, a := range attrs {
		lines = append(lines, fmt.Sprintf("%s %d %d %o", name, a.UID, a.GID, a.Mode))
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func parseAttrs(text string) (map[string]Attr, error) {
	var attrs map[string]Attr
	for line := range strings.Lines(text) {
		var name string
		var a Attr
		if _, err := fmt.Sscanf(line, "%s %d %d %o", &name, &a.UID, &a.GID, &a.Mode); err != nil {
			return nil, fmt.Errorf("note of attributes, line %q: %w", line, err)
		}
		if attrs == nil {
			attrs = make(map[string]Attr)
		}
		attrs[name] = a
	}
	return attrs, nil
}

// Child returns the child of that name, nil where there is none.
func (c *Container) Child(name string) *Container {
	c.h.mu.RLock()
	defer c.h.mu.RUnlock()
	return c.byName[name]
}

// ChildrenAfter returns up to n children with ids above id, ascending, and their names. As ids
// are never used again, a listing that goes on where it stopped misses none and repeats none.
func (c *Container) ChildrenAfter(id uint64, n int) (children []*Container, names []string) {
	c.h.mu.RLock()
	defer c.h.mu.RUnlock()
	i := sort.Search(len(c.children), func(i int) bool { return c.children[i].id > id })
	children = slices.Clone(c.children[i:min(i+n, len(c.children))])
	for _, child := range children {
		names = append(names, child.name)
	}
	return children, names
}

// maxChildren asks ChildrenAfter for all of them.
const maxChildren = math.MaxInt32

// Populated reports whether a task is in c or below it.
func (c *Container) Populated() (bool, error) {
	var b [16]byte
	n, err := c.read("tasks", b[:])
	if n > 0 || err != nil {
		return n > 0, err
	}
	children, _ := c.ChildrenAfter(0, maxChildren)
	for _, child := range children {
		populated, err := child.Populated()
		if populated || err != nil && !errors.Is(err, ErrRemoved) {
			return populated, err
		}
	}
	return false, nil
}

// ChildCount returns how many children c has.
func (c *Container) ChildCount() int {
	c.h.mu.RLock()
	defer c.h.mu.RUnlock()
	return len(c.children)
}

// Object returns the object of a bound slot, nil where the slot is not bound.
func (c *Container) Object(slot int) Object {
	c.h.mu.RLock()
	defer c.h.mu.RUnlock()
	if s := c.states.at(slot); s != nil {
		return s.object
	}
	return nil
}

// Owns reports whether the state in a slot was made for c.
func (c *Container) Owns(slot int) bool {
	c.h.mu.RLock()
	defer c.h.mu.RUnlock()
	return c.own&(1<<slot) != 0
}

// Admits returns an error unless w, who has c's file open, may change the state in a slot. A state that c shares with
// its parent is not given away with c: it takes the owner of the container it was made for.
func (c *Container) Admits(slot int, w Writer) error {
	if w.UID == 0 {
		return nil
	}
	c.h.mu.RLock()
	defer c.h.mu.RUnlock()
	if c.own&(1<<slot) != 0 {
		return nil // the file's mode has been asked
	}
	for ; c.parent != nil; c = c.parent {
		if c.own&(1<<slot) == 0 {
			continue
		}
		if c.owner.UID == w.UID {
			return nil
		}
		break
	}
	return ErrNotOwned
}

// Fresh returns the namespace subsystems that a new child gets for itself, sorted. The other
// bound ones it shares with its parent.
func (c *Container) Fresh() []string {
	c.h.mu.RLock()
	defer c.h.mu.RUnlock()
	return c.h.binding().namesOf(c.fresh)
}

// noteUnshare is the note of the subsystems that a child does not share, "-" for none.
const noteUnshare = "unshare"

// SetFresh changes what Fresh returns: words "uts -net +ipc" add, take away, add; a list whose
// words have no sign at all replaces it. ErrUnknown for a word that is no bound namespace.
func (c *Container) SetFresh(words []string) error {
	c.h.shape.Lock()
	defer c.h.shape.Unlock()
	b := c.h.binding()
	c.h.mu.RLock()
	fresh := c.fresh
	c.h.mu.RUnlock()
	if !slices.ContainsFunc(words, func(w string) bool { return w[0] == '+' || w[0] == '-' }) {
		fresh = 0
	}
	for _, w := range words {
		name := strings.TrimLeft(w, "+-")
		slot := b.namespaceSlot(name)
		switch {
		case slot < 0 || len(w)-len(name) > 1:
			return c.refuse("unshare", fmt.Errorf("%q: %w", w, ErrUnknown))
		case w[0] == '-':
			fresh &^= 1 << slot
		default:
			fresh |= 1 << slot
		}
	}
	if err := c.setFresh(fresh); err != nil {
		return c.refuse("unshare", err)
	}
	return nil
}

// setFresh changes it for good. The caller holds h.shape.
func (c *Container) setFresh(fresh slotSet) error {
	if err := c.h.roster.SetNote(c.Path(), noteUnshare, noteOf(c.h.binding().namesOf(fresh))); err != nil {
		return err
	}
	c.h.mu.Lock()
	c.fresh = fresh
	c.h.mu.Unlock()
	return nil
}

func noteOf(names []string) string {
	if len(names) == 0 {
		return "-"
	}
	return strings.Join(names, " ")
}

// read reads the beginning of a file of the roster.
func (c *Container) read(file string, buf []byte) (n int, err error) {
	err = c.reach(func(path string) error {
		n, err = c.h.roster.Read(path, file, buf, 0)
		return err
	})
	return n, err
}

// reach does f with c's path, again if there is nothing because c is just being renamed or removed.
func (c *Container) reach(f func(path string) error) error {
	for try := 1; ; try++ {
		err := f(c.Path())
		switch {
		case err == nil:
			return nil
		case c.isRemoved():
			return ErrRemoved
		case !errors.Is(err, fs.ErrNotExist) || try == reaches:
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// reaches is how often reach tries.
const reaches = 50

// members returns the ids of the threads in c.
func (c *Container) members() ([]int, error) { return c.ids("tasks") }

// ids returns what "tasks" or "cgroup.procs" has in it.
func (c *Container) ids(file string) ([]int, error) {
	text, err := c.list(file)
	if err != nil {
		return nil, err
	}
	var ids []int
	for line := range strings.Lines(text) {
		id, err := parseID(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// list returns the text of "tasks" or "cgroup.procs".
func (c *Container) list(file string) (text string, err error) {
	err = c.reach(func(path string) error {
		text, err = c.h.roster.ReadAll(path, file)
		return err
	})
	return text, err
}

// Notify returns the container's notify_on_release, SetNotify sets it. As in cgroup v1 the
// value is a number of which only zero or not matters.
func (c *Container) Notify() (bool, error) {
	var b [4]byte
	n, err := c.read("notify_on_release", b[:])
	return n > 0 && b[0] == '1', err
}

// SetNotify sets what Notify returns.
func (c *Container) SetNotify(on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	if err := c.h.roster.Write(c.Path(), "notify_on_release", []byte(value)); err != nil {
		return c.refuse("notify_on_release", err)
	}
	return nil
}

// The roster's root keeps the release agent, and the kernel runs it: as root, with the path of the
// container from the tree's root, in / and with only HOME and PATH set
// (cgroup1_release_agent in kernel/cgroup/cgroup-v1.c).
const releaseAgent = "release_agent"

// ReleaseAgent returns the program that is run when a container that wants it
// (notify_on_release) has become empty, "" if there is none.
func (c *Container) ReleaseAgent() (string, error) {
	buf := make([]byte, 4096)
	n, err := c.read(releaseAgent, buf)
	return strings.TrimSuffix(string(buf[:n]), "\n"), err
}

// SetReleaseAgent sets it, "" for none. c is the root.
func (c *Container) SetReleaseAgent(path string) error {
	err := error(nil)
	if path != "" {
		err = CheckReleaseAgent(path)
	}
	if err == nil {
		err = c.h.roster.Write(c.Path(), releaseAgent, []byte(path+"\n"))
	}
	if err != nil {
		return c.refuse(releaseAgent, err)
	}
	return nil
}

func (c *Container) isRemoved() bool {
	c.h.mu.RLock()
	defer c.h.mu.RUnlock()
	return c.removed
}

// enter keeps c from being removed while a task is on its way in; leave allows it again.
func (c *Container) enter() error {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	if c.removed {
		return ErrRemoved
	}
	c.movers++
	return nil
}

func (c *Container) leave() {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	c.movers--
}

// refuse wraps an error of an operation on c.
func (c *Container) refuse(op string, err error) error {
	return &Error{Op: op, Container: c.Path(), Err: err}
}

// Refusal returns why the last refused operation on c was refused, nil if none was. The number of
// the task that it was about is that of r's pid namespace, and left out if it has none there.
func (c *Container) Refusal(r Writer) error {
	kept := c.refusal.Load()
	if kept == nil {
		return nil
	}
	var e *Error
	if !errors.As(*kept, &e) || e.Task == 0 {
		return *kept
	}
	theirs := *e
	id, err := r.local(e.Task)
	if err != nil {
		id = 0
	}
	theirs.Task = id
	return &theirs
}

// SetRefusal keeps an error for Refusal.
func (c *Container) SetRefusal(err error) { c.refusal.Store(&err) }
