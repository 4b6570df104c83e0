package subsystems

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// See user_namespaces(7). There is no way back: the task has no capability any more in the
// namespace that it has left, so it cannot enter another container's either, and a move of it into
// other namespaces than those it is in is refused; its groups change as before. So everything that
// can be undone is done before (proxy.Sovereign), and what the task may enter as it is it enters
// before too. What it may enter only with the capabilities that it gets it enters afterwards; that
// all of it will go well was asked beforehand (refuses), as it could not be undone.
//
// A container's is made below that of the container's parent, by a keeper, since a process of several
// threads cannot be in there (userns_install). The keeper does so as the container's owner: the
// kernel lets the user in who has made it, also one without any privilege. The namespaces that are
// made for the same container belong to it, so such a task can enter them next. A container that
// gets another owner before anybody was in it gets new ones.
//
// Ids have no meaning in it until they are written to userns.uid_map and userns.gid_map, which
// the kernel takes once. If nobody has written them when the first task enters, they are made such
// that the task notices nothing: each id stands for itself, all of them where the owner is root, else the
// owner's own. With only these the owner could give up groups that it is kept out by, so
// setgroups(2) is denied then, as the kernel demands of users who write their map themselves.
func init() {
	proxy.Register(&userNamespace{namespace{
		name:  "userns",
		link:  "user",
		flag:  unix.CLONE_NEWUSER,
		order: realmOrder,
		alone: unix.EINVAL,
		why:   "threads share their user namespace",
		files: []proxy.File{
			mapFile("uid_map", unix.CAP_SETUID),
			mapFile("gid_map", unix.CAP_SETGID),
		},
	}})
}

type userNamespace struct{ namespace }

// Sovereign says that it owns the other namespaces.
func (n *userNamespace) Sovereign() {}

// Create gives also the namespace above its maps: there must be somebody to own the new one.
func (n *userNamespace) Create(p proxy.Place, parent proxy.Object) (_ proxy.Object, err error) {
	above := parent.(*nsObject)
	var owner proxy.Owner
	if m, ok := p.(proxy.Member); ok {
		owner = m.Attr().Owner
	}
	if err := giveMaps(above); err != nil {
		return nil, err
	}
	uids, err := mapOf(above, "uid_map")
	if err != nil {
		return nil, err
	}
	gids, err := mapOf(above, "gid_map")
	if err != nil {
		return nil, err
	}
	// Its owner must be somebody in the namespace above. Root stands for who comes first there.
	plan := keeperPlan{run: n.run, unshared: unix.CLONE_NEWUSER}
	uid, uidErr := uids.inside(owner.UID)
	gid, gidErr := gids.inside(owner.GID)
	if owner.UID == 0 && uidErr != nil && len(uids) > 0 && len(gids) > 0 {
		uid, gid, uidErr, gidErr = uids[0][0], gids[0][0], nil, nil
	}
	if err := errors.Join(uidErr, gidErr); err != nil {
		return nil, fmt.Errorf("owner of the container, in %s: %w", above, err)
	}
	plan.uid, plan.gid = int(int32(uid)), int(int32(gid))
	if !above.ours() {
		plan.in = above.pin
	}
	pin := n.pinOf(p)
	o, err := n.keep(p, plan)
	if err != nil {
		return nil, err
	}
	ownUIDs, ownGIDs := idMap{{uid, owner.UID, 1}}, idMap{{gid, owner.GID, 1}}
	if uid == 0 {
		ownUIDs, ownGIDs = uids, gids
	}
	err = errors.Join(os.WriteFile(later(pin, "uid_map"), []byte(ownUIDs.identity()), 0o644),
		os.WriteFile(later(pin, "gid_map"), []byte(ownGIDs.identity()), 0o644))
	if err != nil {
		return nil, errors.Join(err, n.Destroy(p))
	}
	return o, nil
}

func (n *userNamespace) Destroy(p proxy.Place) error {
	pin := n.pinOf(p)
	errs := []error{dismiss(pin)}
	for _, name := range []string{"uid_map", "gid_map"} {
		if err := os.Remove(later(pin, name)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, n.namespace.Destroy(p))...)
}

