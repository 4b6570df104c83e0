package subsystems

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// See mount_namespaces(7). A task that enters one leaves its root and working directory for the
// root of the new namespace (mntns_install in fs/namespace.c); package inject does not bring it
// back to its working directory, nor does an undo. That function also refuses a task whose fs_struct has other users,
// which all threads of a process are.
//
// A new one is a copy of the daemon's, the mounts of rcfs included. Mounts that are made or removed
// in either later do not appear in the other, as with unshare(1).
func init() {
	proxy.Register(&mountNamespace{namespace: namespace{
		name:  "mnt",
		link:  "mnt",
		flag:  unix.CLONE_NEWNS,
		order: 40, // late: a failure of the others leaves root and working directory alone
		alone: unix.EINVAL,
		why:   "threads share their root and working directory",
		caps:  []int{unix.CAP_SYS_CHROOT},
	}})
}

type mountNamespace struct{ namespace }

// Bind cannot pin the daemon's own mount namespace: a namespace's file cannot be mounted in the
// namespace itself, nor in a younger one, as they would keep each other alive (mnt_ns_loop in
// fs/namespace.c). It does not need to either, it is there as long as the daemon.
func (m *mountNamespace) Bind(proxy.Place) (proxy.Object, error) {
	own := fmt.Sprintf("/proc/%d/ns/mnt", os.Getpid())
	var st unix.Stat_t
	if err := unix.Stat(own, &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", own, err)
	}
	return &nsObject{kind: &m.namespace, id: proxy.ID{Dev: uint64(st.Dev), Ino: st.Ino}, pin: own}, nil
}

func (m *mountNamespace) Unbind(proxy.Place) error { return nil }

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
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("unshare mnt: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make its mounts private: %w", err)
	}
	source := fmt.Sprintf("/proc/%d/task/%d/ns/mnt", os.Getpid(), unix.Gettid())
	done := make(chan struct{})
	go func() {
		defer close(done)
		o, err = m.hold(p, source)
	}()
	<-done
	return o, err
}

// Check refuses a task with another root than its mount namespace's: it would get out of there.
func (m *mountNamespace) Check(t *proxy.Task, from, to proxy.Object) error {
	if err := m.namespace.Check(t, from, to); err != nil {
		return err
	}
	root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", t.TID))
	if err == nil && root != "/" {
		err = fmt.Errorf("the task's root directory is %s, which it would leave: %w", root, proxy.ErrUnsupported)
	}
	return err
}
