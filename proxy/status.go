package proxy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

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
			if slices.Contains(h.binding().slots, slot) {
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
