package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// How long the daemon waits for a client, and how many it listens to at a time. A client is the
// mount helper or rcfs(1), which send at once; only mount(2) stands between a helper's requests.
const (
	requestPatience = 5 * time.Second
	servePatience   = 20 * time.Second
	maxClients      = 64
)

// offer is a hierarchy that was found or made for a mount, and is waiting for the descriptor.
type offer interface {
	// source is what the mount shows as its source.
	source() string
	// serve takes over the descriptor of a mount with that device number, and serves it.
	serve(fd int, device uint64) error
	// withdraw takes the offer back.
	withdraw()
}

// backend is what the control socket gives access to.
type backend interface {
	mount(spec proxy.Spec, dir string) (offer, error)
	// remount adds what spec names to the hierarchy that is mounted as device.
	remount(spec proxy.Spec, device uint64) (name, source string, err error)
	status() (*status, error)
	// restart has another worker take over.
	restart()
	doctor() ([]string, error)
	idle() bool
}

// server answers requests on the control socket.
type server struct {
	backend backend
	log     *slog.Logger
	changed chan<- struct{} // told when a connection has ended

	listener *net.UnixListener
	clients  sync.WaitGroup
	slots    chan struct{} // a token for each client that is listened to

	mu     sync.Mutex
	open   map[conn]struct{} // guarded by mu
	closed bool              // guarded by mu
}

// heldSocket is the name under which the keeper holds the control socket.
const heldSocket = "socket"

// controlSocket returns the one that the keeper holds, or makes it.
func controlSocket(held *store) (*net.UnixListener, error) {
	f, err := held.take(heldSocket)
	if err != nil {
		return nil, err
	}
	if f != nil {
		defer f.Close()
		l, err := net.FileListener(f)
		if err != nil {
			return nil, fmt.Errorf("the control socket: %w", err)
		}
		return l.(*net.UnixListener), nil
	}
	l, err := listen(socketPath)
	if err != nil {
		return nil, err
	}
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	var holdErr error
	err = raw.Control(func(fd uintptr) { holdErr = held.hold(heldSocket, int(fd)) })
	return l, errors.Join(err, holdErr)
}

// listen makes the control socket. The caller makes sure that no other daemon has it.
func listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// Not even connecting is for others: the socket never has another mode.
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	return l, err
}

// serve answers requests on the control socket.
func serve(l *net.UnixListener, b backend, changed chan<- struct{}, log *slog.Logger) *server {
	s := &server{
		backend: b, log: log, changed: changed, listener: l,
		slots: make(chan struct{}, maxClients), open: make(map[conn]struct{}),
	}
	s.clients.Go(s.accept)
	return s
}

func (s *server) accept() {
	for {
		c, err := s.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.log.Error("control socket", "error", err)
			time.Sleep(100 * time.Millisecond) // out of descriptors, perhaps
			continue
		}
		if !s.begin(conn{c}) {
			c.Close()
			return
		}
		s.slots <- struct{}{}
		s.clients.Go(func() {
			s.talk(conn{c})
			s.end(conn{c})
			<-s.slots
		})
	}
}

func (s *server) begin(c conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.open[c] = struct{}{}
	return true
}

func (s *server) end(c conn) {
	c.Close()
	s.mu.Lock()
	delete(s.open, c)
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default: // it is told already
	}
}

// closeIfIdle closes the server if nobody is talking to it and the backend has nothing to do. A
// client that comes too late finds its connection closed without an answer, and asks a new
// daemon.
func (s *server) closeIfIdle() bool {
	s.mu.Lock()
	if s.closed || len(s.open) > 0 || !s.backend.idle() {
		s.mu.Unlock()
		return false
	}
	s.closed = true
	s.mu.Unlock()
	s.close()
	return true
}

