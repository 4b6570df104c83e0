package proxy

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"rcfs/proxy/inject"
)

// System is all that one daemon knows: the subsystems of this kernel, the table of proxies and
// the hierarchies.
type System struct {
	subsystems []Subsystem // by slot
	backends   []string    // by slot; "" where the kernel does not have it
	missing    []error     // by slot; why not
	table      *Table
	forks      *forks
	journal    *journal
	moves      moves
	seize      func(on *inject.Tracer, t *Task, whole bool) (tracer, error)
	log        *slog.Logger
	host       Host

	mu          sync.Mutex            // held over binding and unbinding, never over a wait for a target
	hierarchies map[string]*Hierarchy // guarded by mu

	strange map[string]string // hierarchies in the kernel that are not ours, and why not; "": another daemon's

	findingsMu sync.Mutex
	findings   []Finding // guarded by findingsMu; that nobody has asked for yet

	fading  sync.WaitGroup // rosters that the kernel is taking down
	fadings atomic.Int32   // how many they are
	faded   chan struct{}  // told when one has gone
}

// Open probes the registered subsystems and brings back the hierarchies that the kernel still
// holds from an earlier daemon.
func Open(host Host, log *slog.Logger) (*System, error) {
	host.Opening = openings.Add(1)
	s := &System{
		subsystems: Registered(), seize: seize, log: log, host: host,
		hierarchies: make(map[string]*Hierarchy), strange: make(map[string]string), faded: make(chan struct{}, 1),
	}
	var names []string
	for _, sub := range s.subsystems {
		backend, err := sub.Probe(host)
		if err != nil {
			backend = ""
			log.Debug("subsystem not available", "subsystem", sub.Name(), "reason", err)
		}
		s.backends = append(s.backends, backend)
		s.missing = append(s.missing, err)
		names = append(names, sub.Name())
	}
	s.table = NewTable(names)
	var err error
	if s.forks, err = openForks(); err != nil {
		return nil, err
	}
	if s.journal, err = openJournal(host.Run); err != nil {
		return nil, errors.Join(err, s.forks.close())
	}
	if err := s.restore(host); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Notes of a roster's root.
const (
	noteSubsystems = "subsystems" // the bound ones, as Source returns them
	noteBase       = "base"
)

func (s *System) restore(host Host) error {
	names, err := rosters.Names()
	if err != nil {
		return err
	}
	s.sweep(func(sw Sweeper) ([]string, error) { return sw.Processes(host) })
	for _, name := range names {
		h, err := s.restoreOne(name)
		if errors.Is(err, ErrForeign) {
			s.log.Warn("hierarchy of another daemon", "hierarchy", name)
			s.strange[name] = ""
			continue
		}
		if errors.Is(err, ErrFading) {
			continue // it has no containers any more
		}
		if err != nil {
			// Its containers stay in the kernel; the others need not suffer.
			s.log.Error("hierarchy not restored", "hierarchy", name, "error", err)
			s.strange[name] = "not restored: " + err.Error()
		}
		if err != nil || h == nil {
			continue
		}
		s.hierarchies[name] = h
		s.log.Info("hierarchy restored", "hierarchy", name, "subsystems", h.Subsystems(), "containers", h.Containers())
	}
	s.sweep(func(sw Sweeper) ([]string, error) { return sw.Pins(host, s.inContainer) })
	s.recover()
	for _, h := range s.all() {
		h.settle()
	}
	return nil
}

func (s *System) restoreOne(name string) (*Hierarchy, error) {
	r, err := rosters.Open(name)
	if err != nil {
		return nil, err
	}
	subsystems, err := r.Note("", noteSubsystems)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if subsystems == "" {
		// Made by a daemon that died before it wrote down what it was making, or by somebody else.
		children, err := r.Children("")
		if err == nil && len(children) > 0 {
			err = errors.New("nobody has written down what it is")
		}
		return nil, errors.Join(err, r.Close())
	}
	base, err := r.Note("", noteBase)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	bound, err := s.slots(strings.FieldsFunc(strings.TrimPrefix(subsystems, "none"), func(c rune) bool { return c == ',' }))
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	h := &Hierarchy{sys: s, name: name, base: base, roster: r}
	if err := errors.Join(h.hold(), h.open(bound)); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	later, err := h.resume()
	if err := errors.Join(err, h.restore(), later(), h.evict()); err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

// evict takes the daemon itself out of the container from within which it was started. It must
// not share the container's limits, nor keep it from being removed.
func (h *Hierarchy) evict() error {
	for _, pid := range h.sys.host.pids() {
		if err := h.evictOne(pid); err != nil && !errors.Is(noTask(err), ErrNoTask) { // a part of the daemon may have died
			return err
		}
	}
	return nil
}

func (h *Hierarchy) evictOne(pid int) error {
	t, err := openTask(pid)
	if err != nil {
		return err
	}
	defer t.Close()
	t.TGID = t.TID
	path, err := h.roster.Locate(t)
	if err != nil || path == "" {
		return err
	}
	root := h.root.slots()
	for _, slot := range h.binding().leads {
		if p, ok := h.sys.subsystems[slot].(Placer); ok {
			if err := p.Place(t, locationOf(root[slot].object), true); err != nil {
				return err
			}
		}
	}
	return h.roster.Place(t, "", true)
}

// Close ends the daemon's part. Hierarchies with containers stay in the kernel, those without
// any are taken apart.
func (s *System) Close() error {
	defer s.fading.Wait()
	s.journal.drain() // before a lock is held: moves wait for their targets
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for name, h := range s.hierarchies {
		h.shape.Lock() // views still answer, and a container may just be made
		if h.Containers() > 1 {
			errs = append(errs, h.close())
		} else {
			errs = append(errs, s.release(h))
		}
		h.shape.Unlock()
		delete(s.hierarchies, name)
	}
	return errors.Join(append(errs, s.forks.close(), s.journal.close())...)
}

// fadingPatience is how long Mount waits for a hierarchy of the same name to go.
const fadingPatience = 10 * time.Second

// Mount finds or makes the hierarchy that spec asks for and adds a view to it. ErrUnknown: the
// kernel does not have a subsystem; ErrBound: another hierarchy has it, or has the name;
// ErrFading: the kernel has not taken down an earlier one of that name within ten seconds.
func (s *System) Mount(spec Spec, v View) (*Hierarchy, error) {
	deadline := time.Now().Add(fadingPatience)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		h, err := s.mount(spec, v)
		if !errors.Is(err, ErrFading) || time.Now().After(deadline) {
			return h, err
		}
		time.Sleep(pause)
	}
}

func (s *System) mount(spec Spec, v View) (*Hierarchy, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reap()
	h, err := s.find(spec)
	if err != nil {
		return nil, err
	}
	if h == nil && spec.Existing {
		return nil, fmt.Errorf("%q: %w", spec.Name, ErrNoHierarchy)
	}
	if h == nil {
		if h, err = s.make(spec); err != nil {
			return nil, err
		}
	}
	if spec.ReleaseAgent != "" {
		if err := h.root.SetReleaseAgent(spec.ReleaseAgent); err != nil {
			s.reap()
			return nil, err
		}
	}
	h.views = append(h.views, v)
	return h, nil
}

// Extend binds the subsystems of spec, too, to a hierarchy without containers. Those that are bound
// already do not matter. ErrNotEmpty: it has containers; ErrRemoved: it has gone; ErrValue: spec has
// another name or base than h; else as Mount.
func (s *System) Extend(h *Hierarchy, spec Spec) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h.shape.Lock()
	defer h.shape.Unlock()
	if s.hierarchies[h.name] != h {
		return ErrRemoved
	}
	if spec.Name != "" && spec.Name != h.name {
		return fmt.Errorf("name %q of hierarchy %q: %w", spec.Name, h.name, ErrValue)
	}
	if spec.Base != "" && spec.Base != h.base {
		return fmt.Errorf("base %q where it is %q: %w", spec.Base, h.base, ErrValue)
	}
	if err := s.extend(h, spec); err != nil {
		return err
	}
	if spec.ReleaseAgent != "" {
		return h.root.SetReleaseAgent(spec.ReleaseAgent)
	}
	return nil
}

func (s *System) extend(h *Hierarchy, spec Spec) error {
	var more []int
	if len(spec.Subsystems) > 0 || spec.All {
		var err error
		if more, err = s.wanted(spec); err != nil {
			return err
		}
	}
	old := h.binding()
	more = slices.DeleteFunc(more, func(slot int) bool { return slices.Contains(old.slots, slot) })
	if len(more) == 0 {
		return nil
	}
	if h.Containers() > 1 {
		return h.root.refuse("remount", ErrNotEmpty)
	}
	if err := s.free(more, h); err != nil {
		return err
	}
	// A daemon that dies here leaves more written down than bound. The next one binds it.
	if err := h.roster.SetNote("", noteSubsystems, source(s.names(slices.Concat(old.slots, more)))); err != nil {
		return err
	}
	if err := h.bind(more); err != nil {
		return errors.Join(err, h.roster.SetNote("", noteSubsystems, source(old.names())))
	}
	s.log.Info("hierarchy extended", "hierarchy", h.name, "subsystems", h.Subsystems())
	fresh := h.root.fresh
	if spec.everything() {
		fresh &^= h.binding().demanding &^ old.demanding
	}
	if err := h.root.setFresh(fresh); err != nil {
		// They are bound; what new children share by default is not worth unbinding them.
		s.log.Error("what children share is not written down", "hierarchy", h.name, "error", err)
	}
	return nil
}

