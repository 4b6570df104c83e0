package proxy

import (
	"fmt"
	"hash/maphash"
	"iter"
	"slices"
	"strings"
	"sync"
	"unsafe"
)

// slots is one pointer for each registered subsystem, nil where the kernel does not have it.
type slots [MaxSubsystems]*State

// tuple is what a proxy is: the number of a state for each slot, 0 for none.
type tuple [MaxSubsystems]uint32

// TaskProxy is the tuple of states of one or more tasks. It is canonical: tasks with equal
// tuples have the same *TaskProxy, found by the hash of the tuple.
// How many tasks use it is not counted here: the kernel says so when asked.
type TaskProxy struct {
	id     uint64
	table  *Table
	states tuple      // guarded by Table.mu; nothing once it is forgotten
	next   *TaskProxy // guarded by Table.mu; another one of the same hash
}

// ID numbers proxies in the order they were first seen. A number is not used twice.
func (p *TaskProxy) ID() uint64 { return p.id }

// State returns the state in a slot, nil where the kernel does not have the subsystem.
func (p *TaskProxy) State(slot int) *State {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	return p.table.numbers[p.states[slot]]
}

// Table holds every known state and every proxy, each once.
type Table struct {
	names []string // of the subsystems, by slot

	seed maphash.Seed

	mu      sync.Mutex
	states  map[ID]*State         // guarded by mu
	numbers []*State              // guarded by mu; by number, nil where none has it
	free    []uint32              // guarded by mu; numbers that none has any more
	proxies map[uint64]*TaskProxy // guarded by mu; by hash, the first of those that have it
	count   int                   // guarded by mu; of proxies
	lastID  uint64                // guarded by mu
	gone    int                   // guarded by mu; how many states have gone since the last sweep
}

// NewTable returns an empty table for subsystems with these names, in the order of slots.
func NewTable(names []string) *Table {
	return &Table{
		names: names, seed: maphash.MakeSeed(),
		states: make(map[ID]*State), numbers: make([]*State, 1), proxies: make(map[uint64]*TaskProxy),
	}
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
		s = &State{object: o, number: t.number()}
		t.states[o.ID()], t.numbers[s.number] = s, s
	}
	return s
}

// number returns a number that no state has.
func (t *Table) number() uint32 {
	if n := len(t.free); n > 0 {
		number := t.free[n-1]
		t.free = t.free[:n-1]
		return number
	}
	t.numbers = append(t.numbers, nil)
	return uint32(len(t.numbers) - 1)
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
		for p := range t.all() {
			if slices.Contains(p.states[:], stale.number) {
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
		t.numbers[s.number] = nil
		t.free = append(t.free, s.number)
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
	if t.gone < 64 || t.gone < t.count/2 {
		return
	}
	t.gone = 0
	for p := range t.all() {
		if slices.ContainsFunc(p.states[:], func(n uint32) bool { return n != 0 && t.numbers[n].gone }) {
			t.forget(p)
		}
	}
}

// all goes over the proxies, which may be forgotten meanwhile.
func (t *Table) all() iter.Seq[*TaskProxy] {
	return func(yield func(*TaskProxy) bool) {
		for _, p := range t.proxies {
			for next := p; p != nil; p = next {
				next = p.next
				if !yield(p) {
					return
				}
			}
		}
	}
}

func (t *Table) hash(states *tuple) uint64 {
	return maphash.Bytes(t.seed, unsafe.Slice((*byte)(unsafe.Pointer(states)), 4*len(t.names)))
}

// Find returns the canonical proxy of a tuple of objects, one for each slot.
func (t *Table) Find(objects []Object) *TaskProxy {
	t.mu.Lock()
	defer t.mu.Unlock()
	var states tuple
	for i, o := range objects {
		if o != nil {
			states[i] = t.intern(o).number
		}
	}
	hash := t.hash(&states)
	for p := t.proxies[hash]; p != nil; p = p.next {
		if p.states == states {
			return p
		}
	}
	t.lastID++
	p := &TaskProxy{id: t.lastID, table: t, states: states, next: t.proxies[hash]}
	for _, n := range states {
		if n != 0 {
			t.numbers[n].refs++
		}
	}
	t.proxies[hash] = p
	t.count++
	return p
}

// Retain drops every proxy that is not in use and returns how many are left.
func (t *Table) Retain(used map[*TaskProxy]int) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := range t.all() {
		if _, ok := used[p]; ok {
			continue
		}
		t.forget(p)
	}
	return t.count
}

func (t *Table) forget(p *TaskProxy) {
	hash := t.hash(&p.states)
	first := t.proxies[hash]
	for at := &first; *at != nil; at = &(*at).next {
		if *at == p {
			*at = p.next
			break
		}
	}
	if t.count--; first == nil {
		delete(t.proxies, hash)
	} else {
		t.proxies[hash] = first
	}
	for _, n := range p.states {
		t.unref(t.numbers[n])
	}
	p.states, p.next = tuple{}, nil
}

// Sizes returns the numbers of states and proxies in the table.
func (t *Table) Sizes() (states, proxies int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.states), t.count
}

// Describe renders a proxy used by n tasks: its number, n, and subsystem=state for each slot
// that is not empty.
func (t *Table) Describe(p *TaskProxy, n int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %d", p.id, n)
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, name := range t.names {
		if s := t.numbers[p.states[i]]; s != nil {
			fmt.Fprintf(&b, " %s=%s", name, s)
		}
	}
	return b.String()
}
