package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"rcfs/proxy"
)

func (n *node) readable() bool {
	return n.own != nil && n.own.text != nil || n.bound != nil && (n.bound.Read != nil || n.bound.Task != nil) && n.bound.Mode&0o444 != 0
}

func (n *node) writable() bool {
	return n.own != nil && n.own.write != nil || n.bound != nil && n.bound.Write != nil && n.bound.Mode&0o222 != 0
}

// Open refuses what the file cannot do, as kernfs_fop_open in fs/kernfs/file.c does, also for
// root. Nothing is kept for an open file but what has been read of our own ones.
func (s *server) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, err := s.decode(in.NodeId)
	if err != nil {
		return status(err)
	}
	access := in.Flags & syscall.O_ACCMODE
	if access != syscall.O_WRONLY && !n.readable() || access != syscall.O_RDONLY && !n.writable() {
		return fuse.EACCES
	}
	switch {
	case n.own != nil && n.own.watched:
		populated, err := n.c.Populated()
		if err == nil {
			out.Fh, err = s.view.loop.watch.open(n.id(), populated)
		}
		if err != nil {
			return s.refuse(n.c, err)
		}
	case n.own != nil && access != syscall.O_WRONLY:
		out.Fh = s.view.ledger.nextFh()
	}
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	if id := s.view.loop.backings.of(&n); id != 0 {
		out.OpenFlags, out.BackingID = fuse.FOPEN_PASSTHROUGH|fuse.FOPEN_NOFLUSH, id
		if s.h.Container(n.c.ContainerID()) == nil {
			s.gone(n.c) // meanwhile
			return status(proxy.ErrRemoved)
		}
	}
	return fuse.OK
}

// Release is called when an open file has been closed.
func (s *server) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if in.Fh != 0 {
		s.lists.close(in.Fh)
		s.view.loop.watch.close(in.Fh)
	}
}

// Read reads from a file's current contents.
func (s *server) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, err := s.decode(in.NodeId)
	if err != nil {
		return nil, status(err)
	}
	var count int
	if n.own != nil && n.own.text != nil {
		count, err = s.lists.read(in.Fh, buf, int64(in.Offset), func() (string, error) {
			if n.own.watched {
				// Before it is read: what changes in between is one change more.
				if populated, err := n.c.Populated(); err == nil {
					s.view.loop.watch.saw(in.Fh, populated)
				}
			}
			return n.own.text(n.c, caller(&in.InHeader))
		})
	} else {
		count, err = n.readBound(caller(&in.InHeader), buf, int64(in.Offset))
	}
	if err != nil {
		return nil, s.refuse(n.c, err)
	}
	return fuse.ReadResultData(buf[:count]), fuse.OK
}

// caller returns who sent a request.
func caller(in *fuse.InHeader) proxy.Writer {
	return proxy.Writer{TID: int(in.Pid), Owner: proxy.Owner{UID: in.Uid, GID: in.Gid}}
}

func (n *node) readBound(r proxy.Writer, buf []byte, off int64) (int, error) {
	if n.bound == nil {
		return 0, proxy.ErrValue // a file that is only written; it cannot be opened for this
	}
	o := n.c.Object(n.bound.Slot)
	if o == nil {
		return 0, proxy.ErrRemoved
	}
	return n.bound.ReadFor(r, o, buf, off)
}

// copyFrom copies what of text there is from an offset on.
func copyFrom(buf []byte, text string, off int64) int {
	if off >= int64(len(text)) {
		return 0
	}
	return copy(buf, text[off:])
}

// Write hands what came in one write(2) to the file. Where in the file it shall be written means
// nothing, as in the kernel's control files.
func (s *server) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, err := s.decode(in.NodeId)
	if err != nil {
		return 0, status(err)
	}
	w := caller(&in.InHeader)
	w.NonBlock = in.Flags&syscall.O_NONBLOCK != 0
	count, err := s.write(&n, w, data)
	if err != nil {
		s.refuse(n.c, err)
		return 0, fuse.Status(errnoFor(w, err))
	}
	return uint32(count), fuse.OK
}

func (s *server) write(n *node, w proxy.Writer, data []byte) (int, error) {
	if n.own != nil {
		return n.own.write(s, n.c, w, data)
	}
	o := n.c.Object(n.bound.Slot)
	if o == nil {
		return 0, proxy.ErrRemoved
	}
	err := n.c.Admits(n.bound.Slot, w)
	if err == nil {
		err = n.bound.Write(o, data, w)
	}
	if err != nil {
		return 0, &proxy.Error{Op: "write " + n.bound.Name, Container: n.c.Path(), Subsystem: n.bound.Subsystem, Err: err}
	}
	return len(data), nil
}

// Readlink answers for the links to namespaces.
func (s *server) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n, err := s.decode(in.NodeId)
	if err != nil {
		return nil, status(err)
	}
	if !n.isLink() {
		return nil, fuse.EINVAL
	}
	o := n.c.Object(n.bound.Slot)
	if o == nil {
		return nil, status(proxy.ErrRemoved)
	}
	target, err := n.bound.Link(o)
	if err != nil {
		return nil, s.refuse(n.c, err)
	}
	return []byte(target), fuse.OK
}
