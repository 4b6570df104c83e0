package subsystems

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// namespace is the subsystem of a kind of namespace.
type namespace struct {
	name  string
	link  string // the file in /proc/PID/ns
	flag  int    // CLONE_NEW*
	order int    // among the namespaces of one move
	// alone is the errno for a process with several threads, 0 where each thread can have a
	// namespace of its own.
	alone unix.Errno
	// why says in words what alone is for.
	why string
	// caps are the capabilities that setns(2) asks the task for besides CAP_SYS_ADMIN.
	caps []int
	// up is run inside a new namespace, before anybody else is.
	up func() error
	// files are the control files besides the link to the namespace, and list those that
	// depend on the kernel.
	files []proxy.File
	list  func() []proxy.File

	pins string // the directory where the namespaces of containers are kept
	run  string // see runOf
}

func registerNamespace(n *namespace) { proxy.Register(n) }

// nsObject is a namespace. A container's is kept alive by a bind mount of its file, the pin, as
// namespaces(7) describes; of a foreign one only the identity is known.
type nsObject struct {
	kind *namespace
	id   proxy.ID
	pin  string // "" of a foreign one
	// beside is where the files beside the pin are, if that is no pin in fact.
	beside string
	// owner is the user namespace that owns it, once somebody has asked. It stays for good.
	owner atomic.Pointer[proxy.ID]
}

func (o *nsObject) ID() proxy.ID   { return o.id }
func (o *nsObject) String() string { return fmt.Sprintf("%s:[%d]", o.kind.clone(), o.id.Ino) }

// clone returns what /proc calls the kind of namespace.
func (n *namespace) clone() string { return strings.TrimSuffix(n.link, "_for_children") }

func (n *namespace) Name() string    { return n.name }
func (n *namespace) Kind() string    { return proxy.KindNamespace }
func (n *namespace) Threaded() bool  { return n.alone == 0 }
func (n *namespace) Demanding() bool { return n.alone != 0 }

// EnterOrder is the order of n, as long as the task needs no new user namespace to be let in; else
// it is entered after that one.
func (n *namespace) EnterOrder(t *proxy.Task, o proxy.Object) int {
	if realmOf(t) != nil {
		if now, err := credentialsOf(t); err == nil && n.refuses(now, o.(*nsObject)) != nil {
			return afterRealm + n.order
		}
	}
	return n.order
}

func (n *namespace) Probe(h proxy.Host) (string, error) {
	n.pins = pinsIn(h)
	if _, err := os.Stat("/proc/self/ns/" + n.link); err != nil {
		return "", fmt.Errorf("not built into this kernel: %w", err)
	}
	var err error
	n.run, err = runOf(h.Run)
	return "nsfs", err
}

func pinsIn(h proxy.Host) string { return filepath.Join(h.Run, "ns") }

// pinOf returns the file to which a container's namespace is pinned.
func (n *namespace) pinOf(p proxy.Place) string {
	return filepath.Join(n.pins, p.Hierarchy(), fmt.Sprintf("%d.%s", p.ContainerID(), n.name))
}

// Bind pins the namespace that the daemon is in: the root container stands for it, also after a
// restart from elsewhere. A pin that holds nothing was not finished, or somebody has unmounted it.
func (n *namespace) Bind(root proxy.Place) (proxy.Object, error) {
	o, err := n.Reopen(root, nil)
	if errors.Is(err, errNoPin) {
		err = errors.Join(unpin(n.pinOf(root)), fs.ErrNotExist)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return n.make(root, func() error { return nil })
	}
	return o, err
}

func (n *namespace) Unbind(root proxy.Place) error { return unpin(n.pinOf(root)) }

func (n *namespace) Create(p proxy.Place, _ proxy.Object) (proxy.Object, error) {
	if plan := n.plan(p); plan.in != "" {
		plan.unshared = n.flag
		o, err := n.makeBy(p, plan)
		if err == nil && n.up != nil {
			if err = inside(o, n.up); err != nil {
				err = errors.Join(err, n.Destroy(p))
			}
		}
		return o, err
	}
	return n.make(p, func() error {
		if err := unix.Unshare(n.flag); err != nil {
			return fmt.Errorf("unshare %s: %w", n.link, err)
		}
		if n.up != nil {
			return n.up()
		}
		return nil
	})
}

