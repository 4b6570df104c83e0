package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"rcfs/proxy"
)

// Lookup finds a name. That a name is missing is not cached: another mount, or the kernel's
// release agent, may make it.
func (s *server) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, err := s.decode(in.NodeId)
	if err != nil {
		return fuse.ENOENT
	}
	n, ok := s.lookup(dir.c, name)
	if !ok {
		return fuse.ENOENT
	}
	s.fillEntry(&n, out)
	return fuse.OK
}

// OpenDir needs no state: a position in a listing is a number that means something by itself.
func (s *server) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	_, err := s.decode(in.NodeId)
	return status(err)
}

// Positions in a listing: ".", "..", the files in their order, then the children by their ids.
const (
	afterDot    = 1
	afterDotDot = 2
	afterFile   = 3               // plus the file's place
	afterChild  = 1<<fileBits + 3 // plus the child's id
)

// files returns the files of a container as they are listed: what is added later comes behind.
func (s *server) files(c *proxy.Container) []node {
	root := c.Parent() == nil
	var list []node
	for i := range ownFiles {
		if f := &ownFiles[i]; f.exists(root) {
			list = append(list, node{c: c, own: f})
		}
	}
	bound := s.h.Files()
	for i := range bound {
		if f := &bound[i]; f.Exists(root) {
			list = append(list, node{c: c, bound: f})
		}
	}
	return list
}

// ReadDir lists a container's files and children from a position on.
func (s *server) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	dir, err := s.decode(in.NodeId)
	if err != nil {
		return status(err)
	}
	if in.Offset < afterDot && !out.AddDirEntry(fuse.DirEntry{Name: ".", Mode: fuse.S_IFDIR, Ino: dir.id(), Off: afterDot}) {
		return fuse.OK
	}
	if in.Offset < afterDotDot && !out.AddDirEntry(fuse.DirEntry{Name: "..", Mode: fuse.S_IFDIR, Ino: parentID(dir.c), Off: afterDotDot}) {
		return fuse.OK
	}
	if in.Offset < afterChild {
		for i, n := range s.files(dir.c) {
			off := afterFile + uint64(i)
			if off <= in.Offset {
				continue
			}
			if !out.AddDirEntry(fuse.DirEntry{Name: n.fileName(), Mode: n.fileType(), Ino: n.id(), Off: off}) {
				return fuse.OK
			}
		}
	}
	s.listChildren(dir.c, in.Offset, out)
	return fuse.OK
}

func (s *server) listChildren(c *proxy.Container, off uint64, out *fuse.DirEntryList) {
	const batch = 256
	var last uint64
	if off > afterChild {
		last = off - afterChild
	}
	for {
		children, names := c.ChildrenAfter(last, batch)
		for i, child := range children {
			last = child.ContainerID()
			if !out.AddDirEntry(fuse.DirEntry{Name: names[i], Mode: fuse.S_IFDIR, Ino: nodeID(child, 0), Off: afterChild + last}) {
				return
			}
		}
		if len(children) < batch {
			return
		}
	}
}

func parentID(c *proxy.Container) uint64 {
	if p := c.Parent(); p != nil {
		return nodeID(p, 0)
	}
	return fuse.FUSE_ROOT_ID
}

// Mkdir makes a container. It belongs to the caller.
func (s *server) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, err := s.decode(in.NodeId)
	if err != nil {
		return status(err)
	}
	c := s.made(in.Unique, dir.c, name)
	if c == nil {
		if c, err = s.h.Make(dir.c, name, proxy.Owner{UID: in.Uid, GID: in.Gid}, isOwnName); err != nil {
			return s.refuse(dir.c, err)
		}
	}
	n := node{c: c}
	s.fillEntry(&n, out)
	s.view.othersForget(forgetAttr(dir.id()))
	return fuse.OK
}

// What was so before a request (Ledger.before): nothing had the name, or what is no container, or the container of
// that id.
const (
	noName    = 1
	otherName = 2
	firstID   = 3 // plus the id
)

// was returns what has a name in c.
func (s *server) was(c *proxy.Container, name string) uint64 {
	n, ok := s.lookup(c, name)
	switch {
	case !ok:
		return noName
	case !n.isDir():
		return otherName
	}
	return firstID + n.c.ContainerID()
}

// made returns the container that this very request has made, nil if none: whoever handled it first died before it
// could answer.
func (s *server) made(unique uint64, dir *proxy.Container, name string) *proxy.Container {
	was, again := s.view.ledger.before(unique, func() uint64 { return s.was(dir, name) })
	if !again || was != noName {
		return nil
	}
	return dir.Child(name)
}

// Rmdir removes a container.
func (s *server) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	dir, err := s.decode(in.NodeId)
	if err != nil {
		return status(err)
	}
	was, again := s.view.ledger.before(in.Unique, func() uint64 { return s.was(dir.c, name) })
	if again && was >= firstID && s.h.Container(was-firstID) == nil {
		return fuse.OK // removed by whoever handled it first
	}
	n, ok := s.lookup(dir.c, name)
	switch {
	case !ok:
		return fuse.ENOENT
	case !n.isDir():
		return fuse.ENOTDIR
	}
	if err := s.h.Remove(dir.c, name); err != nil {
		return s.refuse(n.c, err)
	}
	s.gone(n.c)
	s.view.othersForget(forgetAttr(dir.id()), forgetName(dir.id(), n.id(), name))
	return fuse.OK
}

// gone has all views of the hierarchy give up what they keep for the files of a container that is not there any more.
func (s *server) gone(c *proxy.Container) {
	files := s.files(c)
	for _, v := range s.view.all() {
		v.loop.backings.forget(files)
	}
}

// Rename renames a container.
func (s *server) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	from, err := s.decode(in.NodeId)
	if err != nil {
		return status(err)
	}
	to, err := s.decode(in.Newdir)
	if err != nil {
		return status(err)
	}
	was, again := s.view.ledger.before(in.Unique, func() uint64 { return s.was(from.c, oldName) })
	if again && was >= firstID {
		if c := to.c.Child(newName); c != nil && c.ContainerID() == was-firstID {
			return fuse.OK // renamed by whoever handled it first
		}
	}
	n, ok := s.lookup(from.c, oldName)
	switch {
	case !ok:
		return fuse.ENOENT
	case !n.isDir():
		return fuse.ENOTDIR
	case in.Flags != 0: // RENAME_EXCHANGE, RENAME_NOREPLACE: cgroup has neither
		return fuse.EINVAL
	}
	if err := s.h.Rename(from.c, oldName, to.c, newName, isOwnName); err != nil {
		return s.refuse(n.c, err)
	}
	s.view.othersForget(forgetName(from.id(), 0, oldName))
	return fuse.OK
}
