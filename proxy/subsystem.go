package proxy

import (
	"fmt"
	"os"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"rcfs/proxy/inject"
)

// MaxSubsystems bounds how many subsystems can be registered: a proxy is an array of so many
// slots.
const MaxSubsystems = 40

// Kinds of subsystems, as rcfs.subsystems shows them.
const (
	KindController = "controller"
	KindNamespace  = "namespace"
	KindValue      = "value"
)

// Host is what a subsystem has to know about the daemon it runs in.
type Host struct {
	// Run is the daemon's directory for what must outlive it and what the kernel cannot
	// keep, /run/rcfs as a rule. It is a mount point of its own with private propagation.
	Run string
	// Parts are other processes of the daemon, which like this one are never moved nor killed.
	Parts []int
	// Opening is another number for each Open. What one subsystem has learned of the machine when it was probed, another
	// need not find out again then. 0: they are not probed together.
	Opening uint64
}

var openings atomic.Uint64

// pids are the processes of the daemon.
func (h *Host) pids() []int { return append([]int{os.Getpid()}, h.Parts...) }

// Place says which container a subsystem's object is made for. A container is renamed by
// changing what its place answers, so objects keep the place and not its path.
type Place interface {
	// Hierarchy is the name of the rcfs hierarchy.
	Hierarchy() string
	// Base is the directory, in each kernel hierarchy, below which rcfs makes its groups.
	Base() string
	// ContainerID is the container's number, unique in the hierarchy for its whole life.
	ContainerID() uint64
	// Path is the container's path from the root of the tree, "" for the root itself.
	Path() string
}

// Member is a Place of which a process can be part before the container can be seen. Create of a
// namespace finds it in its place: the groups of the container have been made by then.
type Member interface {
	// Join puts the process pid, one of the daemon's own, into the container's groups, not
	// into its namespaces and not into the roster.
	Join(pid int) error
	// Sovereign returns the container's object of the bound subsystem that is Sovereign, nil where
	// there is none or it has not been made yet.
	Sovereign() Object
	// Attr returns whom the container belongs to.
	Attr() Attr
}

// Subsystem is one thing that tasks are grouped by: a kind of namespace, a resource
// controller. Each is declared in a file of its own in package subsystems, which registers it.
// A subsystem also implements Placer or Enterer, depending on how a task gets into a state,
// and any of the optional interfaces below.
type Subsystem interface {
	// Name is the word of mount -o and the prefix of the control files.
	Name() string
	// Kind is KindController, KindNamespace or KindValue.
	Kind() string
	// Probe looks, once and before any other method, where this kernel has the subsystem and
	// returns the name of the back end ("v1", "v2", "nsfs"). An error says why it has none;
	// the subsystem can then not be bound and has an empty slot in every proxy.
	Probe(h Host) (backend string, err error)
	// Bind prepares the subsystem for the hierarchy of root and returns the object that the
	// root container stands for: what the machine had before rcfs.
	Bind(root Place) (Object, error)
	// Unbind gives back what Bind made. There are no containers besides the root.
	Unbind(root Place) error
	// Create makes the object of a new container below parent's. A failure leaves nothing.
	Create(p Place, parent Object) (Object, error)
	// Reopen finds the object that an earlier daemon made for p. fs.ErrNotExist: there is
	// none, so the container shares its parent's.
	Reopen(p Place, parent Object) (Object, error)
	// Destroy removes what Create made for p, or had made of it when the daemon was killed.
	// fs.ErrNotExist: there is nothing; EBUSY while a task is in it.
	Destroy(p Place) error
	// Current finds the object that t is in now.
	Current(t *Task) (Object, error)
}

// Placer is a Subsystem whose states a task enters from outside, by a write of its id. A move speaks of
// them by their names: no more is needed to put a task back where it was.
type Placer interface {
	// Locate returns where t is.
	Locate(t *Task) (Location, error)
	// Place moves t there: its whole process, or the one thread where whole is false.
	Place(t *Task, to Location, whole bool) error
}

// Location is where a Placer has a task.
type Location struct {
	Name string // of the object that it is in: what Object.String returns
	// Own is how the task differs from what the object wants of its members, "" where it does not.
	Own string
}

// locationOf is where the members of an object are.
func locationOf(o Object) Location { return Location{Name: o.String()} }

// Changer is a Placer of what only the task itself can change, by system calls while it is stopped.
type Changer interface {
	// Changes returns what the thread t has to change to be a member there, if anything. It is asked before Place.
	Changes(t *Task, to Location) ([]Change, error)
}

