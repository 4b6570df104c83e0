package proxy

import (
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"
)

// ID is what the kernel itself tells one state from another by: the device and the inode
// number of a cgroup directory or of a namespace file (namespaces(7): two processes are in
// the same namespace if these two are the same). Paths and pids are never identities.
type ID struct {
	Dev, Ino uint64
}

// IDOf returns the identity of what stat(2) has described.
func IDOf(st *unix.Stat_t) ID { return ID{Dev: uint64(st.Dev), Ino: st.Ino} }

func (id ID) String() string { return fmt.Sprintf("%d:%d", id.Dev, id.Ino) }

// Object is what a subsystem keeps for a state: enough to find a cgroup directory or a
// namespace again. Objects are immutable and hold no descriptor.
type Object interface {
	// ID returns the identity of the kernel's object.
	ID() ID
	// String names the object as a person looks for it: a cgroup path, "uts:[4026531838]".
	String() string
}

// State is one container's, or one foreign task's, share of a subsystem. There is one
// *State for each ID, so two pointers are equal if the kernel's objects are.
// Subsystems that live in one kernel hierarchy (cpu and cpuacct mounted together, everything
// on cgroup v2) share their states.
type State struct {
	object Object
	number uint32 // in its table
	refs   int    // guarded by Table.mu; holders are proxies and containers
	gone   bool   // guarded by Table.mu; its container was removed
}

// Object returns the subsystem's object behind s.
func (s *State) Object() Object { return s.object }

// slotSet is a set of slots, a bit each.
type slotSet uint64

// stateList is a state for each of some slots; a container has few of all that could be.
type stateList struct {
	have slotSet // the slots that it has a place for
	list []*State
}

// newStateList returns one with room for n.
func newStateList(n int) stateList { return stateList{list: make([]*State, 0, n)} }

// place returns where in the list a slot is, or would be.
func (l *stateList) place(slot int) int { return bits.OnesCount64(uint64(l.have & (1<<slot - 1))) }

// at returns the state in a slot, nil if there is none.
func (l *stateList) at(slot int) *State {
	if l.have&(1<<slot) == 0 {
		return nil
	}
	return l.list[l.place(slot)]
}

func (l *stateList) set(slot int, s *State) {
	if l.have&(1<<slot) == 0 {
		l.list = slices.Insert(l.list, l.place(slot), nil)
		l.have |= 1 << slot
	}
	l.list[l.place(slot)] = s
}

// slots returns them by slot.
func (l *stateList) slots() slots {
	var all slots
	for have, i := l.have, 0; have != 0; have, i = have&(have-1), i+1 {
		all[bits.TrailingZeros64(uint64(have))] = l.list[i]
	}
	return all
}

func (s *State) String() string { return s.object.String() }
