package subsystems

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// credentials are what the kernel looks at when a task wants to enter a namespace.
type credentials struct {
	userns proxy.ID
	euid   uint32
	caps   uint64 // effective, in userns
}

func credentialsOf(t *proxy.Task) (credentials, error) {
	st, err := t.Status()
	if err != nil {
		return credentials{}, err
	}
	userns, err := t.Stat("ns/user")
	return credentials{userns, st.EUID, st.EffectiveCaps}, err
}

// in returns the credentials of a task that has entered a user namespace: it has all
// capabilities there (set_cred_user_ns in kernel/user_namespace.c).
func (c credentials) in(userns *nsObject) credentials {
	return credentials{userns.id, c.euid, ^uint64(0)}
}

// has reports whether the task has a capability in its own user namespace.
func (c credentials) has(capability int) bool { return c.caps&(1<<capability) != 0 }

// capable is ns_capable(9) of the kernel (cap_capable in security/commoncap.c): the task has a
// capability in a user namespace if it has it in its own and that is the one or above it, or if it
// is the user who made it, or one between, in the namespace right above. It closes the descriptor.
func (c credentials) capable(userns, capability int) (bool, error) {
	defer func() { unix.Close(userns) }()
	for {
		id, err := identify(userns)
		if err != nil {
			return false, err
		}
		if id == c.userns {
			return c.has(capability), nil
		}
		parent, err := unix.IoctlRetInt(userns, unix.NS_GET_PARENT)
		if err == unix.EPERM {
			return false, nil // our own: the task's is not above it
		}
		if err != nil {
			return false, fmt.Errorf("parent of a user namespace: %w", err)
		}
		owner, err := ownerOf(userns)
		unix.Close(userns)
		userns = parent
		if err != nil {
			return false, err
		}
		if id, err = identify(parent); err != nil {
			return false, err
		}
		if id == c.userns && owner == c.euid {
			return true, nil
		}
	}
}

func identify(fd int) (proxy.ID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return proxy.ID{}, fmt.Errorf("stat of a namespace: %w", err)
	}
	return proxy.IDOf(&st), nil
}

// ownerOf returns the user who has made a user namespace (ioctl_nsfs(2)).
func ownerOf(userns int) (uint32, error) {
	const nsGetOwnerUID = 0xb704
	var uid uint32
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(userns), nsGetOwnerUID, uintptr(unsafe.Pointer(&uid))); errno != 0 {
		return 0, fmt.Errorf("owner of a user namespace: %w", errno)
	}
	return uid, nil
}

// refuses tells why setns(2) would not let a task with such credentials into o: it asks for
// CAP_SYS_ADMIN in the user namespace that owns o, which a user namespace does itself, and in the
// task's own.
func (n *namespace) refuses(c credentials, o *nsObject) error {
	if n.flag != unix.CLONE_NEWUSER {
		for _, capability := range append([]int{unix.CAP_SYS_ADMIN}, n.caps...) {
			if !c.has(capability) {
				return fmt.Errorf("the task has no %s: %w", capNames[capability], proxy.ErrNotCapable)
			}
		}
		if owner := o.owner.Load(); owner != nil && *owner == c.userns {
			return nil
		}
	}
	fd, err := unix.Open(o.pin, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", o.pin, err)
	}
	if n.flag == unix.CLONE_NEWUSER {
		owner, err := ownerOf(fd)
		if err != nil {
			unix.Close(fd)
			return err
		}
		ok, err := c.capable(fd, unix.CAP_SYS_ADMIN)
		if err == nil && !ok {
			err = fmt.Errorf("the task has no CAP_SYS_ADMIN in %s, nor is it of uid %d, who made it, right above it: %w",
				o, owner, proxy.ErrNotCapable)
		}
		return err
	}
	owner, err := unix.IoctlRetInt(fd, unix.NS_GET_USERNS)
	unix.Close(fd)
	ok := false
	switch {
	case err == nil:
		if id, err := identify(owner); err == nil {
			o.owner.Store(&id)
		}
		ok, err = c.capable(owner, unix.CAP_SYS_ADMIN)
	case err == unix.EPERM:
		err = nil // its owner is above our own
	default:
		err = fmt.Errorf("owner of %s: %w", o, err)
	}
	if err == nil && !ok {
		err = fmt.Errorf("the task's user namespace does not own %s: %w", o, proxy.ErrNotCapable)
	}
	return err
}

// capNames are the capabilities that setns(2) asks for.
var capNames = map[int]string{unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN", unix.CAP_SYS_CHROOT: "CAP_SYS_CHROOT"}

// Orders of entering: a user namespace comes after what the task can enter as it is, and before
// what it can enter only with the capabilities that it gets in there.
const (
	realmOrder = 90
	afterRealm = 100
)

// realmOf returns the user namespace that a task enters in the move under way, nil if none.
func realmOf(t *proxy.Task) *nsObject {
	for _, o := range t.Entering {
		if ns, ok := o.(*nsObject); ok && ns.kind.flag == unix.CLONE_NEWUSER {
			return ns
		}
	}
	return nil
}
