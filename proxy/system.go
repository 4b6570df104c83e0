package proxy

import (
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
)

// System is all that one daemon knows: the subsystems of this kernel, the table of proxies and
// the hierarchies.
type System struct {
	subsystems []Subsystem // by slot
	backends   []string    // by slot; "" where the kernel does not have it
	missing    []error     // by slot; why not
	table      *Table
	forks      *forks
	moves      moves
	log        *slog.Logger

	mu          sync.Mutex            // held over binding and unbinding, never over a wait for a target
	hierarchies map[string]*Hierarchy // guarded by mu
}

// Open probes the registered subsystems and brings back the hierarchies that the kernel still
// holds from an earlier daemon.
func Open(host Host, log *slog.Logger) (*System, error) {
	s := &System{subsystems: Registered(), log: log, hierarchies: make(map[string]*Hierarchy)}
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
	if err := s.restore(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Notes of a roster's root.
const (
	noteSubsystems = "subsystems" // the bound ones, separated by commas; "none" for none
	noteBase       = "base"
)

func (s *System) restore() error {
	names, err := rosters.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		h, err := s.restoreOne(name)
		if errors.Is(err, ErrForeign) {
			s.log.Warn("hierarchy of another daemon", "hierarchy", name)
			continue
		}
		if err != nil {
			// Its containers stay in the kernel; the others need not suffer.
			s.log.Error("hierarchy not restored", "hierarchy", name, "error", err)
		}
		if err != nil || h == nil {
			continue
		}
		s.hierarchies[name] = h
		s.log.Info("hierarchy restored", "hierarchy", name, "subsystems", h.Subsystems(), "containers", h.Containers())
	}
	s.reap()
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
		// Made by a daemon that died before it wrote down what it was making.
		return nil, r.Close()
	}
	base, err := r.Note("", noteBase)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	bound, err := s.slots(strings.FieldsFunc(strings.TrimPrefix(subsystems, "none"), func(c rune) bool { return c == ',' }))
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	h := &Hierarchy{sys: s, name: name, base: base, bound: bound, roster: r}
	if err := h.bind(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if err := errors.Join(h.restore(), h.evict()); err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

// evict takes the daemon itself out of the container from within which it was started. It must
// not share the container's limits, nor keep it from being removed.
func (h *Hierarchy) evict() error {
	t, err := openTask(os.Getpid())
	if err != nil {
		return err
	}
	defer t.Close()
	t.TGID = t.TID
	path, err := h.roster.Locate(t)
	if err != nil || path == "" {
		return err
	}
	for _, slot := range h.leads {
		if p, ok := h.sys.subsystems[slot].(Placer); ok {
			if err := p.Place(t, h.root.states[slot].object, true); err != nil {
				return err
			}
		}
	}
	return h.roster.Place(t, "", true)
}

// Close ends the daemon's part. Hierarchies with containers stay in the kernel, those without
// any are taken apart.
func (s *System) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for name, h := range s.hierarchies {
		if h.Containers() > 1 {
			errs = append(errs, h.close())
		} else {
			errs = append(errs, h.release())
		}
		delete(s.hierarchies, name)
	}
	return errors.Join(append(errs, s.forks.close())...)
}

// Spec is what a mount asks for.
type Spec struct {
	Subsystems []string // names; empty with All or None, or where only a name is given
	All        bool     // every subsystem that the kernel has
	None       bool     // a tree without subsystems
	Name       string   // of the hierarchy; "" derives it from the subsystems
	// ReleaseAgent is a program that is run with the path of a container that has become empty,
	// if it asks for it; it replaces the one that the hierarchy has. "" leaves it.
	ReleaseAgent string
	Base         string // where rcfs's groups are made; "" is DefaultBase
}

// DefaultBase is the directory in each kernel hierarchy below which rcfs makes its groups.
const DefaultBase = "rcfs"

// DefaultSource is what a mount of a hierarchy without subsystems shows as its source.
const DefaultSource = "none"

// Mount finds or makes the hierarchy that spec asks for and adds a view to it. ErrUnknown: the
// kernel does not have a subsystem; ErrBound: another hierarchy has it, or has the name.
func (s *System) Mount(spec Spec, v View) (*Hierarchy, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reap()
	h, err := s.find(spec)
	if err != nil {
		return nil, err
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

// Unmount takes a view away. A hierarchy without views and containers is taken apart.
func (s *System) Unmount(h *Hierarchy, v View) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h.views = slices.DeleteFunc(h.views, func(o View) bool { return o == v })
	s.reap()
}

// Idle reports whether there is no hierarchy at all.
func (s *System) Idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.hierarchies) == 0
}

