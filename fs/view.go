package fs

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// View is one mount of a hierarchy, served from an open /dev/fuse.
type View struct {
	sys   *proxy.System
	where string
	log   *slog.Logger

	// NoPoll makes poll(2) find every file ready at once, and never ask again. It is for a view with clients in the
	// same process: Go's poller is one, and would wait for an answer to what only it can tell the view of.
	NoPoll bool

	probe   atomic.Int32   // descriptor of the same /dev/fuse, to ask whether it is mounted; 0 before Serve
	gone    atomic.Bool    // the mount has ended
	moves   sync.WaitGroup // moves that outlive the request they came with
	notices chan []notice  // for the kernel, of what other views have changed

	// Set before Serve answers anything.
	h      *proxy.Hierarchy
	ledger *Ledger
	loop   *loop

	stopped chan struct{} // closed when nothing is read any more
}

// views finds the views of a hierarchy.
var views struct {
	sync.Mutex
	of map[*proxy.Hierarchy]map[*View]bool
}

// NewView prepares a view that will be mounted on where. Add it with proxy.System.Mount, then
// Serve it.
func NewView(sys *proxy.System, where string, log *slog.Logger) *View {
	return &View{sys: sys, where: where, log: log, notices: make(chan []notice, 1024), stopped: make(chan struct{})}
}

// Where returns the directory the view is mounted on.
func (v *View) Where() string { return v.where }

// Alive reports whether the view is, or still may be, mounted.
func (v *View) Alive() bool {
	if v.gone.Load() {
		return false
	}
	fd := v.probe.Load()
	return fd == 0 || !disconnected(int(fd))
}

// maxWrite is the most that arrives in one request.
const maxWrite = 128 << 10

// MountData returns the options that the helper has to give to mount(2) with descriptor fd, an
// open /dev/fuse. default_permissions: the kernel checks modes and owners, for everybody.
func MountData(fd int) string {
	return fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read=%d", fd, maxWrite)
}

// Serve serves h on fd, an open /dev/fuse that has been given to mount(2), and goes on from where the ledger says
// that an earlier process was. It takes both over, and returns when the first requests can be answered; the view
// then ends by itself when it is unmounted, takes itself out of the system and calls done. Each request that was in
// hand when the last process died becomes suspect of it, by so much of ten.
func (v *View) Serve(h *proxy.Hierarchy, fd int, ledger *Ledger, suspicion uint32, done func()) error {
	probe, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return errors.Join(fmt.Errorf("duplicate /dev/fuse: %w", err), ledger.Close())
	}
	v.h, v.ledger = h, ledger
	s := newServer(h, v, v.log)
	v.loop = &loop{
		fd: fd, ledger: ledger, log: v.log, over: make(chan struct{}),
		watch:       newWatches(ledger, fd, v.log),
		containerOf: s.containerOf,
		server: fuse.NewProtocolServer(s, &fuse.MountOptions{
			AllowOther:         true,
			MaxWrite:           maxWrite,
			DisableXAttrs:      true,
			DisableReadDirPlus: true,
			ExtraCapabilities:  fuse.CAP_ATOMIC_O_TRUNC,
			Logger:             slog.NewLogLogger(v.log.Handler(), slog.LevelWarn),
		}),
	}
	v.loop.watch.none = v.NoPoll
	v.loop.backings = openBackings(ledger, fd, v.log, func(node uint64) bool { return s.containerOf(node) != nil })
	if err := v.loop.begin(); err != nil {
		unix.Close(probe)
		return errors.Join(fmt.Errorf("serve %s: %w", v.where, err), unix.Close(fd), ledger.Close())
	}
	v.probe.Store(int32(probe))
	v.register()
	notified := make(chan struct{})
	go func() {
		defer close(notified)
		v.notify()
	}()
	v.loop.watch.resume(s.containerOf)
	v.loop.resume(suspicion)
	if err := allReaders.add(v.loop); err != nil {
		v.log.Error("a mount is not read", "where", v.where, "error", err)
		v.loop.end(true)
	}
	go func() {
		<-v.loop.over
		v.loop.handlers.Wait()
		v.moves.Wait()
		if !v.loop.ended {
			close(v.stopped)
			return // the process ends
		}
		v.gone.Store(true)
		v.unregister()
		close(v.notices)
		<-notified
		v.loop.watch.stop()
		v.loop.backings.stop()
		v.sys.Unmount(h, v)
		unix.Close(int(v.probe.Swap(0)))
		if err := errors.Join(unix.Close(fd), ledger.Close()); err != nil {
			v.log.Error("close a view", "where", v.where, "error", err)
		}
		close(v.stopped)
		done()
	}()
	return nil
}

// Stop has the view read no more, and returns when what it has read is answered, or patience is over. The mount
// lives on for whoever serves it next; this process is to end.
func (v *View) Stop(patience time.Duration) {
	v.loop.end(false)
	select {
	case <-v.stopped:
	case <-time.After(patience):
		v.log.Warn("requests are left to the next daemon", "where", v.where)
	}
}

func (v *View) register() {
	views.Lock()
	defer views.Unlock()
	if views.of == nil {
		views.of = make(map[*proxy.Hierarchy]map[*View]bool)
	}
	if views.of[v.h] == nil {
		views.of[v.h] = make(map[*View]bool)
	}
	views.of[v.h][v] = true
}

// all returns the views of the same hierarchy, v among them.
func (v *View) all() []*View {
	views.Lock()
	defer views.Unlock()
	return slices.Collect(maps.Keys(views.of[v.h]))
}

func (v *View) unregister() {
	views.Lock()
	defer views.Unlock()
	delete(views.of[v.h], v)
	if len(views.of[v.h]) == 0 {
		delete(views.of, v.h)
	}
}
