package subsystems

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// controller is the subsystem of a cgroup controller, whatever its name. Where the kernel has
// it on v1 and where on v2 is found out when it is probed; the two differ in a layout.
type controller struct {
	name string
	// v1Name and v2Name are what that version calls it, if not name: another subsystem.
	v1Name, v2Name string
	// inherit names v1 files that a new group takes over from its parent, to be usable at once.
	inherit []string
	// check tells that the kernel refuses to put a task into a group of v1.
	check func(g *group) error
	// core names the files that do the controller's work on v2, where they are in every group
	// and there is no such controller.
	core []string
	// freezes is set where it can stop the tasks of a group.
	freezes bool
	// admin is set where the kernel lets only CAP_SYS_ADMIN write.
	admin bool

	tree   *tree
	layout layout
	files  []proxy.File // while it is bound
}

// layout is what differs between cgroup v1 and v2.
type layout interface {
	// tasksDir returns where the tasks of a container's group are, below the group itself.
	tasksDir() string
	// create makes a container's group at path.
	create(t *tree, path string) error
	// destroy removes it.
	destroy(t *tree, path string) error
	// enable makes a controller's files appear in the groups below parent.
	enable(t *tree, parent, controller string) error
	// disable takes enable back where that was ours to do.
	disable(t *tree, parent, controller string) error
	// prepare gives a new group its parent's values.
	prepare(t *tree, c *controller, path, parent string) error
	// host refuses a group that is not ours and that can have none of ours below it.
	host(t *tree, c *controller, path string) error
	threaded() bool
	renames() error
}

func registerController(c *controller) { proxy.Register(c) }

// group is a cgroup directory: a container's, the root's or a foreign one.
type group struct {
	tree *tree
	id   proxy.ID
	path string      // of one that is no container's
	in   proxy.Place // of a container's
	leaf string      // where in a container's group its tasks are
}

func (g *group) ID() proxy.ID { return g.id }

// dir returns the group's directory, the one with the control files.
func (g *group) dir() string {
	if g.in != nil {
		return groupDir(g.in)
	}
	return g.path
}

func (g *group) String() string {
	if g.in != nil {
		return "/" + g.dir() + g.leaf
	}
	return g.path
}

// groupDir returns the directory of a container's group, for the root the one below which the
// groups of all others are.
func groupDir(p proxy.Place) string {
	if path := p.Path(); path != "" {
		return p.Base() + "/" + path
	}
	return p.Base()
}

func (c *controller) Name() string { return c.name }
func (c *controller) Kind() string { return proxy.KindController }
func (c *controller) Tree() any    { return c.tree }

func (c *controller) Threaded() bool { return c.layout.threaded() }

func (c *controller) Probe(h proxy.Host) (string, error) {
	t, err := findTree(c, h.Opening)
	if err != nil {
		return "", err
	}
	c.tree = t
	if c.freezes {
		t.freezes.Store(true)
	}
	if c.check != nil {
		t.reluctant.Store(true)
	}
	if t.v2() {
		c.layout = v2{core: len(c.core) > 0}
		return "v2", nil
	}
	c.layout = v1{}
	return "v1", nil
}

// Bind makes the base directory and learns which control files there are, in the root and in
// other groups.
func (c *controller) Bind(root proxy.Place) (_ proxy.Object, err error) {
	if err := c.tree.acquire(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.removeBase(root.Base()), c.tree.release())
		}
	}()
	if err := c.makeBase(root.Base()); err != nil {
		return nil, err
	}
	if err := c.layout.enable(c.tree, root.Base(), c.name); err != nil {
		return nil, err
	}
	if c.files, err = c.listFiles(root.Base()); err != nil {
		return nil, err
	}
	id, err := c.tree.id("/")
	if err != nil {
		return nil, err
	}
	return &group{tree: c.tree, id: id, path: "/"}, nil
}

// noteMade is the attribute of the groups that rcfs made besides those of containers. The others on
// the way to the base are somebody else's, as a delegated group is, and stay as they are.
const noteMade = "made"

// makeBase makes the base directory, whose parents may be missing too.
func (c *controller) makeBase(base string) error {
	parent := ""
	for name := range strings.SplitSeq(base, "/") {
		if err := c.layout.enable(c.tree, parent, c.name); err != nil {
			return err
		}
		path := strings.TrimPrefix(parent+"/"+name, "/")
		ours, err := c.tree.makeOurs(parent, name)
		if err != nil {
			return err
		}
		if ours {
			err = c.layout.prepare(c.tree, c, path, parent)
		} else {
			err = c.layout.host(c.tree, c, path)
		}
		if err != nil {
			return err
		}
		parent = path
	}
	return nil
}

