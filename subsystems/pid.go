package subsystems

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// See pid_namespaces(7). A task never changes its own: what it enters is where its children will be
// born, and only below the one it was born in itself (pidns_install in kernel/pid_namespace.c). From
// then on it can make no more threads, as a thread cannot be born elsewhere than its process
// (copy_process in kernel/fork.c: EINVAL). A process that has threads is sure to make more, and most
// end at once when they cannot, so it is refused.
//
// The first process of a namespace is its init: the orphans there become its children, and
// when it dies all others are killed and no more can be born (fork(2): ENOMEM). It is a keeper, so it
// reaps, cannot be killed from inside, outlives the daemon, and ends with the container.
//
// A new one is below that of the container's parent, so who was born in a container can go on to the
// containers below it.
func init() {
	proxy.Register(&pidNamespace{namespace{
		name:  "pid",
		link:  "pid_for_children",
		flag:  unix.CLONE_NEWPID,
		order: 20,
		alone: unix.EINVAL,
		why:   "they could make no more of them",
		files: []proxy.File{{Name: "pid.init", Mode: 0o444, In: proxy.Everywhere, Task: initOf}},
	}})
}

type pidNamespace struct{ namespace }

func (n *pidNamespace) Create(p proxy.Place, parent proxy.Object) (proxy.Object, error) {
	if _, err := initOf(parent); err != nil {
		return nil, err
	}
	plan := n.plan(p)
	plan.born = parent.(*nsObject).pin
	plan.cloned = unix.CLONE_NEWPID
	return n.keep(p, plan)
}

func (n *pidNamespace) Destroy(p proxy.Place) error {
	return errors.Join(dismiss(n.pinOf(p)), n.namespace.Destroy(p))
}

// initOf returns the number of a namespace's init in the daemon's pid namespace. The root's is the
// daemon's own init.
func initOf(o proxy.Object) (int, error) {
	k, err := keeperOf(o.(*nsObject).pin)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 1, nil
	case err != nil:
		return 0, fmt.Errorf("init of %s: %w (%w)", o, err, unix.ENXIO)
	}
	return k.pid, nil
}

// Check refuses also where init has died, and where the task was born elsewhere.
func (n *pidNamespace) Check(t *proxy.Task, to proxy.Object) error {
	if err := n.namespace.Check(t, to); err != nil {
		return err
	}
	if _, err := initOf(to); err != nil {
		return err
	}
	born, err := t.Stat("ns/pid")
	if err != nil {
		return err
	}
	if born == to.ID() {
		return nil
	}
	below, err := ancestry(to.(*nsObject).pin, unix.NS_GET_PARENT, born)
	if err == nil && !below {
		err = fmt.Errorf("the task was born in another pid namespace, which is not above %s: %w", to, unix.EINVAL)
	}
	return err
}
