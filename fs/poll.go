package fs

import (
	"encoding/binary"
	"log/slog"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// pollIn and pollOut are fuse_poll_in and fuse_poll_out of linux/fuse.h, the latter with its header.
type pollIn struct {
	fuse.InHeader
	fh, kh        uint64
	flags, events uint32
}

type pollOut struct {
	fuse.OutHeader
	revents uint32
	_       uint32
}

// scheduleNotify is FUSE_POLL_SCHEDULE_NOTIFY: somebody waits.
const scheduleNotify = 1

// always is what poll(2) finds of a file that never blocks, DEFAULT_POLLMASK in linux/poll.h: POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM.
const always = 0x1 | 0x4 | 0x40 | 0x100

// watch is an open rcfs.events, in the ledger: the successor of whoever serves the mount goes on with it.
type watch struct {
	fh      uint64 // 0: none
	kh      uint64 // the kernel's number for it, once it has been polled; 0 before
	node    uint64
	seen    uint32 // what its reader knows: 0 or 1
	changed uint32 // 1: since then it has changed
}

const _ = uint(watchSize - unsafe.Sizeof(watch{}))

// watches are the open rcfs.events of a mount.
type watches struct {
	ledger *Ledger
	fd     int // of /dev/fuse
	log    *slog.Logger
	// none makes poll(2) nothing for us: the kernel does not ask again then.
	none bool

	mu    sync.Mutex
	byFh  map[uint64]int    // guarded by mu
	ended map[uint64]func() // guarded by mu; by fh, of those that are polled: stops watching the container
}

func (w *watches) at(i int) *watch {
	return (*watch)(unsafe.Pointer(&w.ledger.mem[offWatches+i*watchSize]))
}

func newWatches(l *Ledger, fd int, log *slog.Logger) *watches {
	w := &watches{ledger: l, fd: fd, log: log, byFh: make(map[uint64]int), ended: make(map[uint64]func())}
	for i := range watchCount {
		if fh := w.at(i).fh; fh != 0 {
			w.byFh[fh] = i
		}
	}
	return w
}

// nextFh returns a number for an open file that no other open file of the mount has had.
func (l *Ledger) nextFh() uint64 { return atomic.AddUint64((*uint64)(unsafe.Pointer(&l.mem[8])), 1) }

// resume has those who waited when a predecessor died ask again: what has happened meanwhile nobody has told them.
func (w *watches) resume(containerOf func(node uint64) *proxy.Container) {
	for _, kh := range w.begin(containerOf) {
		w.notify(kh)
	}
}

// begin watches again, and returns the kernel's numbers of those who wait.
func (w *watches) begin(containerOf func(node uint64) *proxy.Container) (polled []uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for fh, i := range w.byFh {
		x := w.at(i)
		c := containerOf(x.node)
		if c == nil {
			x.changed = 1
		}
		if x.kh == 0 {
			continue
		}
		if c != nil {
			w.ended[fh] = w.watch(fh, c)
		}
		polled = append(polled, x.kh)
	}
	return polled
}

// open begins a watch. ENFILE: too many files are open.
func (w *watches) open(node uint64, populated bool) (fh uint64, err error) {
	fh = w.ledger.nextFh()
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range watchCount {
		x := w.at(i)
		if x.fh != 0 {
			continue
		}
		*x = watch{node: node, seen: number(populated)}
		x.fh = fh
		w.byFh[fh] = i
		return fh, nil
	}
	return 0, unix.ENFILE
}

func number(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// close ends a watch. A file that is none is not known.
func (w *watches) close(fh uint64) {
	w.mu.Lock()
	i, ok := w.byFh[fh]
	end := w.ended[fh]
	if ok {
		*w.at(i) = watch{}
		delete(w.byFh, fh)
		delete(w.ended, fh)
	}
	w.mu.Unlock()
	if end != nil {
		end()
	}
}

// stop ends all watching; the ledger keeps what is open.
func (w *watches) stop() {
	w.mu.Lock()
	var ends []func()
	for _, end := range w.ended {
		ends = append(ends, end)
	}
	w.ended = make(map[uint64]func())
	w.mu.Unlock()
	for _, end := range ends {
		end()
	}
}

// saw notes what a reader has been told.
func (w *watches) saw(fh uint64, populated bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i, ok := w.byFh[fh]; ok {
		x := w.at(i)
		x.seen, x.changed = number(populated), 0
	}
}

// poll answers FUSE_POLL. False: say that it is not implemented.
func (w *watches) poll(in *pollIn, c *proxy.Container) (revents uint32, ok bool) {
	if w.none {
		return 0, false
	}
	w.mu.Lock()
	i, ok := w.byFh[in.fh]
	if !ok {
		w.mu.Unlock()
		return always, true
	}
	if in.flags&scheduleNotify != 0 {
		w.at(i).kh = in.kh
		if w.ended[in.fh] == nil && c != nil {
			w.ended[in.fh] = w.watch(in.fh, c)
		}
	}
	x := *w.at(i)
	w.mu.Unlock()
	changed := c == nil || x.changed != 0
	if !changed {
		populated, err := c.Populated()
		changed = err != nil || number(populated) != x.seen
	}
	if changed {
		return always | unix.POLLPRI | unix.POLLERR, true
	}
	return always, true
}

// watch has who waits for an open file be told when that is not any more what its reader knows.
func (w *watches) watch(fh uint64, c *proxy.Container) (stop func()) {
	return c.Watch(func(populated, changed bool) {
		if kh, ok := w.change(fh, populated, changed); ok {
			w.notify(kh)
		}
	})
}

// change notes a change, and returns the kernel's number of the file if its reader does not know of it.
func (w *watches) change(fh uint64, populated, changed bool) (kh uint64, unknown bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i, ok := w.byFh[fh]
	if !ok {
		return 0, false
	}
	x := w.at(i)
	if changed {
		x.changed = 1
	}
	return x.kh, changed || number(populated) != x.seen
}

// notify has the kernel ask again. It waits for nothing there.
func (w *watches) notify(kh uint64) {
	var payload [8]byte
	binary.NativeEndian.PutUint64(payload[:], kh)
	if err := sendNotice(w.fd, noticePoll, payload[:]); err != nil && err != unix.ENOENT && err != unix.ENODEV {
		w.log.Warn("tell a poller", "error", err)
	}
}
