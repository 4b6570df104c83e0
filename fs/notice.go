package fs

import (
	"encoding/binary"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
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

// Codes of messages that answer no request, enum fuse_notify_code of linux/fuse.h.
const (
	noticePoll       = 1
	noticeInvalInode = 2
	noticeInvalEntry = 3
	noticeDelete     = 6
)

// sendNotice writes a message that answers no request. ENOENT: the kernel knows nothing of what it is about.
func sendNotice(fd int, code int32, payload []byte) error {
	header := fuse.OutHeader{Length: uint32(unsafe.Sizeof(fuse.OutHeader{})) + uint32(len(payload)), Status: code}
	message := append(unsafe.Slice((*byte)(unsafe.Pointer(&header)), unsafe.Sizeof(header)), payload...)
	_, err := unix.Write(fd, message)
	return err
}

// send tells the kernel. It may wait for a directory that a request to us has locked.
func (n notice) send(fd int) error {
	var p []byte
	native := binary.NativeEndian
	if n.dir == 0 { // fuse_notify_inval_inode_out; a negative offset: attributes only
		p = native.AppendUint64(p, n.node)
		p = native.AppendUint64(p, ^uint64(0))
		return sendNotice(fd, noticeInvalInode, native.AppendUint64(p, 0))
	}
	p = native.AppendUint64(p, n.dir)
	code := int32(noticeInvalEntry)
	if n.node != 0 {
		code = noticeDelete
		p = native.AppendUint64(p, n.node)
	}
	p = native.AppendUint32(p, uint32(len(n.name)))
	p = native.AppendUint32(p, 0)
	return sendNotice(fd, code, append(append(p, n.name...), 0))
}

// notify tells the kernel, for as long as the view lives. It runs in a goroutine of its own and
// holds no lock: the kernel may wait for a directory that a request to us has locked.
func (v *View) notify() {
	for list := range v.notices {
		for _, n := range list {
			if err := n.send(v.loop.fd); err != nil && err != unix.ENOENT && err != unix.ENODEV && err != unix.ENOTEMPTY {
				v.log.Warn("a mount was not told to forget", "where", v.where, "error", err)
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