// Stopper is a Placer of what is handed down to a child or a thread long before anybody can see that: the target has to be
// stopped, lest one that is just being born keeps what its parent had.
type Stopper interface {
	// Stops reports whether t has to be while it is placed there.
	Stops(t *Task, to Location) (bool, error)
}

// Change and Call are package inject's.
type (
	Change = inject.Change
	Call   = inject.Call
)

// Renewer is a Place whose members can be moved into its object of a subsystem once more, since that wants something else of
// them now.
type Renewer interface {
	// Renew does that, if w may move them. The first that refuses ends it; ErrBusy where w is one itself, and could only be
	// stopped after its request.
	Renew(s Subsystem, w Writer) error
}

// Settler is a Subsystem that may have been left in the middle of a change of what an object wants of its members.
type Settler interface {
	// Unsettled reports whether an earlier daemon has left o so. Its members are renewed then, and Settle is called.
	Unsettled(o Object) (bool, error)
	Settle(o Object) error
}

// Reluctant is a Placer that may refuse a task for reasons of its own. A move begins with it, as long as
// nothing has been changed.
type Reluctant interface {
	Reluctant() bool
}

// Freezer is a Placer whose groups may be frozen. A task enters them after the namespaces: frozen,
// it could not.
type Freezer interface {
	// Freezes reports whether they may.
	Freezes() bool
}

// Enterer is a Subsystem whose states only the task itself can enter, by setns(2).
type Enterer interface {
	// Open opens the namespace o. The caller closes what it gets.
	Open(o Object) (Namespace, error)
	// EnterOrder sorts the namespaces that t enters in one move, small before large.
	EnterOrder(t *Task, o Object) int
}

// Sovereign is an Enterer whose objects own other namespaces, and for which there is no way back:
// user namespaces. A container's is made before its other namespaces and removed after them. What
// a move can undo is done before a task enters one, the roster's part included.
type Sovereign interface {
	Sovereign()
}

// Renewable is a namespace subsystem whose objects can be made anew when their container gets
// another owner.
type Renewable interface {
	// Untouched reports whether a new object would do as well as o: nothing was done to it
	// that writing its control files again would not do.
	Untouched(o Object) bool
}

// Namespace is an open namespace: what setns(2) takes.
type Namespace struct {
	Type int // one CLONE_NEW* flag
	FD   int
	// SplitFS, of a mount namespace, has every thread give up sharing its root, working
	// directory and umask, for good.
	SplitFS bool
}

// Rescuer is a Subsystem whose objects are held by something that others can take away, while tasks
// are still in them.
type Rescuer interface {
	// Rescue holds p's object again, which t is in; t is nil where no task is known to be. fs.ErrNotExist:
	// it cannot be found.
	Rescue(p Place, t *Task) (Object, error)
}

// Sweeper removes what earlier daemons have left that belongs to no container. Each method says what it
// has removed.
type Sweeper interface {
	// Processes ends those that have not been written down. It is called before the hierarchies come back:
	// one may be in a group that has to go.
	Processes(h Host) ([]string, error)
	// Pins removes what is held for no container, when they are back. Whose tells whether a container of
	// that number is there, in a hierarchy of that name.
	Pins(h Host, whose func(hierarchy string, id uint64) bool) ([]string, error)
}

var sweepers []Sweeper

// RegisterSweeper makes a sweeper known, from an init function.
func RegisterSweeper(s Sweeper) { sweepers = append(sweepers, s) }

// Checker is a Subsystem that can tell beforehand that it will refuse a task. A Placer is asked where the
// target would be stopped in vain, and why it has refused.
type Checker interface {
	// Check returns why t cannot enter an object.
	Check(t *Task, to Object) error
}

// Preparer is a Subsystem that makes a new container usable at once.
type Preparer interface {
	// Prepare is called after Create, also where another subsystem of the same tree created o.
	Prepare(o, parent Object) error
}

// Vacancy is a Subsystem whose objects can be entered behind rcfs's back.
type Vacancy interface {
	// Vacant returns ErrNotEmpty while a task is in o.
	Vacant(o Object) error
}

// Lister is a Subsystem whose objects know who is in them.
type Lister interface {
	// Processes returns the processes in o, each once.
	Processes(o Object) ([]int, error)
}

// Sharer is a Subsystem that lives with others in one kernel hierarchy. Subsystems with equal
// trees share their states and are bound together or not at all.
type Sharer interface {
	// Tree identifies the kernel hierarchy; it is comparable.
	Tree() any
}