// reap takes apart the hierarchies that nobody sees and that have no containers. Views are
// asked, since the kernel tells the daemon of an unmount only after umount(8) has returned.
func (s *System) reap() {
	for name, h := range s.hierarchies {
		h.views = slices.DeleteFunc(h.views, func(v View) bool { return !v.Alive() })
		if len(h.views) > 0 || h.Containers() > 1 {
			continue
		}
		if err := h.release(); err != nil {
			s.log.Error("hierarchy not taken apart cleanly", "hierarchy", name, "error", err)
		}
		delete(s.hierarchies, name)
		s.log.Info("hierarchy removed", "hierarchy", name)
	}
}

// close leaves the hierarchy to the kernel and the next daemon.
func (h *Hierarchy) close() error {
	var errs []error
	for _, slot := range h.bound {
		if c, ok := h.sys.subsystems[slot].(Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(append(errs, h.roster.Close())...)
}

func (h *Hierarchy) release() error { return errors.Join(h.unbind(h.bound), h.roster.Close()) }

// find returns the existing hierarchy that spec means, nil where it has to be made.
func (s *System) find(spec Spec) (*Hierarchy, error) {
	if spec.Name != "" && len(spec.Subsystems) == 0 && !spec.All && !spec.None {
		return s.hierarchies[spec.Name], nil
	}
	bound, err := s.wanted(spec)
	if err != nil {
		return nil, err
	}
	if h := s.hierarchies[spec.Name]; h != nil {
		if !slices.Equal(h.bound, bound) {
			return nil, fmt.Errorf("name %q: %w by a hierarchy of %s%s", spec.Name, ErrBound, h.Source(), h.mounted())
		}
		return h, nil
	}
	if spec.Name == "" {
		for _, h := range s.hierarchies {
			if len(bound) > 0 && slices.Equal(h.bound, bound) {
				return h, nil
			}
		}
	}
	return nil, s.free(bound)
}

// free refuses when a slot, or a kernel hierarchy that it lives in, is bound already.
func (s *System) free(bound []int) error {
	for _, slot := range bound {
		for _, h := range s.hierarchies {
			for _, other := range h.bound {
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

// Source is what findmnt shows as the mount's source: the bound subsystems.
func (h *Hierarchy) Source() string {
	if len(h.bound) == 0 {
		return DefaultSource
	}
	return strings.Join(h.Subsystems(), ",")
}

// everything reports whether spec names no subsystem, and so means all of them.
func (spec Spec) everything() bool { return !spec.None && (spec.All || len(spec.Subsystems) == 0) }

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

func (s *System) make(spec Spec) (_ *Hierarchy, err error) {
	bound, err := s.wanted(spec)
	if err != nil {
		return nil, err
	}
	if err := s.free(bound); err != nil {
		return nil, err
	}
	h := &Hierarchy{sys: s, name: spec.Name, base: spec.Base, bound: bound}
	if h.base == "" {
		h.base = DefaultBase
	}
	if h.name == "" {
		h.name = defaultName(h.Subsystems(), spec.All)
	}
	if h.roster, err = rosters.Open(h.name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.roster.Close())
		}
	}()
	if err := h.roster.SetNote("", noteBase, h.base); err != nil {
		return nil, err
	}
	if err := h.roster.SetNote("", noteSubsystems, h.Source()); err != nil {
		return nil, err
	}
	if err := h.bind(); err != nil {
		return nil, err
	}
	if spec.everything() {
		if err := h.shareDemanding(); err != nil {
			return nil, errors.Join(err, h.unbind(h.bound))
		}
	}
	s.hierarchies[h.name] = h
	s.log.Info("hierarchy made", "hierarchy", h.name, "subsystems", h.Subsystems())
	return h, nil
}

// The kernel takes 63 bytes as the name of a hierarchy (MAX_CGROUP_ROOT_NAMELEN), of which the
// roster needs some for itself.
const maxName = 58

// defaultName names a hierarchy after its subsystems.
func defaultName(names []string, all bool) string {
	name := strings.Join(names, "-")
	switch {
	case all:
		return "all"
	case len(name) > maxName:
		sum := fnv.New64a()
		sum.Write([]byte(name))
		return fmt.Sprintf("set-%x", sum.Sum64())
	}
	return name
}

// CheckName reports whether a hierarchy may have that name: [A-Za-z0-9_.-], as cgroup v1 has it
// for name= (cgroup1_parse_param), and short enough for the kernel.
func CheckName(name string) error {
	ok := name != "" && len(name) <= maxName
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-')
	}
	if !ok {
		return fmt.Errorf("name %q: %w", name, ErrName)
	}
	return nil
}

// CheckReleaseAgent reports whether path can be a release agent: absolute, one line, and not
// longer than the kernel keeps (PATH_MAX in cgroup_release_agent_write).
func CheckReleaseAgent(path string) error {
	if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "\n\x00") || len(path) >= 4096 {
		return fmt.Errorf("release agent %q: %w", path, ErrValue)
	}
	return nil
}

// SubsystemInfo is a line of rcfs.subsystems.
type SubsystemInfo struct {
	Name       string
	Hierarchy  string // "" while it is not bound
	Containers int    // of that hierarchy
	Kind       string
	Backend    string // "" where the kernel does not have it
}

// Subsystems describes all registered subsystems, sorted by name.
func (s *System) Subsystems() []SubsystemInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	var infos []SubsystemInfo
	for slot, sub := range s.subsystems {
		info := SubsystemInfo{Name: sub.Name(), Kind: sub.Kind(), Backend: s.backends[slot]}
		for _, h := range s.hierarchies {
			if slices.Contains(h.bound, slot) {
				info.Hierarchy, info.Containers = h.name, h.Containers()
			}
		}
		infos = append(infos, info)
	}
	return infos
}

// HierarchyInfo describes a hierarchy for rcfs status.
type HierarchyInfo struct {
	Name       string
	Subsystems []string
	Mounts     []string
	Containers int // without the root
	Tasks      int // in containers other than the root
}

// Status describes the hierarchies, sorted by name, and the proxies of all tasks that are in a
// container other than a root. Proxies that no such task has are dropped from the table.
type Status struct {
	Hierarchies []HierarchyInfo
	Proxies     []string // as rcfs.proxies has them
	States      int      // in the table
}

// Status takes stock.
func (s *System) Status() (Status, error) {
	var st Status
	used := make(map[*TaskProxy]int)
	counted := make(map[int]bool)
	for _, h := range s.all() {
		info := HierarchyInfo{Name: h.name, Subsystems: h.Subsystems(), Containers: h.Containers() - 1}
		s.mu.Lock()
		for _, v := range h.views {
			info.Mounts = append(info.Mounts, v.Where())
		}
		s.mu.Unlock()
		for _, c := range h.list() {
			if c == h.root {
				continue
			}
			tids, err := c.members()
			if errors.Is(err, ErrRemoved) {
				continue
			}
			if err != nil {
				return st, err
			}
			info.Tasks += len(tids)
			tids = slices.DeleteFunc(tids, func(tid int) bool { return counted[tid] })
			for _, tid := range tids {
				counted[tid] = true
			}
			if err := s.count(tids, used); err != nil {
				return st, err
			}
		}
		st.Hierarchies = append(st.Hierarchies, info)
	}
	s.table.Retain(used)
	st.Proxies = s.describe(used)
	st.States, _ = s.table.Sizes()
	return st, nil
}

func (s *System) all() []*Hierarchy {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*Hierarchy
	for _, h := range s.hierarchies {
		list = append(list, h)
	}
	slices.SortFunc(list, func(a, b *Hierarchy) int { return strings.Compare(a.name, b.name) })
	return list
}

func (h *Hierarchy) list() []*Container {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var list []*Container
	for _, c := range h.byID {
		list = append(list, c)
	}
	return list
}

// Proxies returns a line for each canonical proxy with a task in c: number, tasks,
// subsystem=state …
func (c *Container) Proxies() ([]string, error) {
	tids, err := c.members()
	if err != nil {
		return nil, err
	}
	used := make(map[*TaskProxy]int)
	if err := c.h.sys.count(tids, used); err != nil {
		return nil, err
	}
	return c.h.sys.describe(used), nil
}

// count finds the proxies of tasks. Those that have gone meanwhile do not count.
func (s *System) count(tids []int, used map[*TaskProxy]int) error {
	for _, tid := range tids {
		p, err := s.proxyOf(tid)
		if errors.Is(err, ErrNoTask) {
			continue
		}
		if err != nil {
			return err
		}
		used[p]++
	}
	return nil
}

func (s *System) proxyOf(tid int) (*TaskProxy, error) {
	t, err := openTask(tid)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	objects, err := s.current(t)
	if err != nil {
		return nil, err
	}
	return s.table.Find(objects), nil
}

// current finds the object that t is in, for every subsystem that the kernel has.
func (s *System) current(t *Task) ([]Object, error) {
	objects := make([]Object, len(s.subsystems))
	for slot, sub := range s.subsystems {
		if s.backends[slot] == "" {
			continue
		}
		o, err := sub.Current(t)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", sub.Name(), err)
		}
		objects[slot] = o
	}
	return objects, nil
}

func (s *System) describe(used map[*TaskProxy]int) []string {
	var list []*TaskProxy
	for p := range used {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *TaskProxy) int { return int(a.id) - int(b.id) })
	var lines []string
	for _, p := range list {
		lines = append(lines, s.table.Describe(p, used[p]))
	}
	return lines
}
