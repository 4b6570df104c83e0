package subsystems

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// v2 is the layout of cgroup v2 (Documentation/admin-guide/cgroup-v2.rst). There a group with
// controllers enabled for its children has no tasks of its own, and containers have both: the
// tasks are in a leaf below the container's group.
type v2 struct{ core bool } // core: without a controller to be enabled

const v2Leaf = "/.rcfs"

func (v2) tasksDir() string { return v2Leaf }

func (v2) create(t *tree, path string) error {
	if err := t.mkdir(path); err != nil {
		return err
	}
	if err := t.mkdir(path + v2Leaf); err != nil {
		return errors.Join(err, t.rmdir(path))
	}
	return nil
}

func (v2) destroy(t *tree, path string) error {
	if err := t.rmdir(path + v2Leaf); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return t.rmdir(path)
}

// noteEnabled is the attribute of a group that is not a container's in which rcfs writes down
// which controllers it enabled there, to disable them again.
const noteEnabled = "enabled"

func (l v2) enable(t *tree, parent, controller string) error {
	if l.core {
		return nil
	}
	file := parent + "/cgroup.subtree_control"
	have, err := t.readAll(file)
	if err != nil || slices.Contains(strings.Fields(have), controller) {
		return err
	}
	if err := l.host(t, nil, parent); err != nil {
		return err
	}
	note, err := t.note(parent, noteEnabled)
	if err != nil {
		return err
	}
	if err := t.setNote(parent, noteEnabled, strings.TrimSpace(note+" "+controller)); err != nil {
		return err
	}
	if err := t.write(file, []byte("+"+controller)); err != nil {
		return errors.Join(err, t.setNote(parent, noteEnabled, note))
	}
	return nil
}

func (l v2) disable(t *tree, parent, controller string) error {
	if l.core {
		return nil
	}
	note, err := t.note(parent, noteEnabled)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	ours := strings.Fields(note)
	i := slices.Index(ours, controller)
	if err != nil || i < 0 {
		return err
	}
	err = t.write(parent+"/cgroup.subtree_control", []byte("-"+controller))
	if errors.Is(err, unix.EBUSY) {
		return nil // somebody else's groups use it by now
	}
	return errors.Join(err, t.setNote(parent, noteEnabled, strings.Join(slices.Delete(ours, i, i+1), " ")))
}

// prepare has nothing to do: empty means "as the parent" on v2.
func (v2) prepare(*tree, *controller, string, string) error { return nil }

// host refuses a group with processes of its own. The kernel enables no domain controllers there; by
// enabling another one it would make the group the root of a threaded subtree, and those below
// invalid ("Threads" in cgroup-v2.rst). The root of the hierarchy, which has no type, may have both.
func (l v2) host(t *tree, _ *controller, path string) error {
	if l.core {
		return nil
	}
	kind, err := t.readAll(path + "/cgroup.type")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if kind := strings.TrimSpace(kind); kind != "domain" {
		return fmt.Errorf("%s is %q, so that groups below it can have no processes: %w", t.name(path), kind, unix.EOPNOTSUPP)
	}
	var b [16]byte
	n, err := t.read(path+"/cgroup.procs", b[:], 0)
	if err == nil && n > 0 {
		err = fmt.Errorf("%s has processes of its own, so that cgroup v2 lets it have no groups with controllers below it; move them into a leaf: %w",
			t.name(path), unix.EBUSY)
	}
	return err
}

func (v2) threaded() bool { return false }

func (v2) renames() error { return fmt.Errorf("cgroup v2: %w", proxy.ErrCannotRename) }
