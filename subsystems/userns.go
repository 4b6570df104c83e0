package subsystems

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// See user_namespaces(7). There is no way back: the task has no capability any more in the
// namespace that it has left, so it cannot enter another container's either, and a move of it into
// other namespaces than those it is in is refused; its groups change as before. It is therefore
// entered last. What can fail after it is only the roster: then groups are put back, the namespaces
// are not, and the error says so.
//
// A new one is below the daemon's, wherever its container is. Its ids have no meaning until they are
// written to userns.uid_map and userns.gid_map, which the kernel takes once; the files are those
// of a keeper, as a process of several threads cannot be in there (userns_install).
//
// The namespaces that are made for the same container belong to the daemon's user namespace: a
// task in both can use them, but has no power over them.
func init() {
	proxy.Register(&userNamespace{namespace{
		name:  "userns",
		link:  "user",
		flag:  unix.CLONE_NEWUSER,
		order: 90,
		alone: unix.EINVAL,
		why:   "threads share their user namespace",
		files: []proxy.File{
			mapFile("uid_map", unix.CAP_SETUID),
			mapFile("gid_map", unix.CAP_SETGID),
		},
	}})
}

type userNamespace struct{ namespace }

func (n *userNamespace) Create(p proxy.Place, _ proxy.Object) (proxy.Object, error) {
	return n.keep(p, 0, unix.CLONE_NEWUSER)
}

func (n *userNamespace) Destroy(o proxy.Object) error {
	return errors.Join(dismiss(o.(*nsObject).pin), n.namespace.Destroy(o))
}

// mapFile shows and sets which ids stand for which. The kernel would look at our capabilities.
func mapFile(name string, capability int) proxy.File {
	path := func(o proxy.Object) (string, error) {
		k, err := keeperOf(o.(*nsObject).pin)
		if errors.Is(err, fs.ErrNotExist) {
			return "/proc/self/" + name, nil
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w (%w)", o, err, unix.ENXIO)
		}
		return k.file(name), nil
	}
	return proxy.File{
		Name: "userns." + name,
		Mode: 0o644,
		In:   proxy.Everywhere,
		Read: proxy.Text(func(o proxy.Object) (string, error) {
			file, err := path(o)
			if err != nil {
				return "", err
			}
			b, err := os.ReadFile(file)
			return string(b), err
		}),
		Write: func(o proxy.Object, data []byte, w proxy.Writer) error {
			if err := w.Capable(capability); err != nil {
				return err
			}
			file, err := path(o)
			if err != nil {
				return err
			}
			return os.WriteFile(file, data, 0)
		},
	}
}