// Resume adds a view to a hierarchy that was there when the system was opened: the view was another process's
// before. ErrRemoved: it was not.
func (s *System) Resume(name string, v View) (*Hierarchy, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.hierarchies[name]
	if h == nil {
		return nil, fmt.Errorf("hierarchy %q: %w", name, ErrRemoved)
	}
	h.views = append(h.views, v)
	return h, nil
}

// Resumed says that there are no more views to Resume. What nobody sees, and has no containers, is taken apart.
func (s *System) Resumed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reap()
}

// Unmount takes a view away. A hierarchy without views and containers is taken apart.
func (s *System) Unmount(h *Hierarchy, v View) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h.views = slices.DeleteFunc(h.views, func(o View) bool { return o == v })
	s.reap()
}

// Idle reports whether there is no hierarchy at all, nor one that the kernel is taking down.
func (s *System) Idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.hierarchies) == 0 && s.fadings.Load() == 0
}

// Faded tells when the kernel has taken down a hierarchy, and Idle may answer otherwise.
func (s *System) Faded() <-chan struct{} { return s.faded }

// reap takes apart the hierarchies that nobody sees and that have no containers. Views are
// asked, since the kernel tells the daemon of an unmount only after umount(8) has returned.
func (s *System) reap() {
	for name, h := range s.hierarchies {
		h.views = slices.DeleteFunc(h.views, func(v View) bool { return !v.Alive() })
		if len(h.views) > 0 || h.Containers() > 1 {
			continue
		}
		if err := s.release(h); err != nil {
			s.log.Error("hierarchy not taken apart cleanly", "hierarchy", name, "error", err)
		}
		delete(s.hierarchies, name)
		s.log.Info("hierarchy removed", "hierarchy", name)
	}
}

// holder is a directory of the roster that is no container. The kernel forgets a hierarchy that is mounted
// nowhere and has no directories; with it, a daemon that is killed leaves word of what was bound.
const holder = reserved

// hold has the kernel keep the roster whatever becomes of the daemon. It is called before anything is bound.
func (h *Hierarchy) hold() error {
	_, err := h.roster.Entry(holder)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = h.roster.Create(holder, Owner{})
	}
	return err
}

// letGo takes hold back, when nothing is bound any more.
func (h *Hierarchy) letGo() error { return h.roster.Remove(holder) }

