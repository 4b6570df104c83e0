package proxy

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

// slots is one pointer for each registered subsystem, nil where the kernel does not have it.
type slots [MaxSubsystems]*State

// TaskProxy is the tuple of states of one or more tasks. It is canonical: tasks with equal
// tuples have the same *TaskProxy, found through the tuple itself as the key of a map.
// How many tasks use it is not counted here: the kernel says so when asked.
type TaskProxy struct {
	id    uint64
	slots slots
}

// ID numbers proxies in the order they were first seen. A number is not used twice.
func (p *TaskProxy) ID() uint64 { return p.id }

// State returns the state in a slot, nil where the kernel does not have the subsystem.
func (p *TaskProxy) State(slot int) *State { return p.slots[slot] }

// Table holds every known state and every proxy, each once.
type Table struct {
	names []string // of the subsystems, by slot

	mu      sync.Mutex
	states  map[ID]*State        // guarded by mu
	proxies map[slots]*TaskProxy // guarded by mu
	lastID  uint64               // guarded by mu
	gone    int                  // guarded by mu; how many states have gone since the last sweep
}

// NewTable returns an empty table for subsystems with these names, in the order of slots.
func NewTable(names []string) *Table {
	return &Table{names: names, states: make(map[ID]*State), proxies: make(map[slots]*TaskProxy)}
}

// hold returns the state of o with one reference more.
func (t *Table) hold(o Object) *State {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.intern(o)
	s.refs++
	return s
}

func (t *Table) intern(o Object) *State {
	s := t.states[o.ID()]
	if s == nil {
		s = &State{object: o}
		t.states[o.ID()] = s
	}
	return s
}

// share is hold for a state that is held already.
func (t *Table) share(s *State) *State {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.refs++
	return s
}

// adopt is hold for an object that was made just now. A state of that identity in the table is
// one whose kernel object has gone and whose inode number has come again: no task can be in
// it, so the proxies that remember it go too.
func (t *Table) adopt(o Object) *State {
	t.mu.Lock()
	defer t.mu.Unlock()
	if stale := t.states[o.ID()]; stale != nil {
		for key, p := range t.proxies {
			if slices.Contains(key[:], stale) {
				t.forget(p)
			}
		}
	}
	s := t.intern(o)
	s.refs++
	return s
}

// drop gives references back.
func (t *Table) drop(states ...*State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range states {
		t.unref(s)
	}
}

func (t *Table) unref(s *State) {
	if s == nil {
		return
	}
	if s.refs--; s.refs == 0 {
		delete(t.states, s.object.ID())
	}
}

// retire gives back a reference to a state whose container was removed. No task is in it, so the
// proxies that remember it are of no use any more; they are dropped many at a time.
func (t *Table) retire(s *State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !s.gone {
		s.gone = true
		t.gone++
	}
	t.unref(s)
	if t.gone < 64 || t.gone < len(t.proxies)/2 {
		return
	}
	t.gone = 0
	for key, p := range t.proxies {
		if slices.ContainsFunc(key[:], func(s *State) bool { return s != nil && s.gone }) {
			t.forget(p)
		}
	}
}

// Find returns the canonical proxy of a tuple of objects, one for each slot.
func (t *Table) Find(objects []Object) *TaskProxy {
	t.mu.Lock()
	defer t.mu.Unlock()
	var key slots
	for i, o := range objects {
		if o != nil {
			key[i] = t.intern(o)
		}
	}
	if p := t.proxies[key]; p != nil {
		return p
	}
	t.lastID++
	p := &TaskProxy{id: t.lastID, slots: key}
	for _, s := range key {
		if s != nil {
			s.refs++
		}
	}
	t.proxies[key] = p
	return p
}

// Retain drops every proxy that is not in use and returns how many are left.
func (t *Table) Retain(used map[*TaskProxy]int) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.proxies {
		if _, ok := used[p]; ok {
			continue
		}
		t.forget(p)
	}
	return len(t.proxies)
}

func (t *Table) forget(p *TaskProxy) {
	delete(t.proxies, p.slots)
	for _, s := range p.slots {
		t.unref(s)
	}
}

// Sizes returns the numbers of states and proxies in the table.
func (t *Table) Sizes() (states, proxies int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.states), len(t.proxies)
}

// Describe renders a proxy used by n tasks: its number, n, and subsystem=state for each slot
// that is not empty.
func (t *Table) Describe(p *TaskProxy, n int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %d", p.id, n)
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, name := range t.names {
		if s := p.slots[i]; s != nil {
			fmt.Fprintf(&b, " %s=%s", name, s)
		}
	}
	return b.String()
}