// Untouched reports whether nobody has entered yet or could have been in it: it has no maps.
func (n *userNamespace) Untouched(o proxy.Object) bool {
	for _, name := range []string{"uid_map", "gid_map"} {
		if m, err := mapOf(o.(*nsObject), name); err != nil || len(m) > 0 {
			return false
		}
	}
	return true
}

// Check refuses also where the maps cannot be made.
func (n *userNamespace) Check(t *proxy.Task, to proxy.Object) error {
	if err := n.namespace.Check(t, to); err != nil {
		return err
	}
	_, err := mapOf(to.(*nsObject), "uid_map")
	return err
}

// Open gives the namespace its maps: somebody is about to enter.
func (n *userNamespace) Open(o proxy.Object) (proxy.Namespace, error) {
	if err := giveMaps(o.(*nsObject)); err != nil {
		return proxy.Namespace{}, err
	}
	return n.namespace.Open(o)
}

// later is the file beside a pin with the map that the namespace gets if nobody writes another.
func later(pin, name string) string { return pin + "." + name }

// giveMaps writes the maps that nobody has written.
func giveMaps(o *nsObject) error {
	for _, name := range []string{"uid_map", "gid_map"} {
		m, err := mapOf(o, name)
		if err != nil || len(m) > 0 {
			if err != nil {
				return err
			}
			continue
		}
		text, err := os.ReadFile(later(o.pin, name))
		if err != nil {
			return err
		}
		file, err := mapPath(o, name)
		if err != nil {
			return err
		}
		if name == "gid_map" {
			if err := denySetgroups(o); err != nil {
				return err
			}
		}
		if err := writeMap(o, file, text); err != nil {
			return fmt.Errorf("%s of %s: %w", name, o, err)
		}
	}
	return nil
}

// denySetgroups does that where the owner is not root. The kernel takes it before the gid_map.
func denySetgroups(o *nsObject) error {
	users, err := os.ReadFile(later(o.pin, "uid_map"))
	if err != nil || strings.HasPrefix(string(users), "0 ") {
		return err
	}
	file, err := mapPath(o, "setgroups")
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte("deny"), 0); err != nil {
		return fmt.Errorf("setgroups of %s: %w", o, err)
	}
	return nil
}

// idMap is a map as uid_map has it: in the namespace, in our own, how many.
type idMap [][3]uint32

func mapOf(o *nsObject, name string) (idMap, error) {
	file, err := mapPath(o, name)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var m idMap
	for line := range strings.Lines(string(text)) {
		var e [3]uint32
		if _, err := fmt.Sscan(line, &e[0], &e[1], &e[2]); err != nil {
			return nil, fmt.Errorf("%s: line %q: %w", file, line, err)
		}
		m = append(m, e)
	}
	return m, nil
}

// inside returns what an id of ours is called in the namespace.
func (m idMap) inside(id uint32) (uint32, error) {
	for _, e := range m {
		if id >= e[1] && id-e[1] < e[2] {
			return e[0] + id - e[1], nil
		}
	}
	return 0, fmt.Errorf("id %d is nobody's: %w", id, unix.EPERM)
}

// identity is the text of the map in which each id of m stands for itself.
func (m idMap) identity() string {
	var text strings.Builder
	for _, e := range m {
		fmt.Fprintln(&text, e[0], e[0], e[2])
	}
	return text.String()
}

// mapPath is the file with a map: the keeper's, of our own namespace ours.
func mapPath(o *nsObject, name string) (string, error) {
	k, err := keeperOf(o.pin)
	if errors.Is(err, fs.ErrNotExist) {
		return "/proc/self/" + name, nil
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w (%w)", o, err, unix.ENXIO)
	}
	return k.file(name), nil
}

// mapFile shows and sets which ids stand for which. The kernel would look at our capabilities.
func mapFile(name string, capability int) proxy.File {
	return proxy.File{
		Name: "userns." + name,
		Mode: 0o644,
		In:   proxy.Everywhere,
		Read: proxy.Text(func(o proxy.Object) (string, error) {
			file, err := mapPath(o.(*nsObject), name)
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
			file, err := mapPath(o.(*nsObject), name)
			if err != nil {
				return err
			}
			return writeMap(o.(*nsObject), file, data)
		},
	}
}
