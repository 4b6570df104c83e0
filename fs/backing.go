package fs

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// backing is a file of the kernel's own that stands behind a node, in the ledger: who has the node open reads and
// writes that file, and the view sees nothing of it (FUSE_PASSTHROUGH of linux/fuse.h, since Linux 6.9).
type backing struct {
	node   uint64 // 0: none
	id     int32  // the kernel's number for the file
	object uint32 // which object of the subsystem the file is of: the low half of its inode number
}

const _ = uint(backingSize - unsafe.Sizeof(backing{}))

// backings are those of a mount. While a node is open the kernel takes no other number for it (EIO), so that each has
// one as long as its container lives: in the ledger, for whoever serves the mount next, before anybody is told.
type backings struct {
	ledger *Ledger
	fd     int // of /dev/fuse
	log    *slog.Logger
	off    atomic.Bool // the kernel cannot, or does not let us

	mu   sync.Mutex
	at   map[uint64]int // guarded by mu; by node, where in the ledger
	free []int          // guarded by mu; below the ledger's mark
}

// openBackings takes over what a predecessor has left. Alive says whether a node's container is still there.
func openBackings(l *Ledger, fd int, log *slog.Logger, alive func(node uint64) bool) *backings {
	b := &backings{ledger: l, fd: fd, log: log, at: make(map[uint64]int)}
	if *b.mark() > backingCount {
		*b.mark() = backingCount
	}
	for i := range int(*b.mark()) {
		switch x := b.entry(i); {
		case x.node == 0:
			b.free = append(b.free, i)
		case !alive(x.node):
			b.drop(i)
		default:
			b.at[x.node] = i
		}
	}
	b.closeLost()
	return b
}

func (b *backings) entry(i int) *backing {
	return (*backing)(unsafe.Pointer(&b.ledger.mem[offBackings+i*backingSize]))
}

// last is the number that the kernel gave last, mark how far the table is in use.
func (b *backings) last() *int32  { return (*int32)(unsafe.Pointer(&b.ledger.mem[offLastBacking])) }
func (b *backings) mark() *uint32 { return (*uint32)(unsafe.Pointer(&b.ledger.mem[offBackingMark])) }

// maxLost bounds the search for numbers that nobody has written down.
const maxLost = 1024

// closeLost closes what a predecessor was given and died before it was written down. Numbers ascend, so that it
// is what lies between the last that was and the next.
func (b *backings) closeLost() {
	probe, err := b.register(b.ledger.Fd())
	if err != nil {
		return
	}
	for id := max(*b.last()+1, probe-maxLost); id <= probe; id++ {
		b.close(id)
	}
}

// of returns the kernel's number of the file behind a node; 0: what reads and writes it goes through us. Only what is
// the container's own is passed through, since another owner decides about what is not (Container.Admits).
func (b *backings) of(n *node) int32 {
	if b.off.Load() || n.bound == nil || n.bound.Backing == nil || !n.c.Owns(n.bound.Slot) {
		return 0
	}
	o := n.c.Object(n.bound.Slot)
	if o == nil {
		return 0
	}
	node, object := n.id(), uint32(o.ID().Ino)
	b.mu.Lock()
	defer b.mu.Unlock()
	if i, ok := b.at[node]; ok {
		x := b.entry(i)
		if x.object == object {
			return x.id
		}
		b.drop(i) // the group has been made anew
	}
	i := b.room()
	if i < 0 {
		return 0
	}
	id, err := b.open(n.bound, o)
	if err != nil {
		b.free = append(b.free, i)
		b.refused(n, err)
		return 0
	}
	x := b.entry(i)
	x.id, x.object, *b.last() = id, object, id
	atomic.StoreUint64(&x.node, node) // now it counts
	b.at[node] = i
	return id
}

// refused needs no mu. A kernel that cannot pass through, or a daemon without CAP_SYS_ADMIN of the machine, is
// not asked again.
func (b *backings) refused(n *node, err error) {
	switch err {
	case unix.ENOTTY, unix.EPERM, unix.EOPNOTSUPP, unix.EINVAL:
		b.off.Store(true)
		b.log.Debug("files are not passed through", "error", err)
	default:
		b.log.Debug("a file is not passed through", "file", n.fileName(), "container", n.c.Path(), "error", err)
	}
}

// room returns a free place in the table, -1 if there is none. It needs mu.
func (b *backings) room() int {
	if n := len(b.free); n > 0 {
		i := b.free[n-1]
		b.free = b.free[:n-1]
		return i
	}
	i := int(*b.mark())
	if i == backingCount {
		return -1
	}
	*b.mark()++
	return i
}

// drop needs mu. Those who have the file open keep it.
func (b *backings) drop(i int) {
	x := b.entry(i)
	delete(b.at, x.node)
	b.close(x.id) // before it is struck out: to close a number twice does not matter
	*x = backing{}
	b.free = append(b.free, i)
}

// forget closes the files behind the nodes of a container that has gone.
func (b *backings) forget(nodes []node) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.at) == 0 {
		return
	}
	for k := range nodes {
		if i, ok := b.at[nodes[k].id()]; ok {
			b.drop(i)
		}
	}
}

// stop closes them all, when the mount has ended: some are of file systems that are to go, too.
func (b *backings) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.off.Store(true)
	for _, i := range b.at {
		b.drop(i)
	}
}

// The ioctls of linux/fuse.h.
const (
	ioctlBackingOpen  = 0x4010e501
	ioctlBackingClose = 0x4004e502
)

// open opens the file of a subsystem's object for the kernel.
func (b *backings) open(f *proxy.BoundFile, o proxy.Object) (int32, error) {
	fd, err := f.Backing(o)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return b.register(fd)
}

func (b *backings) register(fd int) (int32, error) {
	arg := struct {
		fd    int32
		flags uint32
		_     uint64
	}{fd: int32(fd)}
	id, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(b.fd), ioctlBackingOpen, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return 0, errno
	}
	return int32(id), nil
}

// close has the kernel forget a number; one that it does not know (ENOENT) does not matter, as a rule.
func (b *backings) close(id int32) error {
	arg := uint32(id)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(b.fd), ioctlBackingClose, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return errno
	}
	return nil
}
