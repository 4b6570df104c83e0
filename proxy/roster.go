package proxy

// Roster is the kernel's record of one hierarchy: its directories are the containers, its
// members their tasks. It is the only place where that is written down (design decision: the
// kernel is the database). Paths are those of containers, "" for the root.
type Roster interface {
	// Entry returns one directory's identity and attributes.
	Entry(path string) (Entry, error)
	// Children returns the directories below path, sorted by id.
	Children(path string) ([]Entry, error)
	// Create makes a directory.
	Create(path string, owner Owner) (Entry, error)
	// Remove removes a directory: EBUSY while it has members or children, zombies not counted.
	Remove(path string) error
	// Rename gives a directory another name in the same parent.
	Rename(path, newName string) error
	// SetOwner and SetMode change a directory's attributes, for good.
	SetOwner(path string, o Owner) error
	SetMode(path string, mode uint32) error
	// Place makes a task a member of path: its process, or one thread.
	Place(t *Task, path string, whole bool) error
	// Locate returns the path of the container that t is in.
	Locate(t *Task) (string, error)
	// Read reads "tasks", "cgroup.procs" or "notify_on_release" of path like pread(2).
	Read(path, file string, buf []byte, off int64) (int, error)
	// ReadAll reads all of it at one time: the pieces of a list that changes do not fit together.
	ReadAll(path, file string) (string, error)
	// Write writes notify_on_release.
	Write(path, file string, data []byte) error
	// Note and SetNote keep a short text with a directory. No note reads as "".
	Note(path, key string) (string, error)
	SetNote(path, key, value string) error
	// Close gives the roster up. The kernel keeps it while it has directories besides the root;
	// Close waits for it to take an empty one down, unless it is opened again meanwhile.
	Close() error
}

// Entry is one directory of a roster.
type Entry struct {
	Name string
	ID   uint64 // the kernel's inode number, never used twice in a hierarchy
	Mode uint32 // permission bits
	Owner
}

// Owner is who owns a container.
type Owner struct {
	UID, GID uint32
}

// Rosters makes and finds rosters.
type Rosters interface {
	// Names returns the names of the hierarchies whose roster the kernel holds.
	Names() ([]string, error)
	// Open finds the roster of a hierarchy, or makes it. ErrFading: there was one, of which the
	// kernel has not let go yet; ErrForeign: another daemon has it.
	Open(name string) (Roster, error)
}

var rosters Rosters

// RegisterRosters says who makes rosters. It is called once, from an init function.
func RegisterRosters(r Rosters) {
	if rosters != nil {
		panic("proxy: RegisterRosters called twice")
	}
	rosters = r
}
