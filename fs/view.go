package fs

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// View is one mount of a hierarchy, served from an open /dev/fuse.
type View struct {
	sys   *proxy.System
	where string
	log   *slog.Logger

	probe   atomic.Int32   // descriptor of the same /dev/fuse, to ask whether it is mounted; 0 before Serve
	gone    atomic.Bool    // the mount has ended
	moves   sync.WaitGroup // moves that outlive the request they came with
	notices chan []notice  // for the kernel, of what other views have changed

	h *proxy.Hierarchy // set before Serve answers anything
}

// views finds the views of a hierarchy.
var views struct {
	sync.Mutex
	of map[*proxy.Hierarchy]map[*View]bool
}

// NewView prepares a view that will be mounted on where. Add it with proxy.System.Mount, then
// Serve it.
func NewView(sys *proxy.System, where string, log *slog.Logger) *View {
	return &View{sys: sys, where: where, log: log, notices: make(chan []notice, 1024)}
}

// Where returns the directory the view is mounted on.
func (v *View) Where() string { return v.where }

// Alive reports whether the view is, or still may be, mounted. It asks the kernel: a /dev/fuse
// whose file system was unmounted polls as an error (fuse_dev_poll in fs/fuse/dev.c).
func (v *View) Alive() bool {
	if v.gone.Load() {
		return false
	}
	fd := v.probe.Load()
	if fd == 0 {
		return true
	}
	p := []unix.PollFd{{Fd: fd}}
	n, err := unix.Poll(p, 0)
	return err != nil || n == 0 || p[0].Revents&unix.POLLERR == 0
}

// maxWrite is the most that arrives in one request.
const maxWrite = 128 << 10

// MountData returns the options that the helper has to give to mount(2) with descriptor fd, an
// open /dev/fuse. default_permissions: the kernel checks modes and owners, for everybody.
func MountData(fd int) string {
	return fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read=%d", fd, maxWrite)
}

// Serve serves h on fd, an open /dev/fuse that has been given to mount(2). It takes the
// descriptor over, and returns when the first requests can be answered; the view then ends by
// itself when it is unmounted, takes itself out of the system and calls done.
func (v *View) Serve(h *proxy.Hierarchy, fd int, done func()) error {
	probe, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("duplicate /dev/fuse: %w", err)
	}
	v.h = h
	server, err := fuse.NewServer(newServer(h, v, v.log), fmt.Sprintf("/dev/fd/%d", fd), &fuse.MountOptions{
		AllowOther:         true,
		MaxWrite:           maxWrite,
		DisableXAttrs:      true,
		DisableSplice:      true,
		DisableReadDirPlus: true,
		ExtraCapabilities:  fuse.CAP_ATOMIC_O_TRUNC,
		Logger:             slog.NewLogLogger(v.log.Handler(), slog.LevelWarn),
	})
	if err != nil {
		unix.Close(probe)
		return fmt.Errorf("serve %s: %w", v.where, err)
	}
	v.probe.Store(int32(probe))
	v.register()
	notified := make(chan struct{})
	go func() {
		defer close(notified)
		v.notify(server)
	}()
	go func() {
		server.Serve()
		v.moves.Wait()
		v.gone.Store(true)
		v.unregister()
		close(v.notices)
		<-notified
		v.sys.Unmount(h, v)
		unix.Close(int(v.probe.Swap(0)))
		done()
	}()
	return nil
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

func (v *View) unregister() {
	views.Lock()
	defer views.Unlock()
	delete(views.of[v.h], v)
	if len(views.of[v.h]) == 0 {
		delete(views.of, v.h)
	}
}
