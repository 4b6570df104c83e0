package fs

import (
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"rcfs/proxy"
)

// cacheTime is how long the kernel may keep names and attributes: what changes them tells it.
const cacheTime = time.Hour

// permissions returns owner and mode of a node.
func (n *node) permissions() proxy.Attr {
	switch {
	case n.own != nil:
		return n.c.FileAttr(n.own.name, n.own.mode)
	case n.bound != nil:
		return n.c.FileAttr(n.bound.Name, n.bound.Mode)
	}
	return n.c.Attr()
}

func (s *server) fillAttr(n *node, out *fuse.Attr) {
	a := n.permissions()
	out.Ino = n.id()
	out.Mode = a.Mode&0o7777 | n.fileType()
	out.Uid, out.Gid = a.UID, a.GID
	out.Nlink = 1
	if n.isDir() {
		out.Nlink = uint32(2 + n.c.ChildCount())
	}
	out.Blksize = 4096
	out.SetTimes(&s.since, &s.since, &s.since)
}

func (n *node) fileType() uint32 {
	switch {
	case n.isDir():
		return syscall.S_IFDIR
	case n.isLink():
		return syscall.S_IFLNK
	}
	return syscall.S_IFREG
}

func (s *server) fillEntry(n *node, out *fuse.EntryOut) {
	out.NodeId = n.id()
	s.fillAttr(n, &out.Attr)
	out.SetEntryTimeout(cacheTime)
	out.SetAttrTimeout(cacheTime)
}

// GetAttr answers stat(2).
func (s *server) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, err := s.decode(in.NodeId)
	if err != nil {
		return status(err)
	}
	s.fillAttr(&n, &out.Attr)
	out.SetTimeout(cacheTime)
	return fuse.OK
}

// SetAttr answers chown(2), chmod(2), truncate(2) and utimensat(2). A size and times are taken
// and mean nothing: the shell's ">" truncates before it writes.
func (s *server) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, err := s.decode(in.NodeId)
	if err != nil {
		return status(err)
	}
	old := n.permissions()
	want := old
	if uid, ok := in.GetUID(); ok {
		want.UID = uid
	}
	if gid, ok := in.GetGID(); ok {
		want.GID = gid
	}
	if mode, ok := in.GetMode(); ok {
		want.Mode = mode & 0o7777
	}
	if want != old {
		if n.isDir() {
			err = n.c.SetAttr(want)
		} else {
			err = n.c.SetFileAttr(n.fileName(), want)
		}
		if err != nil {
			return s.refuse(n.c, err)
		}
		s.view.othersForget(forgetAttr(n.id()))
		if n.isDir() {
			s.view.allForget(s.filesOf(n.c)...)
		}
	}
	s.fillAttr(&n, &out.Attr)
	out.SetTimeout(cacheTime)
	return fuse.OK
}

// filesOf returns what the kernel has to forget when a container's owner has changed: its files
// belong to the same owner.
func (s *server) filesOf(c *proxy.Container) []notice {
	var list []notice
	for _, n := range s.files(c) {
		list = append(list, forgetAttr(n.id()))
	}
	return list
}
