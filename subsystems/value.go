package subsystems

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// value is the subsystem of values that a task carries with it and hands down to its children: limits, priorities.
// The kernel groups nobody by them, so the groups are those of a cgroup v1 hierarchy without controllers: a
// container's group has a note of what its members shall have, its settings, which are some of the values or none.
//
// What a member had before, and shall have again when it leaves, is its home. The members of one home are in a
// directory of the container's group that has a note of it. So the kernel hands it down with the values, and forgets
// it when the last of them has ended.
//
// The root has no settings. Who enters it has its home back.
type value struct {
	controller
	items []item
	// threads is set where the threads of a process may differ, together where they are moved together all the same.
	threads, together bool

	self proxy.Subsystem // as it is registered

	mu       sync.Mutex          // held over the change of a task's values and home, and of settings
	settings map[string]settings // guarded by mu; by group, of those that have been asked for
	home     map[string]settings // guarded by mu; by the name of the home
}

// item is one of the values, a control file of its own.
type item struct {
	name string // the file's, without the subsystem's
	// read returns the value of a thread, as write takes it.
	read func(tid int) (string, error)
	// write sets it. nil: only the thread itself can, and call is how (caller).
	write func(tid int, text string) error
	call  func(text string) (proxy.Call, error)
	// parse returns how read would write what somebody has written to the file. An error wraps proxy.ErrValue.
	parse func(text string) (string, error)
	// admit returns why a writer may not ask for a value, as it could not have it by itself. nil: it may ask for any.
	admit func(w proxy.Writer, text string) error
	// check returns why a task cannot have one value instead of another, or could not go back then. nil: it can.
	check func(from, to string) error
}

// settings are values by the names of items.
type settings map[string]string

// String returns them as a note and as a name have them.
func (s settings) String() string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		words = append(words, name+"="+s[name])
	}
	return strings.Join(words, " ")
}

// settingsOf reads what String has written.
func settingsOf(text string) settings {
	s := make(settings)
	for word := range strings.FieldsSeq(text) {
		name, value, _ := strings.Cut(word, "=")
		s[name] = value
	}
	return s
}

// with returns other settings: these, but for those in more.
func (s settings) with(more settings) settings {
	all := make(settings)
	maps.Copy(all, s)
	maps.Copy(all, more)
	return all
}

// valueObject is a state: what a task has. Equal values are the same state; nobody makes or removes one.
type valueObject struct {
	id   proxy.ID
	text string
}

func (o *valueObject) ID() proxy.ID   { return o.id }
func (o *valueObject) String() string { return o.text }

// noDevice is set in the devices of states that are not in the kernel.
const noDevice = 1 << 63

func registerValue(v *value) { v.register(v) }

func registerCaller(c *caller) { c.register(c) }

func (v *value) register(self proxy.Subsystem) {
	v.self, v.layout = self, v1{}
	v.settings, v.home = make(map[string]settings), make(map[string]settings)
	proxy.Register(self)
}

func (v *value) Kind() string   { return proxy.KindValue }
func (v *value) Threaded() bool { return v.threads && !v.together }

// Probe leaves out what this kernel does not have.
func (v *value) Probe(proxy.Host) (string, error) {
	v.tree = &tree{label: hierarchyPrefix + v.name}
	var first error
	v.items = slices.DeleteFunc(v.items, func(i item) bool {
		_, err := i.read(unix.Getpid())
		first = errors.Join(first, err)
		return err != nil
	})
	if len(v.items) == 0 {
		return "", first
	}
	return "values", nil
}

// maxLabel is how long the name of a hierarchy can be (MAX_CGROUP_ROOT_NAMELEN in include/linux/cgroup-defs.h), and "name=".
const maxLabel = 62 + len("name=")

// labelOf names the hierarchy in which the groups of an rcfs hierarchy are.
func (v *value) labelOf(hierarchy string) string {
	label := hierarchyPrefix + v.name + "." + hierarchy
	if len(label) > maxLabel {
		label = hierarchyPrefix + v.name + "." + digest(hierarchy)
	}
	return label
}

// digest is a name for a text.
func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

func (v *value) Bind(root proxy.Place) (proxy.Object, error) {
	v.tree.label = v.labelOf(root.Hierarchy())
	o, err := v.controller.Bind(root)
	if errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("%w: %w", proxy.ErrFading, err)
	}
	return o, err
}

func (v *value) Unbind(root proxy.Place) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.settings)
	clear(v.home)
	return v.controller.Unbind(root)
}