// Untouched reports that all that is set in a namespace is set in its control files.
func (n *namespace) Untouched(proxy.Object) bool { return true }

// make pins the namespace into which enter brings a thread.
func (n *namespace) make(p proxy.Place, enter func() error) (o proxy.Object, err error) {
	err = onOwnThread(func() error {
		if err := enter(); err != nil {
			return err
		}
		o, err = n.hold(p, "/proc/thread-self/ns/"+n.link)
		return err
	})
	return o, err
}

// hold pins the namespace that a file in /proc leads to.
func (n *namespace) hold(p proxy.Place, source string) (proxy.Object, error) {
	pin := n.pinOf(p)
	if err := touch(pin); err != nil {
		return nil, err
	}
	if err := unix.Mount(source, pin, "", unix.MS_BIND, ""); err != nil {
		return nil, errors.Join(fmt.Errorf("pin %s to %s: %w", source, pin, err), unpin(pin))
	}
	o, err := n.Reopen(p, nil)
	if err != nil {
		return nil, errors.Join(err, unpin(pin))
	}
	return o, nil
}

func touch(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	return f.Close()
}

// unpin removes a pin and the directories that are empty then.
func unpin(path string) error {
	// EINVAL: not a mount point, because pinning failed or somebody was there before us.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for dir := filepath.Dir(path); os.Remove(dir) == nil && filepath.Base(dir) != "ns"; {
		dir = filepath.Dir(dir)
	}
	return nil
}

// errNoPin says of a file that it should be a pin.
var errNoPin = errors.New("is not mounted and holds no namespace")

func (n *namespace) Reopen(p proxy.Place, _ proxy.Object) (proxy.Object, error) {
	pin := n.pinOf(p)
	var st unix.Stat_t
	if err := unix.Stat(pin, &st); err != nil {
		return nil, fmt.Errorf("pin %s: %w", pin, err)
	}
	var sfs unix.Statfs_t
	if err := unix.Statfs(pin, &sfs); err != nil {
		return nil, fmt.Errorf("pin %s: %w", pin, err)
	}
	if sfs.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("%s %w", pin, errNoPin)
	}
	return &nsObject{kind: n, id: proxy.IDOf(&st), pin: pin}, nil
}

// Rescue pins again what the keeper is in, or else a task.
func (n *namespace) Rescue(p proxy.Place, t *proxy.Task) (proxy.Object, error) {
	pin := n.pinOf(p)
	source := ""
	if k, err := keeperOf(pin); err == nil {
		source = k.file("ns/" + n.link)
	} else if t != nil {
		source = fmt.Sprintf("/proc/%d/ns/%s", t.TID, n.link)
	}
	if source == "" {
		return nil, fs.ErrNotExist
	}
	if err := unpin(pin); err != nil {
		return nil, err
	}
	return n.hold(p, source)
}

func (n *namespace) Destroy(p proxy.Place) error { return unpin(n.pinOf(p)) }

func (n *namespace) Current(t *proxy.Task) (proxy.Object, error) {
	id, err := t.Stat("ns/" + n.link)
	if err != nil {
		return nil, err
	}
	return &nsObject{kind: n, id: id}, nil
}

func (n *namespace) Open(o proxy.Object) (proxy.Namespace, error) {
	pin := o.(*nsObject).pin
	fd, err := unix.Open(pin, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return proxy.Namespace{}, fmt.Errorf("open %s: %w", pin, err)
	}
	return proxy.Namespace{Type: n.flag, FD: fd}, nil
}

// Check tells what setns(2) would say.
func (n *namespace) Check(t *proxy.Task, to proxy.Object) error {
	if err := n.single(t); err != nil {
		return err
	}
	return n.admits(t, to.(*nsObject))
}

// single refuses processes with threads where those cannot enter.
func (n *namespace) single(t *proxy.Task) error {
	st, err := t.Status()
	if err == nil && n.alone != 0 && st.Threads > 1 {
		err = fmt.Errorf("the process has %d threads: %s: %w", st.Threads, n.why, n.alone)
	}
	return err
}

