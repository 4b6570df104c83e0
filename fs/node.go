package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"rcfs/proxy"
)

// A node id is the container's id, which the kernel never uses twice in a hierarchy, above the
// number of the file; 0 is the directory itself. The root directory has the id that FUSE
// demands.
const fileBits = 28

// File numbers from here on are those of subsystems' files.
const firstBound = 128

const _ = uint(1<<fileBits - firstBound - proxy.MaxFileNumber) // there is room for all

func nodeID(c *proxy.Container, file uint64) uint64 {
	if file == 0 && c.Parent() == nil {
		return fuse.FUSE_ROOT_ID
	}
	return c.ContainerID()<<fileBits | file
}

func boundNumber(f *proxy.BoundFile) uint64 { return firstBound + uint64(f.Number) }

// node is a decoded node id: a directory, one of our own files or one of a subsystem's.
type node struct {
	c     *proxy.Container
	own   *ownFile
	bound *proxy.BoundFile
}

// decode finds what a node id means. ErrRemoved: the container is gone.
func (s *server) decode(id uint64) (node, error) {
	if id == fuse.FUSE_ROOT_ID {
		return node{c: s.h.Root()}, nil
	}
	c := s.h.Container(id >> fileBits)
	if c == nil {
		return node{}, proxy.ErrRemoved
	}
	n := node{c: c}
	number := id & (1<<fileBits - 1)
	switch {
	case number == 0:
	case number < firstBound:
		n.own = ownByNumber(number)
	default:
		n.bound = s.h.FileNumbered(uint32(number - firstBound))
	}
	if number != 0 && n.isDir() {
		return node{}, proxy.ErrRemoved
	}
	return n, nil
}

func (n *node) isDir() bool { return n.own == nil && n.bound == nil }

func (n *node) isLink() bool { return n.bound != nil && n.bound.Link != nil }

// fileName returns the name of the file, "" of a directory.
func (n *node) fileName() string {
	switch {
	case n.own != nil:
		return n.own.name
	case n.bound != nil:
		return n.bound.Name
	}
	return ""
}

func (n *node) number() uint64 {
	switch {
	case n.own != nil:
		return n.own.number
	case n.bound != nil:
		return boundNumber(n.bound)
	}
	return 0
}

func (n *node) id() uint64 { return nodeID(n.c, n.number()) }

// lookup finds a name in a container's directory.
func (s *server) lookup(c *proxy.Container, name string) (node, bool) {
	root := c.Parent() == nil
	if f := ownByName(name); f != nil && f.exists(root) {
		return node{c: c, own: f}, true
	}
	if f := s.h.FileNamed(name); f != nil && f.Exists(root) {
		return node{c: c, bound: f}, true
	}
	if child := c.Child(name); child != nil {
		return node{c: child}, true
	}
	return node{}, false
}

// containerOf returns the container of a node id, nil if it is gone.
func (s *server) containerOf(id uint64) *proxy.Container {
	n, err := s.decode(id)
	if err != nil {
		return nil
	}
	return n.c
}
