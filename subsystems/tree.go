package subsystems

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// tree is one kernel hierarchy of cgroups: the unified one of v2, or one of v1's, which has one
// controller, several, or only a name.
type tree struct {
	label string // as /proc/PID/cgroup has it: "cpu,cpuacct", "name=x", "" for v2

	mu    sync.RWMutex
	mount string // guarded by mu; a directory where it is mounted, "" where it is nowhere
	root  int    // guarded by mu, also while it is in use; descriptor of the root while users > 0
	users int    // guarded by mu

	doors     doors
	freezes   atomic.Bool // whether one of its controllers does
	reluctant atomic.Bool // whether one of its controllers has a check
}

func (t *tree) v2() bool { return t.label == "" }

// trees has each kernel hierarchy once, so that subsystems can tell that they share one.
var trees struct {
	sync.Mutex
	byLabel map[string]*tree
}

func treeOf(label, mount string) *tree {
	trees.Lock()
	defer trees.Unlock()
	t := trees.byLabel[label]
	if t == nil {
		if trees.byLabel == nil {
			trees.byLabel = make(map[string]*tree)
		}
		t = &tree{label: label}
		trees.byLabel[label] = t
	}
	t.mu.Lock()
	t.mount = mount
	t.mu.Unlock()
	return t
}

// findTree finds where this kernel has a controller: in its v1 hierarchy where there is one,
// else in v2, else in a v1 hierarchy that acquire will make. Where the kernel has it under another
// name only it is not to be had.
func findTree(c *controller, opening uint64) (*tree, error) {
	s, err := surveyFor(opening)
	if err != nil {
		return nil, err
	}
	for _, label := range s.labels {
		if slices.Contains(strings.Split(label, ","), c.name) {
			return treeOf(label, s.mountOf(label)), nil
		}
	}
	unified := s.mountOf("")
	if unified != "" {
		b, err := os.ReadFile(unified + "/cgroup.controllers")
		if err != nil {
			return nil, err
		}
		have := strings.Fields(string(b))
		if len(c.core) > 0 || slices.Contains(have, c.name) {
			return treeOf("", unified), nil
		}
		if c.v2Name != "" && slices.Contains(have, c.v2Name) {
			return nil, fmt.Errorf("cgroup v2 has it under the name %s", c.v2Name)
		}
	}
	if err := offered(c.name); err != nil {
		if c.v1Name != "" && offered(c.v1Name) == nil {
			return nil, fmt.Errorf("cgroup v1 has it under the name %s", c.v1Name)
		}
		return nil, err
	}
	return treeOf(c.name, ""), nil
}

// hierarchies returns the labels of the hierarchies that the kernel has now, mounted or not.
func hierarchies() ([]string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	var labels []string
	for line := range strings.Lines(string(b)) {
		if _, rest, ok := strings.Cut(line, ":"); ok {
			label, _, _ := strings.Cut(rest, ":")
			labels = append(labels, label)
		}
	}
	return labels, nil
}

// offered says why the kernel does not offer a controller to v1, nil if it does. See
// /proc/cgroups in cgroups(7).
func offered(controller string) error {
	b, err := os.ReadFile("/proc/cgroups")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 4 && f[0] == controller {
			if f[3] != "1" {
				return errors.New("disabled on the kernel's command line")
			}
			return nil
		}
	}
	return errors.New("not built into this kernel")
}

// survey is which hierarchies there are, and where. All controllers are probed with one: each looks for its own.
type survey struct {
	opening uint64
	labels  []string
	mounts  []*mountinfo.Info
}

var lastSurvey struct {
	sync.Mutex
	survey *survey // guarded by Mutex
}

// surveyFor returns the one of an opening (proxy.Host), which it makes when it is asked first.
func surveyFor(opening uint64) (*survey, error) {
	lastSurvey.Lock()
	defer lastSurvey.Unlock()
	if s := lastSurvey.survey; s != nil && opening != 0 && s.opening == opening {
		return s, nil
	}
	labels, err := hierarchies()
	if err != nil {
		return nil, err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, err
	}
	lastSurvey.survey = &survey{opening, labels, mounts}
	return lastSurvey.survey, nil
}

// mountOf returns a directory where all of a hierarchy is mounted, "" if there is none.
func (s *survey) mountOf(label string) string {
	fstype := "cgroup"
	if label == "" {
		fstype = "cgroup2"
	}
	for _, m := range s.mounts {
		if m.FSType == fstype && m.Root == "/" && hasAll(strings.Split(m.VFSOptions, ","), label) && visible(m) {
			return m.Mountpoint
		}
	}
	return ""
}