// hierarchyPrefix is what the labels of the hierarchies of values begin with; a subsystem's name follows.
const hierarchyPrefix = "name=rcfs-"

// Fade has the kernel take down the hierarchy, like a roster's.
func (v *value) Fade() error {
	return (&tree{label: v.tree.label}).vanish(vanishPatience, func() bool { return v.tree.mounted() })
}

// homePrefix is what the names of homes begin with. No container's does.
const homePrefix = ".rcfs."

func (v *value) homes(group string) ([]string, error) {
	entries, err := v.tree.list(group)
	var homes []string
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), homePrefix) {
			homes = append(homes, path.Join(group, e.Name()))
		}
	}
	return homes, err
}

// Prepare gives a new group the settings of its parent.
func (v *value) Prepare(o, parent proxy.Object) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	s, err := v.settingsAt(parent.(*group).String())
	if err != nil || len(s) == 0 {
		return err
	}
	return v.tree.setNote(o.(*group).dir(), noteSettings, s.String())
}

func (v *value) Destroy(p proxy.Place) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.settings) // its name may be another's
	dir := groupDir(p)
	homes, err := v.homes(dir)
	if err != nil {
		return err
	}
	for _, home := range homes {
		err = errors.Join(err, v.tree.rmdir(home))
	}
	return errors.Join(err, v.controller.Destroy(p))
}

func (v *value) Rename(o proxy.Object, from, to string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.settings)
	return v.controller.Rename(o, from, to)
}

// Vacant is asked of every home.
func (v *value) Vacant(o proxy.Object) error {
	pids, err := v.Processes(o)
	if err == nil && len(pids) > 0 {
		err = fmt.Errorf("a task that was moved by hand is in %s: %w", o, proxy.ErrNotEmpty)
	}
	return err
}

// Processes returns those of every home, and those that have none.
func (v *value) Processes(o proxy.Object) ([]int, error) {
	return v.members(o.(*group).dir(), "cgroup.procs")
}