// noteMaking is the attribute of a group in which rcfs is just making another: its name, for a daemon
// that is killed before the new one has noteMade.
const noteMaking = "making"

// makeOurs makes a group unless there is one, and reports whether rcfs made it, now or earlier.
func (t *tree) makeOurs(parent, name string) (bool, error) {
	path := strings.TrimPrefix(parent+"/"+name, "/")
	if _, err := t.stat(path); err == nil {
		note, err := t.note(path, noteMade)
		if err != nil || note != "" {
			return note != "", err
		}
		making, err := t.note(parent, noteMaking)
		if err != nil || making != name {
			return false, err
		}
		return true, errors.Join(t.setNote(path, noteMade, "yes"), t.setNote(parent, noteMaking, ""))
	}
	if err := t.setNote(parent, noteMaking, name); err != nil {
		return false, err
	}
	err := t.mkdir(path)
	if err == nil {
		if err = t.setNote(path, noteMade, "yes"); err != nil {
			err = errors.Join(err, t.rmdir(path))
		}
	}
	return err == nil, errors.Join(err, t.setNote(parent, noteMaking, ""))
}

// removeBase takes back what makeBase did, from the base directory upwards. The last controller of
// the tree removes what is rcfs's own, as far as it is empty: other people may use it by now.
func (c *controller) removeBase(base string) error {
	for last := c.tree.lastUser(); base != ""; {
		i := max(0, strings.LastIndexByte(base, '/'))
		if err := c.layout.disable(c.tree, base, c.name); err != nil {
			return err
		}
		note, err := c.tree.note(base, noteMade)
		if err == nil && note != "" && last {
			err = c.tree.rmdir(base)
		}
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) {
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		base = base[:i]
	}
	return c.layout.disable(c.tree, "", c.name)
}

func (c *controller) Unbind(root proxy.Place) error {
	c.files = nil
	return errors.Join(c.removeBase(root.Base()), c.tree.release())
}

// Close gives up the hierarchy's directory.
func (c *controller) Close() error { return c.tree.release() }

func (c *controller) Create(p proxy.Place, parent proxy.Object) (proxy.Object, error) {
	path := groupDir(p)
	if err := c.layout.create(c.tree, path); err != nil {
		return nil, err
	}
	return c.Reopen(p, parent)
}

func (c *controller) Reopen(p proxy.Place, _ proxy.Object) (proxy.Object, error) {
	leaf := c.layout.tasksDir()
	id, err := c.tree.id(groupDir(p) + leaf)
	if err != nil {
		return nil, err
	}
	return &group{tree: c.tree, id: id, in: p, leaf: leaf}, nil
}

// Prepare makes a new group usable: its files are there and have its parent's values.
func (c *controller) Prepare(o, _ proxy.Object) error {
	path := o.(*group).dir()
	parent := path[:strings.LastIndexByte(path, '/')]
	if err := c.layout.enable(c.tree, parent, c.name); err != nil {
		return err
	}
	return c.layout.prepare(c.tree, c, path, parent)
}

func (c *controller) Destroy(p proxy.Place) error { return c.layout.destroy(c.tree, groupDir(p)) }

// Vacant tells beforehand that the kernel would not remove the group.
func (c *controller) Vacant(o proxy.Object) error {
	g := o.(*group)
	var b [16]byte
	n, err := c.tree.read(g.dir()+g.leaf+"/cgroup.procs", b[:], 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // somebody has removed it
	}
	if err == nil && n > 0 {
		return fmt.Errorf("a task that was moved by hand is in %s: %w", g, proxy.ErrNotEmpty)
	}
	return err
}