// Demanding is a namespace that many tasks cannot enter, whoever asks. Where it is bound only
// because everything is, new containers share their parent's unless told otherwise; and a task
// that has one from elsewhere keeps it in a container that shares the root's.
type Demanding interface {
	// Demanding reports whether it is.
	Demanding() bool
}

// Threaded is a Subsystem in which the threads of a process may differ.
type Threaded interface {
	// Threaded reports whether one thread may be moved alone.
	Threaded() bool
}

// Fader is a Subsystem of which the kernel takes down something in its own time, after Unbind.
type Fader interface {
	// Fade waits for that, unless the subsystem is bound again meanwhile.
	Fade() error
}

// Closer is a Subsystem that keeps something open while it is bound.
type Closer interface {
	// Close gives that up for a daemon that ends, and leaves the kernel's objects as they are.
	Close() error
}

// Keeper is a Subsystem with processes of its own, by which containers are what they are. They are
// not moved, whoever asks.
type Keeper interface {
	// Keeps reports whether t is one of them.
	Keeps(t *Task) (bool, error)
}

// Renamer is a Subsystem that has to follow the renaming of a container.
type Renamer interface {
	// Rename is called while the container still has its old name, also to take a renaming back
	// that another subsystem refused. EPERM where the kernel cannot.
	Rename(o Object, from, to string) error
}

// Where a File exists.
const (
	InRoot = 1 << iota
	InChild
	Everywhere = InRoot | InChild
)

// File is a control file of a subsystem. The mode says what can be done: a file without Read
// has no r bits, one without Write no w bits, and a link has only Link.
type File struct {
	Name string
	Mode uint32 // permission bits
	In   int    // InRoot, InChild or both

	// Read reads o's value as pread(2) does: 0 and no error at the end.
	Read func(o Object, buf []byte, off int64) (int, error)
	// Task, instead of Read, returns the id of a task; each reader gets it as a number of its
	// own pid namespace, 0 if it has none there.
	Task func(o Object) (int, error)
	// Write takes data, which came in one write(2) of w.
	Write func(o Object, data []byte, w Writer) error
	// Backing, beside Read and Write, opens a file of the kernel's own that they do nothing but read and write,
	// whoever asks. The caller closes it; O_PATH is enough.
	Backing func(o Object) (fd int, err error)
	// Link returns what the symbolic link points to.
	Link func(o Object) (string, error)
}

// Filer is a Subsystem with control files.
type Filer interface {
	// Files returns the control files in an order that does not change as long as the kernel
	// runs. It is called while the subsystem is bound.
	Files() []File
}

// Text makes a File's Read out of a function that returns the whole contents.
func Text(f func(o Object) (string, error)) func(Object, []byte, int64) (int, error) {
	return func(o Object, buf []byte, off int64) (int, error) {
		s, err := f(o)
		if err != nil || off >= int64(len(s)) {
			return 0, err
		}
		return copy(buf, s[off:]), nil
	}
}

var registry struct {
	sync.Mutex
	subsystems map[string]Subsystem
}

// Register makes s known. Package subsystems calls it from init functions; the order in which
// they run means nothing, since slots are numbered by name. It panics on a duplicate, on too
// many subsystems and on one that no task could enter.
func Register(s Subsystem) {
	registry.Lock()
	defer registry.Unlock()
	name := s.Name()
	_, places := s.(Placer)
	_, enters := s.(Enterer)
	switch {
	case registry.subsystems[name] != nil:
		panic(fmt.Sprintf("proxy: subsystem %q registered twice", name))
	case len(registry.subsystems) == MaxSubsystems:
		panic("proxy: more than MaxSubsystems subsystems")
	case places == enters:
		panic(fmt.Sprintf("proxy: subsystem %q must implement either Placer or Enterer", name))
	}
	if registry.subsystems == nil {
		registry.subsystems = make(map[string]Subsystem)
	}
	registry.subsystems[name] = s
}

// Registered returns all subsystems sorted by name. The index is the slot.
func Registered() []Subsystem {
	registry.Lock()
	defer registry.Unlock()
	var list []Subsystem
	for _, s := range registry.subsystems {
		list = append(list, s)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name() < list[j].Name() })
	return list
}

// Known reports whether a subsystem of that name is registered, whether or not the running
// kernel has it.
func Known(name string) bool {
	return slices.ContainsFunc(Registered(), func(s Subsystem) bool { return s.Name() == name })
}