func hasAll(options []string, label string) bool {
	for word := range strings.SplitSeq(label, ",") {
		if word != "" && !slices.Contains(options, word) {
			return false
		}
	}
	return true
}

// visible reports whether m is what its mount point shows, and not covered by another mount.
func visible(m *mountinfo.Info) bool {
	var st unix.Stat_t
	return unix.Stat(m.Mountpoint, &st) == nil &&
		unix.Major(st.Dev) == uint32(m.Major) && unix.Minor(st.Dev) == uint32(m.Minor)
}

// acquire opens the root directory, mounting the hierarchy where nobody can see it if it is
// mounted nowhere. Each acquire needs a release.
func (t *tree) acquire() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.users == 0 {
		var err error
		if t.mount != "" {
			t.root, err = unix.Open(t.mount, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		} else {
			t.root, err = mountDetached(t.label)
		}
		if err != nil {
			return fmt.Errorf("open cgroup hierarchy %q: %w", t.label, err)
		}
	}
	t.users++
	return nil
}

func (t *tree) release() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.users--
	if t.users > 0 {
		return nil
	}
	t.doors.closeBelow("")
	return unix.Close(t.root)
}

// vanishPatience is how long the kernel may take for a hierarchy that was bound until now.
const vanishPatience = 10 * time.Second

// vanish has the kernel take down a hierarchy that is mounted nowhere and has no directories, and waits for it, unless
// somebody wants it again. One whose last directory was removed a moment ago outlives its mount, because the kernel
// finishes the directory in the background; mounting and unmounting it again then does what the first time did not.
func (t *tree) vanish(patience time.Duration, wanted func() bool) error {
	deadline := time.Now().Add(patience)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		labels, err := hierarchies()
		if err != nil || !slices.Contains(labels, t.label) || wanted() {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the kernel keeps hierarchy %q", t.label)
		}
		err = t.acquire()
		if err != nil && !errors.Is(err, unix.EBUSY) { // EBUSY: it is on its way down
			return err
		}
		time.Sleep(pause)
		if err == nil {
			if err := t.release(); err != nil {
				return err
			}
		}
	}
}

// lastUser reports whether nobody but the caller has acquired t.
func (t *tree) lastUser() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.users == 1
}

// mountDetached mounts a v1 hierarchy without attaching it anywhere and returns a descriptor of
// its root. The kernel gives the existing one where there is one of that label.
func mountDetached(label string) (int, error) {
	fsfd, err := unix.Fsopen("cgroup", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen cgroup: %w", err)
	}
	defer unix.Close(fsfd)
	name, named := strings.CutPrefix(label, "name=")
	if named {
		err = errors.Join(unix.FsconfigSetFlag(fsfd, "none"), unix.FsconfigSetFlag(fsfd, "xattr"),
			unix.FsconfigSetString(fsfd, "name", name))
	} else {
		for controller := range strings.SplitSeq(label, ",") {
			err = errors.Join(err, unix.FsconfigSetFlag(fsfd, controller))
		}
	}
	if err != nil {
		return -1, fmt.Errorf("cgroup options %q: %w", label, err)
	}
	// EBUSY here: a hierarchy of that label is just being taken down.
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, fmt.Errorf("create cgroup hierarchy %q: %w", label, err)
	}
	const attrs = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("mount cgroup hierarchy %q: %w", label, err)
	}
	return fd, nil
}

// open opens a path below the root. Nothing in it can lead out: names come from users.
func (t *tree) open(path string, flags int) (int, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.users == 0 { // a daemon that ends has given it up, and its number may be another file's
		return -1, fmt.Errorf("open %s: %w", t.name(path), unix.ENODEV)
	}
	fd, err := unix.Openat2(t.root, below(path), &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", t.name(path), err)
	}
	return fd, nil
}

// below makes an absolute path of a hierarchy relative to its root.
func below(path string) string {
	if p := strings.TrimLeft(path, "/"); p != "" {
		return p
	}
	return "."
}

func (t *tree) name(path string) string {
	label := t.label
	if t.v2() {
		label = "v2"
	}
	return label + ":/" + strings.TrimLeft(path, "/")
}

// stat returns what the kernel says of a directory or file, also of a hierarchy that is not
// acquired but mounted.
func (t *tree) stat(path string) (unix.Stat_t, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var st unix.Stat_t
	dir := t.root
	switch {
	case t.users > 0:
		path = below(path)
	case t.mount != "":
		dir, path = unix.AT_FDCWD, filepath.Join(t.mount, path)
	default:
		return st, unix.ENOENT
	}
	err := unix.Fstatat(dir, path, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return st, fmt.Errorf("stat %s: %w", t.name(path), err)
	}
	return st, nil
}