// admits refuses tasks that have not the capabilities, neither as they are nor once they have
// entered a new user namespace.
func (n *namespace) admits(t *proxy.Task, to *nsObject) error {
	now, err := credentialsOf(t)
	if err != nil {
		return err
	}
	refusal := n.refuses(now, to)
	if u := realmOf(t); refusal != nil && u != nil && u.kind.flag != n.flag && n.refuses(now.in(u), to) == nil {
		return nil
	}
	return refusal
}

// ancestry reports whether one namespace is found on the way up from another: the first step is
// the request, the others lead to the parent (ioctl_nsfs(2)).
func ancestry(pin string, request uint, wanted proxy.ID) (bool, error) {
	fd, err := unix.Open(pin, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("open %s: %w", pin, err)
	}
	for ; ; request = unix.NS_GET_PARENT {
		up, err := unix.IoctlRetInt(fd, request)
		unix.Close(fd)
		if err == unix.EPERM {
			return false, nil // above the namespace that we are in ourselves
		}
		if err != nil {
			return false, fmt.Errorf("owner or parent of %s: %w", pin, err)
		}
		fd = up
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return false, fmt.Errorf("owner or parent of %s: %w", pin, err)
		}
		if proxy.IDOf(&st) == wanted {
			unix.Close(fd)
			return true, nil
		}
	}
}

func (n *namespace) Files() []proxy.File {
	link := proxy.File{Name: n.name + ".ns", Mode: 0o777, In: proxy.Everywhere, Link: func(o proxy.Object) (string, error) {
		return o.(*nsObject).pin, nil
	}}
	files := append([]proxy.File{link}, n.files...)
	if n.list != nil {
		files = append(files, n.list()...)
	}
	return files
}

// side is what the names of the files beside the pin begin with.
func (o *nsObject) side() string {
	if o.beside != "" {
		return o.beside
	}
	return o.pin
}

// inside runs f on a thread that has entered the namespace o.
func inside(o proxy.Object, f func() error) error {
	ns := o.(*nsObject)
	return onOwnThread(func() error {
		fd, err := unix.Open(ns.pin, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", ns.pin, err)
		}
		defer unix.Close(fd)
		if ns.kind.flag == unix.CLONE_NEWNS {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare root and working directory: %w", err)
			}
		}
		if err := unix.Setns(fd, ns.kind.flag); err != nil {
			return fmt.Errorf("enter %s: %w", ns, err)
		}
		return f()
	})
}

// plan is how a keeper begins that makes a namespace for the container p: its maker's user
// namespace owns a namespace, so the keeper enters the container's, unless that is our own.
func (n *namespace) plan(p proxy.Place) keeperPlan {
	plan := keeperPlan{run: n.run, uid: -1, gid: -1}
	if m, ok := p.(proxy.Member); ok {
		if u, ok := m.Sovereign().(*nsObject); ok && !u.ours() {
			plan.in = u.pin
		}
	}
	return plan
}

// ours reports whether o is the namespace that we are in ourselves.
func (o *nsObject) ours() bool {
	var st unix.Stat_t
	err := unix.Stat("/proc/self/ns/"+o.kind.link, &st)
	return err == nil && o.id == proxy.IDOf(&st)
}

// makeBy makes the namespace of p with a keeper that goes afterwards.
func (n *namespace) makeBy(p proxy.Place, plan keeperPlan) (proxy.Object, error) {
	k, err := startKeeper(plan)
	if err != nil {
		return nil, err
	}
	o, err := n.hold(p, k.file("ns/"+n.link))
	if endErr := k.end(); err == nil && endErr != nil {
		return nil, errors.Join(endErr, unpin(n.pinOf(p)))
	}
	return o, err
}

// keep makes the namespace of p with a keeper in it, which stays.
func (n *namespace) keep(p proxy.Place, plan keeperPlan) (proxy.Object, error) {
	k, err := startKeeper(plan)
	if err != nil {
		return nil, err
	}
	o, err := n.hold(p, k.file("ns/"+n.link))
	if err != nil {
		return nil, errors.Join(err, k.end())
	}
	if err := k.keep(n.pinOf(p)); err != nil {
		return nil, errors.Join(err, k.end(), os.Remove(record(n.pinOf(p))), unpin(n.pinOf(p)))
	}
	return o, nil
}