// close leaves the hierarchy to the kernel and the next daemon.
func (h *Hierarchy) close() error {
	var errs []error
	for _, slot := range h.binding().slots {
		if c, ok := h.sys.subsystems[slot].(Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(append(errs, h.roster.Close())...)
}

// release takes a hierarchy apart. Its subsystems are free at once; the kernel takes its time for
// the roster.
func (s *System) release(h *Hierarchy) error {
	root := h.root.slots()
	s.journal.forget(h.name)
	err := errors.Join(h.unbind(h.binding().slots, &root), h.letGo())
	s.fadings.Add(1)
	s.fading.Go(func() {
		if err := h.roster.Close(); err != nil {
			s.log.Error("roster not taken down", "hierarchy", h.name, "error", err)
		}
		for _, slot := range h.binding().slots {
			if f, ok := s.subsystems[slot].(Fader); ok {
				if err := f.Fade(); err != nil {
					s.log.Error("subsystem not taken down", "hierarchy", h.name, "subsystem", s.subsystems[slot].Name(), "error", err)
				}
			}
		}
		s.fadings.Add(-1)
		select {
		case s.faded <- struct{}{}:
		default: // it is told already
		}
	})
	return err
}

// find returns the existing hierarchy that spec means, nil where it has to be made.
func (s *System) find(spec Spec) (*Hierarchy, error) {
	h, err := s.same(spec)
	if h != nil && spec.Base != "" && spec.Base != h.base {
		return nil, fmt.Errorf("base %q: hierarchy %q: %w with base %q%s", spec.Base, h.name, ErrBound, h.base, h.mounted())
	}
	return h, err
}

// same is find, whatever the base.
func (s *System) same(spec Spec) (*Hierarchy, error) {
	if spec.Name != "" && len(spec.Subsystems) == 0 && !spec.All && !spec.None {
		return s.hierarchies[spec.Name], nil
	}
	bound, err := s.wanted(spec)
	if err != nil {
		return nil, err
	}
	if h := s.hierarchies[spec.Name]; h != nil {
		if !slices.Equal(h.binding().slots, bound) {
			return nil, fmt.Errorf("name %q: %w by a hierarchy of %s%s", spec.Name, ErrBound, h.Source(), h.mounted())
		}
		return h, nil
	}
	if spec.Name == "" {
		for _, h := range s.hierarchies {
			if len(bound) > 0 && slices.Equal(h.binding().slots, bound) {
				return h, nil
			}
		}
	}
	return nil, nil
}

// free refuses when a slot, or a kernel hierarchy that it lives in, is bound by a hierarchy
// other than except.
func (s *System) free(bound []int, except *Hierarchy) error {
	for _, slot := range bound {
		for _, h := range s.hierarchies {
			if h == except {
				continue
			}
			for _, other := range h.binding().slots {
				if !sameTree(s.subsystems[slot], s.subsystems[other]) {
					continue
				}
				what := fmt.Sprintf("%q", s.subsystems[slot].Name())
				if slot != other {
					what += fmt.Sprintf(" (the kernel keeps it together with %q)", s.subsystems[other].Name())
				}
				return fmt.Errorf("%s: %w by hierarchy %q%s", what, ErrBound, h.name, h.mounted())
			}
		}
	}
	return nil
}

// mounted says where h can be seen.
func (h *Hierarchy) mounted() string {
	if len(h.views) == 0 {
		return ", which is not mounted but has containers"
	}
	var where []string
	for _, v := range h.views {
		where = append(where, v.Where())
	}
	return " mounted on " + strings.Join(where, ", ")
}

// wanted returns the slots that spec asks for.
func (s *System) wanted(spec Spec) ([]int, error) {
	if spec.None {
		return nil, nil
	}
	if !spec.everything() {
		return s.slots(spec.Subsystems)
	}
	var bound []int
	for slot, backend := range s.backends {
		if backend != "" {
			bound = append(bound, slot)
		}
	}
	return bound, nil
}

func (s *System) slots(names []string) ([]int, error) {
	var bound []int
	for _, name := range names {
		slot := slices.IndexFunc(s.subsystems, func(sub Subsystem) bool { return sub.Name() == name })
		if slot < 0 {
			return nil, fmt.Errorf("%q: %w", name, ErrUnknown)
		}
		if err := s.missing[slot]; err != nil {
			return nil, fmt.Errorf("%q: %w on this kernel: %w", name, ErrUnknown, err)
		}
		if !slices.Contains(bound, slot) {
			bound = append(bound, slot)
		}
	}
	slices.Sort(bound)
	return bound, nil
}

// names returns the names of subsystems, sorted.
func (s *System) names(bound []int) []string {
	var names []string
	for _, slot := range bound {
		names = append(names, s.subsystems[slot].Name())
	}
	slices.Sort(names)
	return names
}

func (s *System) make(spec Spec) (_ *Hierarchy, err error) {
	bound, err := s.wanted(spec)
	if err != nil {
		return nil, err
	}
	if err := s.free(bound, nil); err != nil {
		return nil, err
	}
	names := s.names(bound)
	h := &Hierarchy{sys: s, name: spec.Name, base: spec.Base}
	if h.base == "" {
		h.base = DefaultBase
	}
	if h.name == "" {
		name := defaultName(names, spec.All)
		h.name = name
		for n := 2; s.hierarchies[h.name] != nil; n++ { // somebody has given it to another set
			h.name = fmt.Sprintf("%s.%d", name, n)
		}
	}
	if h.roster, err = rosters.Open(h.name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.roster.Close())
		}
	}()
	children, err := h.roster.Children("")
	if err != nil {
		return nil, err
	}
	if len(children) > 0 {
		return nil, fmt.Errorf("name %q: %w by a hierarchy that this rcfsd has not restored", h.name, ErrBound)
	}
	if err := h.roster.SetNote("", noteBase, h.base); err != nil {
		return nil, err
	}
	if err := h.roster.SetNote("", noteSubsystems, source(names)); err != nil {
		return nil, err
	}
	if err := h.hold(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.letGo())
		}
	}()
	if err := h.open(bound); err != nil {
		return nil, err
	}
	if spec.everything() {
		if err := h.shareDemanding(); err != nil {
			root := h.root.slots()
			return nil, errors.Join(err, h.unbind(bound, &root))
		}
	}
	s.hierarchies[h.name] = h
	s.log.Info("hierarchy made", "hierarchy", h.name, "subsystems", h.Subsystems())
	return h, nil
}
