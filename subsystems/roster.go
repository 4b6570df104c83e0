package subsystems

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// rosters keeps each hierarchy's record in a cgroup v1 hierarchy that has a name and no
// controllers, mounted where nobody sees it. The kernel then keeps the members across fork and
// exit, leaves zombies out, sorts, and remembers owners, modes and notes longer than we live.
type rosters struct {
	mu     sync.Mutex
	opened map[string]*roster // guarded by mu; by label, the one that was opened last
}

func init() { proxy.RegisterRosters(&rosters{opened: make(map[string]*roster)}) }

const rosterPrefix = "name=rcfs."

func (*rosters) Names() ([]string, error) {
	labels, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, label := range labels {
		if name, ok := strings.CutPrefix(label, rosterPrefix); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

func (rs *rosters) Open(name string) (proxy.Roster, error) {
	r := &roster{tree: &tree{label: rosterPrefix + name}, all: rs}
	err := r.tree.acquire()
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%w: %w", proxy.ErrFading, err)
	}
	if err == nil {
		err = r.hold()
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if errors.Is(err, proxy.ErrForeign) && rs.opened[r.tree.label] != nil {
		err = fmt.Errorf("%w: this daemon has not closed it yet", proxy.ErrFading)
	}
	if err != nil {
		return nil, err
	}
	rs.opened[r.tree.label] = r
	return r, nil
}

// forget is for one that is gone for good.
func (rs *rosters) forget(r *roster) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.opened[r.tree.label] == r {
		delete(rs.opened, r.tree.label)
	}
}

// last reports whether the hierarchy was not opened again since r was.
func (rs *rosters) last(r *roster) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.opened[r.tree.label] == r
}

type roster struct {
	tree *tree
	lock int // descriptor of the root directory, locked: one daemon has a hierarchy
	all  *rosters
}

// hold makes the hierarchy this daemon's. The lock is on the kernel's object, so it also keeps
// apart daemons that do not see each other's run directory; it ends with the daemon.
func (r *roster) hold() error {
	fd, err := r.tree.open("", unix.O_RDONLY|unix.O_DIRECTORY)
	if err == nil {
		if err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == nil {
			r.lock = fd
			return nil
		}
		unix.Close(fd)
	}
	if err == unix.EWOULDBLOCK {
		err = proxy.ErrForeign
	}
	return errors.Join(fmt.Errorf("hierarchy %q: %w", r.tree.label, err), r.tree.release())
}

func (r *roster) Entry(path string) (proxy.Entry, error) {
	st, err := r.tree.stat(path)
	return entry(path[strings.LastIndexByte(path, '/')+1:], &st), err
}

func entry(name string, st *unix.Stat_t) proxy.Entry {
	return proxy.Entry{Name: name, ID: st.Ino, Mode: st.Mode & 0o7777, Owner: proxy.Owner{UID: st.Uid, GID: st.Gid}}
}

func (r *roster) Children(path string) ([]proxy.Entry, error) {
	list, err := r.tree.list(path)
	if err != nil {
		return nil, err
	}
	var entries []proxy.Entry
	for _, e := range list {
		if !e.IsDir() {
			continue
		}
		st, err := r.tree.stat(path + "/" + e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry(e.Name(), &st))
	}
	slices.SortFunc(entries, func(a, b proxy.Entry) int { return int(a.ID) - int(b.ID) })
	return entries, nil
}

func (r *roster) Create(path string, owner proxy.Owner) (proxy.Entry, error) {
	if err := r.tree.mkdir(path); err != nil {
		return proxy.Entry{}, err
	}
	if owner != (proxy.Owner{}) {
		if err := r.SetOwner(path, owner); err != nil {
			return proxy.Entry{}, errors.Join(err, r.tree.rmdir(path))
		}
	}
	return r.Entry(path)
}

func (r *roster) Remove(path string) error { return r.tree.rmdir(path) }

func (r *roster) Rename(path, newName string) error { return r.tree.rename(path, newName) }

func (r *roster) SetOwner(path string, o proxy.Owner) error {
	return r.onDir(path, "chown", func(fd int) error { return unix.Fchown(fd, int(o.UID), int(o.GID)) })
}

func (r *roster) SetMode(path string, mode uint32) error {
	return r.onDir(path, "chmod", func(fd int) error { return unix.Fchmod(fd, mode) })
}

func (r *roster) onDir(path, op string, f func(fd int) error) error {
	fd, err := r.tree.open(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := f(fd); err != nil {
		return fmt.Errorf("%s %s: %w", op, r.tree.name(path), err)
	}
	return nil
}

func (r *roster) Place(t *proxy.Task, path string, whole bool) error {
	return r.tree.place(t, path, whole)
}

func (r *roster) Locate(t *proxy.Task) (string, error) {
	path, ok, err := r.tree.pathOf(t)
	if err == nil && !ok {
		err = fmt.Errorf("no line %q in /proc/%d/cgroup", r.tree.label, t.TID)
	}
	return strings.TrimPrefix(path, "/"), err
}

func (r *roster) Read(path, file string, buf []byte, off int64) (int, error) {
	return r.tree.read(path+"/"+file, buf, off)
}

func (r *roster) ReadAll(path, file string) (string, error) {
	return r.tree.readAll(path + "/" + file)
}

func (r *roster) Write(path, file string, data []byte) error {
	return r.tree.write(path+"/"+file, data)
}

func (r *roster) Note(path, key string) (string, error) { return r.tree.note(path, key) }

func (r *roster) SetNote(path, key, value string) error { return r.tree.setNote(path, key, value) }

// Close lets the kernel take the hierarchy down, and sees to it.
func (r *roster) Close() error {
	children, err := r.Children("")
	err = errors.Join(err, unix.Close(r.lock), r.tree.release())
	defer r.all.forget(r)
	if err != nil || len(children) > 0 {
		return err
	}
	return r.tree.vanish(vanishPatience, func() bool { return !r.all.last(r) })
}