func (t *tree) id(path string) (proxy.ID, error) {
	st, err := t.stat(path)
	return proxy.IDOf(&st), err
}

// in opens the directory of path for an operation on its last component.
func (t *tree) in(path string, op func(dir int, name string) error) error {
	parent, name := filepath.Split(below(path))
	dir, err := t.open(parent, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return op(dir, name)
}

func (t *tree) mkdir(path string) error {
	return t.in(path, func(dir int, name string) error {
		if err := unix.Mkdirat(dir, name, 0o755); err != nil {
			return fmt.Errorf("mkdir %s: %w", t.name(path), err)
		}
		return nil
	})
}

func (t *tree) rmdir(path string) error {
	t.doors.close(path)
	return t.in(path, func(dir int, name string) error {
		if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil {
			return fmt.Errorf("rmdir %s: %w", t.name(path), err)
		}
		return nil
	})
}

func (t *tree) rename(path, newName string) error {
	defer t.doors.closeBelow(path)
	return t.in(path, func(dir int, name string) error {
		if err := unix.Renameat(dir, name, dir, newName); err != nil {
			return fmt.Errorf("rename %s to %q: %w", t.name(path), newName, err)
		}
		return nil
	})
}

// list returns the entries of a directory, sorted by name.
func (t *tree) list(path string) ([]os.DirEntry, error) {
	fd, err := t.open(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), t.name(path))
	defer f.Close()
	entries, err := f.ReadDir(-1)
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, err
}

// read reads a control file as pread(2) does.
func (t *tree) read(path string, buf []byte, off int64) (int, error) {
	fd, err := t.open(path, unix.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	n, err := unix.Pread(fd, buf, off)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", t.name(path), err)
	}
	return n, nil
}

// piece is what the kernel gives at a time of a list, and at once of any other file (seq_read_iter in fs/seq_file.c):
// less room makes more reads.
const piece = 4096

// readAll returns a control file's contents.
func (t *tree) readAll(path string) (string, error) {
	fd, err := t.open(path, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var b []byte
	for {
		if cap(b)-len(b) < piece {
			b = slices.Grow(b, len(b)+piece)
		}
		n, err := unix.Read(fd, b[len(b):cap(b)])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return "", fmt.Errorf("read %s: %w", t.name(path), err)
		case n == 0:
			return string(b), nil
		}
		b = b[:len(b)+n]
	}
}

// write writes a value in one write(2), as control files want it.
func (t *tree) write(path string, data []byte) error {
	fd, err := t.open(path, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, data)
	return t.written(path, data, err)
}

// written says what was to be written where.
func (t *tree) written(path string, data []byte, err error) error {
	if err != nil {
		return fmt.Errorf("write %q to %s: %w", strings.TrimSuffix(string(data), "\n"), t.name(path), err)
	}
	return nil
}

// place writes a task's id to a group: its process with cgroup.procs, one thread with tasks.
func (t *tree) place(task *proxy.Task, path string, whole bool) error {
	if whole {
		id := strconv.AppendInt(nil, int64(task.TGID), 10)
		x, err := t.doors.take(path, func() (int, error) { return t.open(path+"/cgroup.procs", unix.O_WRONLY) })
		if err != nil {
			return err
		}
		_, err = unix.Pwrite(x.fd, id, 0)
		t.doors.give(x)
		if err != unix.ENODEV {
			return t.written(path+"/cgroup.procs", id, err)
		}
		t.doors.close(path) // another group has the path, perhaps
		return t.write(path+"/cgroup.procs", id)
	}
	return t.write(path+"/tasks", strconv.AppendInt(nil, int64(task.TID), 10))
}

// pathOf returns the path of the group that a task is in, false where the kernel does not have
// the hierarchy now.
func (t *tree) pathOf(task *proxy.Task) (string, bool, error) {
	b, err := task.Read("cgroup")
	if err != nil {
		return "", false, err
	}
	path, ok := groupPath(string(b), t.label)
	return path, ok, nil
}

// groupPath finds a hierarchy's line "N:label:path" in a /proc/PID/cgroup.
func groupPath(text, label string) (string, bool) {
	for line := range strings.Lines(text) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		if l, path, ok := strings.Cut(rest, ":"); ok && l == label {
			return path, true
		}
	}
	return "", false
}
