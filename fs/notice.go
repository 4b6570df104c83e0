package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
)

// notice is something that the kernel has to forget about a mount: a node's attributes, or a name
// in a directory.
type notice struct {
	node uint64 // whose attributes, or the child that had the name; 0 if it lives on
	dir  uint64 // where the name was; 0 for attributes
	name string
}

func forgetAttr(node uint64) notice { return notice{node: node} }

func forgetName(dir, child uint64, name string) notice {
	return notice{dir: dir, node: child, name: name}
}

// notify tells the kernel, for as long as the view lives. It runs in a goroutine of its own and
// holds no lock: the kernel may wait for a directory that a request to us has locked.
func (v *View) notify(s *fuse.Server) {
	for list := range v.notices {
		for _, n := range list {
			switch {
			case n.dir == 0:
				s.InodeNotify(n.node, -1, 0) // a negative offset: attributes only
			case n.node != 0:
				s.DeleteNotify(n.dir, n.node, n.name)
			default:
				s.EntryNotify(n.dir, n.name)
			}
		}
	}
}

// othersForget tells the kernel of a change that came through v for the other views.
func (v *View) othersForget(list ...notice) { v.forget(false, list) }

// allForget tells it for all views.
func (v *View) allForget(list ...notice) { v.forget(true, list) }

func (v *View) forget(self bool, list []notice) {
	views.Lock()
	defer views.Unlock()
	for other := range views.of[v.h] {
		if other == v && !self {
			continue
		}
		select {
		case other.notices <- list:
		default:
			v.log.Warn("a mount may show old attributes for a while", "where", other.where)
		}
	}
}