func (v *value) members(group, file string) ([]int, error) {
	homes, err := v.homes(group)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // somebody has removed it
	}
	if err != nil {
		return nil, err
	}
	var ids []int
	for _, dir := range append(homes, group) {
		text, err := v.tree.readAll(dir + "/" + file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for word := range strings.FieldsSeq(text) {
			id, err := strconv.Atoi(word)
			if err != nil {
				return nil, err
			}
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// Current is what t has of all the values.
func (v *value) Current(t *proxy.Task) (proxy.Object, error) {
	if !v.tree.mounted() {
		return nil, nil
	}
	var words []string
	for _, i := range v.items {
		text, err := i.read(t.TID)
		if err != nil {
			return nil, gone(err)
		}
		words = append(words, i.name+":"+text)
	}
	text := strings.Join(words, ";")
	sum := sha256.Sum256([]byte(v.name + "=" + text))
	id := proxy.ID{Dev: noDevice | binary.LittleEndian.Uint64(sum[:]), Ino: binary.LittleEndian.Uint64(sum[8:])}
	return &valueObject{id, text}, nil
}

// gone turns what the kernel says of a task that has ended.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w (%v)", proxy.ErrNoTask, err)
	}
	return err
}

// noteSettings and noteHome are the notes of groups and of homes. A group has noteChanging while its members get other
// values.
const (
	noteSettings = "settings"
	noteHome     = "home"
	noteChanging = "changing"
)

// Unsettled reports whether a daemon was killed while it gave the members other values.
func (v *value) Unsettled(o proxy.Object) (bool, error) {
	note, err := v.tree.note(o.(*group).dir(), noteChanging)
	return note != "", err
}

// Settle notes that they have them.
func (v *value) Settle(o proxy.Object) error {
	return v.tree.setNote(o.(*group).dir(), noteChanging, "")
}

// settingsAt returns the settings of a group. The caller holds mu.
func (v *value) settingsAt(group string) (settings, error) {
	group = below(group)
	if group == "." {
		return nil, nil
	}
	if s, ok := v.settings[group]; ok {
		return s, nil
	}
	text, err := v.tree.note(group, noteSettings)
	if err != nil {
		return nil, err
	}
	v.settings[group] = settingsOf(text)
	return v.settings[group], nil
}

// stand is where a thread is: in which group, and in which home of it, "" in none.
type stand struct{ group, home string }

func (s stand) dir() string { return below(path.Join(s.group, s.home)) }

// homeAt returns what is noted of a home, which its name is the digest of. The caller holds mu.
func (v *value) homeAt(at stand) (settings, error) {
	if at.home == "" {
		return nil, nil
	}
	if s, ok := v.home[at.home]; ok {
		return s, nil
	}
	text, err := v.tree.note(at.dir(), noteHome)
	if err != nil {
		return nil, err
	}
	v.home[at.home] = settingsOf(text)
	return v.home[at.home], nil
}

func (v *value) standOf(t *proxy.Task) (stand, error) {
	at, err := v.controller.Locate(t)
	if err != nil {
		return stand{}, err
	}
	if base := path.Base(at.Name); strings.HasPrefix(base, homePrefix) {
		return stand{path.Dir(at.Name), base}, nil
	}
	return stand{at.Name, ""}, nil
}

// Locate returns the group, and what t has of the values that are not as they are set there: it has another one, or a home of
// one that is not set, or none of one that is. It looks again where there is no such group, like Current of a controller.
func (v *value) Locate(t *proxy.Task) (proxy.Location, error) {
	for try := 1; ; try++ {
		at, err := v.locate(t)
		if !errors.Is(err, fs.ErrNotExist) || try == lookups {
			return at, err
		}
		time.Sleep(time.Millisecond)
		t.Forget()
	}
}

func (v *value) locate(t *proxy.Task) (proxy.Location, error) {
	at, err := v.standOf(t)
	if err != nil {
		return proxy.Location{}, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	wanted, err := v.settingsAt(at.group)
	if err != nil {
		return proxy.Location{}, err
	}
	home, err := v.homeAt(at)
	if err != nil {
		return proxy.Location{}, err
	}
	own := make(settings)
	for _, i := range v.items {
		text, isWanted := wanted[i.name]
		_, hasHome := home[i.name]
		if !isWanted && !hasHome {
			continue
		}
		have, err := i.read(t.TID)
		if err != nil {
			return proxy.Location{}, gone(err)
		}
		if have != text || isWanted != hasHome {
			own[i.name] = have
		}
	}
	return proxy.Location{Name: at.group, Own: own.String()}, nil
}

// Stops is true where a value changes.
func (v *value) Stops(t *proxy.Task, to proxy.Location) (bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	wanted, err := v.settingsAt(to.Name)
	if err != nil {
		return false, err
	}
	s, err := v.stepOf(t, to.Name, wanted.with(settingsOf(to.Own)))
	return s.writes(), err
}

// caller is the subsystem of values that a thread has to change itself.
type caller struct{ value }

// Changes returns the calls for that.
func (v *caller) Changes(t *proxy.Task, to proxy.Location) ([]proxy.Change, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	wanted, err := v.settingsAt(to.Name)
	if err != nil {
		return nil, err
	}
	s, err := v.stepOf(t, to.Name, wanted.with(settingsOf(to.Own)))
	if err != nil {
		return nil, err
	}
	var list []proxy.Change
	for _, c := range s.changes {
		do, err := c.call(c.to)
		if err != nil {
			return nil, err
		}
		undo, err := c.call(c.from)
		if err != nil {
			return nil, err
		}
		list = append(list, proxy.Change{Name: v.name + "." + c.name + " to " + c.to, Do: do, Undo: undo})
	}
	return list, nil
}

// Place gives t, or all threads of its process, the values set in a group, and back the others.
func (v *value) Place(t *proxy.Task, to proxy.Location, whole bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	wanted, err := v.settingsAt(to.Name)
	if err != nil {
		return err
	}
	return v.place(t, to.Name, wanted.with(settingsOf(to.Own)), whole)
}

// attempts is how often a thread is tried that is not as it should be after its step: it may be dead, or make its own changes.
const attempts = 2

// place makes the steps of all threads, again until there was nothing left to be done: a thread may have begotten another
// before its own.
func (v *value) place(t *proxy.Task, group string, wanted settings, whole bool) error {
	if !whole || !v.threads {
		t.Forget()
		s, err := v.stepOf(t, group, wanted)
		if err != nil {
			return err
		}
		return v.take(t, &s, whole)
	}
	var undo []func() error
	tried := make(map[int]int)
	for done := false; !done; {
		tids, err := t.Threads()
		if err == nil {
			done, err = v.placeAll(t, tids, tried, group, wanted, &undo)
		}
		if err != nil {
			for _, f := range slices.Backward(undo) {
				err = errors.Join(err, f())
			}
			return err
		}
	}
	return nil
}

// placeAll makes the steps of threads, and notes what takes them back. Done: there was nothing to be done.
//
// How often a thread was tried is counted by its id, and by the negative how often it was given back what it had.
func (v *value) placeAll(t *proxy.Task, tids []int, tried map[int]int, group string, wanted settings, undo *[]func() error) (done bool, err error) {
	var threads []*proxy.Task
	var steps []step
	apart := false
	for _, tid := range tids {
		th := t.Thread(tid)
		s, err := v.stepOf(th, group, wanted)
		if errors.Is(err, proxy.ErrNoTask) && len(tids) > 1 {
			continue
		}
		if err != nil {
			return false, err
		}
		threads, steps = append(threads, th), append(steps, s)
		apart = apart || s.from != steps[0].from || s.to != steps[0].to
	}
	if len(steps) == 0 {
		return false, proxy.ErrNoTask
	}
	given := false
	for i, th := range threads {
		s := &steps[i]
		if tried[-th.TID] == attempts || !s.gives() {
			continue
		}
		given = true
		tried[-th.TID]++
		err := v.write(th, s, true)
		*undo = append(*undo, func() error { return v.takeBack(th, s, false) })
		if err != nil && !errors.Is(err, proxy.ErrNoTask) {
			return false, err
		}
	}
	if given { // and whoever was born of one that had not its own values again, before they have no home any more
		return false, nil
	}
	if s := steps[0]; !apart && s.from != s.to { // all at once, and whoever is just being born
		if err := v.goHome(t, s.from, s.to, s.home, true); err != nil {
			return false, err
		}
		*undo = append(*undo, func() error { return v.goHome(t, s.to, s.from, s.before, true) })
		for i := range steps {
			steps[i].from = s.to
		}
	}
	done = true
	for i, th := range threads {
		s := &steps[i]
		if s.from == s.to && !s.writes() || tried[th.TID] == attempts {
			continue
		}
		done = false
		tried[th.TID]++
		err := v.take(th, s, false)
		if errors.Is(err, proxy.ErrNoTask) && len(tids) > 1 {
			continue
		}
		if err != nil {
			return false, err
		}
		*undo = append(*undo, func() error { return v.takeBack(th, s, false) })
	}
	return done, nil
}

// change is one value to be changed, back to what it was if nobody wants another one.
type change struct {
	item
	from, to string
	back     bool
}

// step is what becomes of a task: where it stands, with which home, and what changes.
type step struct {
	from, to     stand
	before, home settings
	changes      []change
	made         []change // as far as it has come
	gone         bool     // it has left its home
}

// stepOf finds out what becomes of a task in a group with those settings.
func (v *value) stepOf(t *proxy.Task, group string, wanted settings) (s step, err error) {
	if s.from, err = v.standOf(t); err != nil {
		return s, err
	}
	if s.before, err = v.homeAt(s.from); err != nil {
		return s, err
	}
	s.home = make(settings)
	for _, i := range v.items {
		old, hasHome := s.before[i.name]
		text, isWanted := wanted[i.name]
		if !hasHome && !isWanted {
			continue
		}
		have, err := i.read(t.TID)
		if err != nil {
			return s, gone(err)
		}
		if !hasHome {
			old = have
		}
		if isWanted {
			s.home[i.name] = old
		} else {
			text = old
		}
		if text == have {
			continue
		}
		if i.check != nil {
			if err := i.check(have, text); err != nil {
				return s, fmt.Errorf("%s.%s from %s to %s: %w", v.name, i.name, have, text, err)
			}
		}
		s.changes = append(s.changes, change{i, have, text, !isWanted})
	}
	s.to = stand{group, homeOf(s.home)}
	return s, nil
}

// writes reports whether there is something to be changed from outside.
func (s *step) writes() bool {
	return slices.ContainsFunc(s.changes, func(c change) bool { return c.write != nil })
}

// gives reports whether something comes back.
func (s *step) gives() bool {
	return slices.ContainsFunc(s.changes, func(c change) bool { return c.write != nil && c.back })
}

// take makes the step of a process or a thread, or nothing of it. What comes back does so before the home is left, where it is
// noted; what is wanted comes after it: who is born meanwhile has the home, and is found in the group.
func (v *value) take(t *proxy.Task, s *step, whole bool) error {
	err := v.write(t, s, true)
	if err == nil {
		err = v.goHome(t, s.from, s.to, s.home, whole)
		s.gone = err == nil
	}
	if err == nil {
		err = v.write(t, s, false)
	}
	if err != nil {
		err = errors.Join(err, v.takeBack(t, s, whole))
	}
	return err
}

// write changes those values that come back, or the others.
func (v *value) write(t *proxy.Task, s *step, back bool) error {
	for _, c := range s.changes {
		if c.write == nil || c.back != back {
			continue
		}
		if err := c.write(t.TID, c.to); err != nil {
			return v.failed(c, err)
		}
		s.made = append(s.made, c)
	}
	return nil
}

func (v *value) failed(c change, err error) error {
	return fmt.Errorf("%s.%s to %s: %w", v.name, c.name, c.to, gone(err))
}

// takeBack undoes as much of a step as was made.
func (v *value) takeBack(t *proxy.Task, s *step, whole bool) error {
	var errs []error
	undo := func(back bool) {
		for _, c := range slices.Backward(s.made) {
			if c.back == back {
				errs = append(errs, gone(c.write(t.TID, c.from)))
			}
		}
	}
	undo(false)
	if s.gone {
		errs = append(errs, v.goHome(t, s.to, s.from, s.before, whole))
	}
	undo(true)
	err := errors.Join(errs...)
	if errors.Is(err, proxy.ErrNoTask) {
		return nil
	}
	return err
}

// homeOf names a home.
func homeOf(s settings) string {
	if len(s) == 0 {
		return ""
	}
	return homePrefix + digest(s.String())
}

// goHome takes a task from one place to another, whose home it makes if it is not there.
func (v *value) goHome(t *proxy.Task, from, to stand, home settings, whole bool) error {
	if from.dir() == to.dir() {
		return nil
	}
	if to.home != "" {
		if err := v.makeHome(to, home); err != nil {
			return err
		}
	}
	if err := v.tree.place(t, to.dir(), whole); err != nil {
		return gone(err)
	}
	if from.home != "" {
		v.tree.rmdir(from.dir()) // EBUSY: it is still somebody's
	}
	return nil
}

func (v *value) makeHome(at stand, home settings) error {
	text, err := v.tree.note(at.dir(), noteHome)
	if err == nil && text != "" {
		return nil
	}
	if err := v.tree.mkdir(at.dir()); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return v.tree.setNote(at.dir(), noteHome, home.String())
}

func (v *value) Files() []proxy.File {
	var files []proxy.File
	for _, i := range v.items {
		files = append(files, proxy.File{
			Name: v.name + "." + i.name,
			Mode: 0o644,
			In:   proxy.InChild,
			Read: proxy.Text(func(o proxy.Object) (string, error) {
				v.mu.Lock()
				defer v.mu.Unlock()
				s, err := v.settingsAt(o.String())
				if text, ok := s[i.name]; ok {
					return text + "\n", err
				}
				return unset + "\n", err
			}),
			Write: func(o proxy.Object, data []byte, w proxy.Writer) error {
				text := strings.TrimSpace(string(data))
				if text != unset {
					var err error
					if text, err = i.parse(text); err != nil {
						return fmt.Errorf("%q: %w", data, err)
					}
					if i.admit != nil {
						if err := i.admit(w, text); err != nil {
							return err
						}
					}
				}
				return v.set(o.(*group), i.name, text, w)
			},
		})
	}
	return files
}

// unset is what the file of a value has that is not set: each member has what it had before.
const unset = "-"

// set sets a value of a group, and has the members moved to where they are, where they get it: all or none.
func (v *value) set(g *group, name, text string, w proxy.Writer) error {
	old, err := v.exchange(g, name, text)
	if err != nil {
		return err
	}
	members := g.in.(proxy.Renewer)
	if err = members.Renew(v.self, w); err != nil {
		_, e := v.exchange(g, name, old)
		err = errors.Join(err, e, members.Renew(v.self, proxy.Writer{}))
	}
	return errors.Join(err, v.Settle(g))
}

// exchange begins to set a value of a group, and returns what it was.
func (v *value) exchange(g *group, name, text string) (old string, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s, err := v.settingsAt(g.String())
	if err != nil {
		return "", err
	}
	old, ok := s[name]
	if !ok {
		old = unset
	}
	wanted := s.with(settings{name: text})
	if text == unset {
		delete(wanted, name)
	}
	if err := v.tree.setNote(g.dir(), noteChanging, "yes"); err != nil {
		return "", err
	}
	if err := v.tree.setNote(g.dir(), noteSettings, wanted.String()); err != nil {
		return "", errors.Join(err, v.Settle(g))
	}
	v.settings[g.dir()] = wanted
	return old, nil
}