// close ends all connections and returns when nobody is talking any more.
func (s *server) close() {
	s.listener.SetUnlinkOnClose(true) // one that came from the keeper does not by itself
	s.listener.Close()
	s.mu.Lock()
	s.closed = true
	for c := range s.open {
		// Not Close: whoever waits for an answer that is being made gets it. Not a deadline:
		// the next read would set another.
		c.CloseRead()
	}
	s.mu.Unlock()
	s.clients.Wait()
}

// isClosed reports whether the server is closing.
func (s *server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// talk answers one client.
func (s *server) talk(c conn) {
	r, fd, err := s.next(c, requestPatience)
	if fd >= 0 {
		unix.Close(fd)
	}
	if err != nil {
		if err != io.EOF && !s.isClosed() {
			s.log.Warn("control socket", "error", err)
			s.answer(c, &reply{Error: err.Error(), Exit: exitSystem})
		}
		return
	}
	switch r.Op {
	case opMount:
		err = s.mount(c, r)
	case opRemount:
		var a reply
		if a.Name, a.Source, err = s.backend.remount(*r.Spec, r.Device); err == nil {
			s.answer(c, &a)
		}
	case opStatus:
		var st *status
		if st, err = s.backend.status(); err == nil {
			s.answer(c, &reply{Status: st})
		}
	case opRestart:
		s.answer(c, &reply{})
		s.backend.restart()
	case opDoctor:
		var a reply
		if a.Found, err = s.backend.doctor(); err == nil {
			s.answer(c, &a)
		}
	default:
		err = exit(exitSystem, fmt.Errorf("%q is not how a conversation starts", r.Op))
	}
	if err != nil {
		s.log.Warn("request refused", "op", r.Op, "dir", r.Dir, "error", err)
		s.answer(c, refusal(err))
	}
}

// next reads a request from c, who has to be root.
func (s *server) next(c conn, patience time.Duration) (*request, int, error) {
	uid, err := c.peerUID()
	if err != nil {
		return nil, -1, err
	}
	if uid != 0 {
		return nil, -1, fmt.Errorf("user %d is not root", uid)
	}
	body, fd, err := c.receive(maxRequest, patience)
	if err != nil {
		return nil, -1, err
	}
	r, err := decodeRequest(body)
	return r, fd, err
}

// mount offers a hierarchy and serves the descriptor that the helper then sends.
func (s *server) mount(c conn, r *request) error {
	o, err := s.backend.mount(*r.Spec, r.Dir)
	if err != nil {
		return err
	}
	if err := s.serve(c, o); err != nil {
		o.withdraw()
		return err
	}
	s.answer(c, &reply{})
	return nil
}

func (s *server) serve(c conn, o offer) error {
	if err := c.send(&reply{Source: o.source()}, -1, requestPatience); err != nil {
		return fmt.Errorf("the mount helper is gone: %w", err)
	}
	r, fd, err := s.next(c, servePatience)
	if err == nil && r.Op != opServe {
		err = fmt.Errorf("%q where the mounted descriptor was expected", r.Op)
	}
	if err == nil {
		err = checkFuse(fd)
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return fmt.Errorf("no mount came from the helper: %w", err)
	}
	return o.serve(fd, r.Device)
}

// checkFuse refuses a descriptor that is not an open /dev/fuse.
func checkFuse(fd int) error {
	if fd < 0 {
		return errors.New("a message without descriptor")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	const fuseMinor = 229 // FUSE_MINOR in linux/miscdevice.h
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(10, fuseMinor) {
		return errors.New("the descriptor is not /dev/fuse")
	}
	return nil
}

func (s *server) answer(c conn, r *reply) {
	if err := c.send(r, -1, requestPatience); err != nil {
		s.log.Debug("client did not take its answer", "error", err)
	}
}

// refusal is the answer that says err.
func refusal(err error) *reply {
	r := &reply{Error: err.Error(), Exit: exitMount}
	if e, ok := errors.AsType[*exitError](err); ok {
		r.Exit = e.code
	}
	return r
}
