package proxy

import (
	"fmt"

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
	refs   int  // guarded by Table.mu; holders are proxies and containers
	gone   bool // guarded by Table.mu; its container was removed
}

// Object returns the subsystem's object behind s.
func (s *State) Object() Object { return s.object }

func (s *State) String() string { return s.object.String() }
