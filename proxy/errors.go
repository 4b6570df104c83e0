package proxy

import (
	"errors"
	"fmt"
)

// Refusals that are rcfs's own. What the kernel refused carries the kernel's errno instead;
// package fs turns both into what the caller of write(2) sees.
var (
	// ErrNoTask: no task of that id, or only a zombie is left of it.
	ErrNoTask = errors.New("no such task")
	// ErrKernelThread: kernel threads are not moved.
	ErrKernelThread = errors.New("kernel threads cannot be moved")
	// ErrThread: one thread alone cannot be moved where a bound subsystem takes processes only.
	ErrThread = errors.New("only the whole process can be moved here")
	// ErrNotANumber: what was written is not a decimal id.
	ErrNotANumber = errors.New("not a decimal task id")
	// ErrNotYours: the writer is neither root nor the target's owner.
	ErrNotYours = errors.New("the writer is neither root nor the owner of the task")
	// ErrNotOwned: the writer owns the container, but not the state that it shares with others.
	ErrNotOwned = errors.New("the container shares this with one that the writer does not own")
	// ErrNotCapable: a capability is missing, the writer's or the target's.
	ErrNotCapable = errors.New("a capability is missing")
	// ErrTraced: another tracer has the target.
	ErrTraced = errors.New("the task is being traced")
	// ErrUnsupported: the target is of a kind that cannot be stopped safely (a 32-bit program).
	ErrUnsupported = errors.New("this kind of task cannot be moved into namespaces")
	// ErrBusy: the operation would turn against rcfs itself.
	ErrBusy = errors.New("busy")
	// ErrNotStopped: the target did not stop in time.
	ErrNotStopped = errors.New("the task did not stop in time")
	// ErrEnding: the daemon is about to end.
	ErrEnding = errors.New("rcfsd is ending")
	// ErrRemoved: the container is gone.
	ErrRemoved = errors.New("the container was removed")
	// ErrNotEmpty: the container has tasks or children.
	ErrNotEmpty = errors.New("the container has tasks or children")
	// ErrLimit: there would be more containers, or one further down, than rcfs takes.
	ErrLimit = errors.New("a limit of rcfs is reached")
	// ErrExists: there is a child or a control file of that name.
	ErrExists = errors.New("the name is taken")
	// ErrName: the name cannot be a container's.
	ErrName = errors.New("not a name for a container")
	// ErrNameTooLong: the name has more than 255 bytes.
	ErrNameTooLong = errors.New("the name is too long")
	// ErrBound: a subsystem or a name is in use by another hierarchy.
	ErrBound = errors.New("in use")
	// ErrForeign: another daemon, which does not share our run directory, has the hierarchy.
	ErrForeign = errors.New("another rcfsd has it")
	// ErrFading: the kernel is still taking down a hierarchy of that name.
	ErrFading = errors.New("an earlier hierarchy of that name has not gone yet")
	// ErrNoHierarchy: there is none of that name.
	ErrNoHierarchy = errors.New("there is no such hierarchy")
	// ErrUnknown: there is no subsystem of that name, or not on this kernel.
	ErrUnknown = errors.New("unknown subsystem")
	// ErrValue: the value is not one that the file takes.
	ErrValue = errors.New("invalid value")
	// ErrParent: a container cannot change its parent.
	ErrParent = errors.New("a container cannot change its parent")
	// ErrCannotRename: a bound subsystem cannot rename its groups.
	ErrCannotRename = errors.New("a bound subsystem cannot rename")
)

// Error says what was refused to whom. Its text is what rcfs.error shows.
type Error struct {
	Op        string // what was attempted: "attach", "mkdir", …
	Container string // path of the container it was attempted on
	Subsystem string // which subsystem refused; empty where none did
	Task      int    // which task; 0 where none was involved
	Err       error
}

func (e *Error) Error() string {
	s := e.Op
	if e.Task != 0 {
		s += fmt.Sprintf(" %d", e.Task)
	}
	s += fmt.Sprintf(" %q", "/"+e.Container)
	if e.Subsystem != "" {
		s += ": " + e.Subsystem
	}
	return s + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }
