package subsystems

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// See mount_namespaces(7). A task that enters one leaves its root directory for the root of the new
// namespace (mntns_install in fs/namespace.c). It goes on in the working directory of the same
// name, where there is one that it may enter, else in the root; an undo brings it back to exactly
// where it was. That function also refuses a task whose fs_struct has other users, which all
// threads of a process are. Where mnt.split_fs is 1, each thread stops sharing it before: from
// then on chdir(2), chroot(2) and umask(2) of one thread are for that thread only, for good, also
// where the move is refused in the end.
//
// A new one is a copy of the daemon's, the mounts of rcfs included. Mounts that are made or removed
// in either later do not appear in the other, as with unshare(1). Writing a directory to mnt.root
// makes that its root, and leaves out everything that is not below it.
func init() {
	proxy.Register(&mountNamespace{namespace: namespace{
		name:  "mnt",
		link:  "mnt",
		flag:  unix.CLONE_NEWNS,
		order: 40, // late: a failure of the others leaves root and working directory alone
		alone: unix.EINVAL,
		why:   "threads share their root and working directory",
		caps:  []int{unix.CAP_SYS_CHROOT},
		files: []proxy.File{
			{Name: "mnt.root", Mode: 0o644, In: proxy.Everywhere, Read: proxy.Text(readRoot), Write: writeRoot},
			{Name: "mnt.split_fs", Mode: 0o644, In: proxy.Everywhere, Read: proxy.Text(readSplit), Write: writeSplit},
		},
	}})
}

type mountNamespace struct{ namespace }

// Bind cannot pin the daemon's own mount namespace: a namespace's file cannot be mounted in the
// namespace itself, nor in a younger one, as they would keep each other alive (mnt_ns_loop in
// fs/namespace.c). It does not need to either, it is there as long as the daemon.
func (m *mountNamespace) Bind(p proxy.Place) (proxy.Object, error) {
	own := fmt.Sprintf("/proc/%d/ns/mnt", os.Getpid())
	var st unix.Stat_t
	if err := unix.Stat(own, &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", own, err)
	}
	id := proxy.IDOf(&st)
	return &nsObject{kind: &m.namespace, id: id, pin: own, beside: m.pinOf(p)}, nil
}

func (m *mountNamespace) Unbind(p proxy.Place) error { return m.discard(m.pinOf(p)) }

func (m *mountNamespace) Destroy(p proxy.Place) error { return m.discard(m.pinOf(p)) }

// Untouched reports whether it has the root that it was made with.
func (m *mountNamespace) Untouched(o proxy.Object) bool {
	theirs, err := readRoot(o)
	if err != nil {
		return false
	}
	own, err := rootIn("/proc/self/mountinfo")
	return err == nil && theirs == own+"\n"
}

// discard removes a pin and what is beside it.
func (m *mountNamespace) discard(pin string) error {
	err := os.Remove(split(pin))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, unpin(pin))
}

// Create lets a thread make the namespace and another one, outside of it, pin it.
//
// The kernel tells which of two mount namespaces is younger by their numbers, and refuses (EINVAL)
// to mount the file of one that it thinks older than the daemon's. Since Linux 6.18 each processor
// gives out numbers of its own stock (ns_tree_gen_id in kernel/nstree.c), so a namespace made on
// another processor than the daemon's can have the smaller number; one made on the same has not.
func (m *mountNamespace) Create(p proxy.Place, _ proxy.Object) (o proxy.Object, err error) {
	err = onOwnThread(func() error {
		if o, err = m.create(p); !errors.Is(err, unix.EINVAL) {
			return err
		}
		var all unix.CPUSet
		if err := unix.SchedGetaffinity(0, &all); err != nil {
			return fmt.Errorf("affinity: %w", err)
		}
		for cpu := range len(all) * 64 {
			if !all.IsSet(cpu) || !errors.Is(err, unix.EINVAL) {
				continue
			}
			var one unix.CPUSet
			one.Set(cpu)
			if unix.SchedSetaffinity(0, &one) == nil { // else it has gone offline
				o, err = m.create(p)
			}
		}
		return err
	})
	return o, err
}

func (m *mountNamespace) create(p proxy.Place) (o proxy.Object, err error) {
	if plan := m.plan(p); plan.in != "" {
		plan.unshared = unix.CLONE_NEWNS
		if o, err = m.makeBy(p, plan); err != nil {
			return nil, err
		}
		if err := inside(o, private); err != nil {
			return nil, errors.Join(err, m.Destroy(p))
		}
		return o, nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("unshare mnt: %w", err)
	}
	if err := private(); err != nil {
		return nil, err
	}
	source := fmt.Sprintf("/proc/%d/task/%d/ns/mnt", os.Getpid(), unix.Gettid())
	elsewhere(func() { o, err = m.hold(p, source) })
	return o, err
}

func private() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make its mounts private: %w", err)
	}
	return nil
}

// elsewhere runs f on another thread, and waits for it.
func elsewhere(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

// Open has threads split only where there are others that share.
func (m *mountNamespace) Open(o proxy.Object) (proxy.Namespace, error) {
	ns, err := m.namespace.Open(o)
	ns.SplitFS = splits(o.(*nsObject))
	return ns, err
}

// Check refuses threads that share root and working directory, unless they are to be split, and a
// task with another root than its mount namespace's: it would get out of there.
func (m *mountNamespace) Check(t *proxy.Task, to proxy.Object) error {
	if o := to.(*nsObject); !splits(o) {
		shared, err := sharesFS(t)
		if err != nil {
			return err
		}
		if shared {
			if err := m.single(t); err != nil {
				return err
			}
		}
	}
	if err := m.admits(t, to.(*nsObject)); err != nil {
		return err
	}
	root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", t.TID))
	if err == nil && root != "/" {
		err = fmt.Errorf("the task's root directory is %s, which it would leave: %w", root, proxy.ErrUnsupported)
	}
	return err
}

// sharesFS reports whether threads of a process share their root and working directory; those that
// have been split do not. Where the kernel cannot tell (kcmp(2)) all are said to.
func sharesFS(t *proxy.Task) (bool, error) {
	tids, err := t.Threads()
	if err != nil {
		return false, err
	}
	shared := false
	slices.SortFunc(tids, func(a, b int) int {
		const kcmpFS = 3
		order, _, errno := unix.RawSyscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), kcmpFS, 0, 0, 0)
		switch {
		case errno != 0 || order == 0:
			shared = true
			return 0
		case order == 1:
			return -1
		}
		return 1
	})
	return shared, nil
}

// split is the file beside a pin that is there while mnt.split_fs is 1.
func split(pin string) string { return pin + ".split_fs" }

func splits(o *nsObject) bool {
	_, err := os.Stat(split(o.side()))
	return err == nil
}

func readSplit(o proxy.Object) (string, error) {
	if splits(o.(*nsObject)) {
		return "1\n", nil
	}
	return "0\n", nil
}

func writeSplit(o proxy.Object, data []byte, _ proxy.Writer) error {
	file := split(o.(*nsObject).side())
	switch strings.TrimSpace(string(data)) {
	case "0":
		if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	case "1":
		err := touch(file)
		if errors.Is(err, fs.ErrExist) {
			err = nil
		}
		return err
	}
	return proxy.ErrValue
}

// readRoot returns the directory that is the root of the namespace, as mountinfo has it: its path in
// its own file system (proc_pid_mountinfo(5)).
func readRoot(o proxy.Object) (root string, err error) {
	err = inside(o, func() (err error) {
		// There may be no /proc in there, so another thread looks.
		file := fmt.Sprintf("/proc/%d/task/%d/mountinfo", os.Getpid(), unix.Gettid())
		elsewhere(func() { root, err = rootIn(file) })
		return err
	})
	return root + "\n", err
}

func rootIn(mountinfoFile string) (root string, err error) {
	f, err := os.Open(mountinfoFile)
	if err != nil {
		return "", err
	}
	defer f.Close()
	mounts, err := mountinfo.GetMountsFromReader(f, mountinfo.SingleEntryFilter("/"))
	if err == nil && len(mounts) == 0 {
		err = fmt.Errorf("%s has no root: %w", mountinfoFile, unix.ENOENT)
	}
	for _, m := range mounts {
		root = m.Root // the last is on top
	}
	return root, err
}

// writeRoot makes a directory of the namespace its root: the directory is mounted on itself, then
// exchanged with the old root (pivot_root(2)), which goes. Tasks that are in there already and have
// the old root get the new one. A working directory that is not below the new root stays what it is.
func writeRoot(o proxy.Object, data []byte, w proxy.Writer) error {
	if err := w.Admin(); err != nil {
		return err
	}
	path := strings.TrimSuffix(string(data), "\n")
	if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "\n\x00") {
		return fmt.Errorf("%q: an absolute path is wanted: %w", path, proxy.ErrValue)
	}
	if o.(*nsObject).ours() {
		return fmt.Errorf("%s is the machine's own: %w", o, unix.EPERM)
	}
	return inside(o, func() error { return pivot(path) })
}

// pivot makes path the root of the mount namespace of the calling thread, whose root and working
// directory must not be shared.
func pivot(path string) error {
	dir, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(dir)
	tree, err := unix.OpenTree(dir, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("open_tree %s: %w", path, err)
	}
	defer unix.Close(tree)
	if err := unix.Fchdir(tree); err != nil {
		return fmt.Errorf("chdir %s: %w", path, err)
	}
	if err := unix.MoveMount(tree, "", dir, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s on itself: %w", path, err)
	}
	// The first "." is the new root; the old one is mounted there too, on top, and goes at once.
	if err := unix.PivotRoot(".", "."); err != nil {
		err = fmt.Errorf("pivot_root to %s (it cannot be done from an initial ramdisk, nor where mounts are shared): %w", path, err)
		return errors.Join(err, unix.Unmount(".", unix.MNT_DETACH))
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return nil
}