// Processes reads the group's cgroup.procs.
func (c *controller) Processes(o proxy.Object) ([]int, error) {
	g := o.(*group)
	text, err := c.tree.readAll(g.dir() + g.leaf + "/cgroup.procs")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for line := range strings.Lines(text) {
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// Rename lets the group follow its container.
func (c *controller) Rename(o proxy.Object, from, to string) error {
	if err := c.layout.renames(); err != nil {
		return err
	}
	return c.tree.rename(path.Join(path.Dir(o.(*group).dir()), from), to)
}

// lookups is how often a task's group is looked up: it may be renamed meanwhile, or removed after the task has left it.
const lookups = 50

// deleted is what /proc/PID/cgroup says of a group of v2 that was removed: only a zombie can be in it (proc_cgroup_show in
// kernel/cgroup/cgroup.c).
const deleted = " (deleted)"

func (c *controller) Current(t *proxy.Task) (proxy.Object, error) {
	for try := 1; ; try++ {
		path, ok, err := c.tree.pathOf(t)
		if err != nil || !ok {
			return nil, err
		}
		id, err := c.tree.id(path)
		switch {
		case err == nil:
			return &group{tree: c.tree, id: id, path: path}, nil
		case !errors.Is(err, unix.ENOENT):
			return nil, err
		case !c.tree.mounted():
			return nil, nil
		case c.tree.v2() && strings.HasSuffix(path, deleted):
			return nil, fmt.Errorf("task %d: %s: %w", t.TID, c.tree.name(path), proxy.ErrNoTask)
		case try == lookups:
			return nil, err
		}
		time.Sleep(time.Millisecond)
		t.Forget()
	}
}

func (t *tree) mounted() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.users > 0 || t.mount != ""
}

func (c *controller) Locate(t *proxy.Task) (proxy.Location, error) {
	path, ok, err := c.tree.pathOf(t)
	if err == nil && !ok {
		err = fmt.Errorf("task %d is in no group of %s: %w", t.TID, c.tree.label, unix.ENODEV)
	}
	return proxy.Location{Name: path}, err
}

func (c *controller) Place(t *proxy.Task, to proxy.Location, whole bool) error {
	return c.tree.place(t, below(to.Name), whole)
}

// Reluctant is true of the hierarchy of v1 that has a controller with a check of its own.
func (c *controller) Reluctant() bool { return !c.tree.v2() && c.tree.reluctant.Load() }

// Freezes is true of the hierarchy of v1 that has a controller which freezes. Every group of v2 can.
func (c *controller) Freezes() bool { return c.tree.v2() || c.tree.freezes.Load() }

// Check says what the kernel would say.
func (c *controller) Check(_ *proxy.Task, to proxy.Object) error {
	if c.check == nil || c.tree.v2() {
		return nil
	}
	return c.check(to.(*group))
}

func (c *controller) Files() []proxy.File { return c.files }

// listFiles finds the controller's files, with the kernel's names and modes. The base directory
// is an example of a group that is not the root.
func (c *controller) listFiles(base string) ([]proxy.File, error) {
	var files []proxy.File
	for where, dir := range map[int]string{proxy.InRoot: "", proxy.InChild: base} {
		entries, err := c.tree.list(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() || !c.owns(e.Name()) {
				continue
			}
			st, err := c.tree.stat(dir + "/" + e.Name())
			if err != nil {
				return nil, err
			}
			i := slices.IndexFunc(files, func(f proxy.File) bool { return f.Name == e.Name() })
			if i < 0 {
				i = len(files)
				files = append(files, c.file(e.Name(), st.Mode&0o777))
			}
			files[i].In |= where
		}
	}
	slices.SortFunc(files, func(a, b proxy.File) int { return strings.Compare(a.Name, b.Name) })
	return files, nil
}

// owns reports whether a file of a group is the controller's.
func (c *controller) owns(file string) bool {
	return strings.HasPrefix(file, c.name+".") || c.tree.v2() && slices.Contains(c.core, file)
}

// file passes reads and writes through to the kernel's own file.
func (c *controller) file(name string, mode uint32) proxy.File {
	f := proxy.File{
		Name: name,
		Mode: mode,
		Read: func(o proxy.Object, buf []byte, off int64) (int, error) {
			return c.tree.read(o.(*group).dir()+"/"+name, buf, off)
		},
		Write: func(o proxy.Object, data []byte, w proxy.Writer) error {
			if c.admin {
				if err := w.Admin(); err != nil {
					return err
				}
			}
			return c.tree.write(o.(*group).dir()+"/"+name, data)
		},
	}
	if !c.admin { // the kernel would ask whether the daemon may
		f.Backing = func(o proxy.Object) (int, error) { return c.tree.open(o.(*group).dir()+"/"+name, unix.O_PATH) }
	}
	return f
}
