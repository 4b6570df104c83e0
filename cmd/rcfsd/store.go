package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A message of the worker to its keeper is an operation and a name, one packet, with a descriptor if it is
// to be held. The keeper answers each with the operation.
const (
	storeHold  = byte('h')
	storeDrop  = byte('d')
	storeReady = byte('r') // the worker serves
)

// maxName bounds the name of a file that is held: systemd's descriptor store takes no longer ones.
const maxName = 255

// receiveStore reads a message. io.EOF: the worker has ended. What makes no sense is an error; the descriptor of
// such a message is closed.
func receiveStore(conn int) (op byte, name string, fd int, err error) {
	var body [1 + maxName + 1]byte
	oob := make([]byte, unix.CmsgSpace(4*4))
	var n, oobn, flags int
	for {
		n, oobn, flags, _, err = unix.Recvmsg(conn, body[:], oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	fd = -1
	if oobn > 0 {
		keepOne(oob[:oobn], &fd)
	}
	if err != nil {
		return 0, "", -1, fmt.Errorf("recvmsg: %w", err)
	}
	if n == 0 {
		return 0, "", -1, io.EOF
	}
	op, name, ok := parseStore(body[:n], fd)
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || !ok {
		if fd >= 0 {
			unix.Close(fd)
		}
		return 0, "", -1, fmt.Errorf("message %q of the worker makes no sense", body[:n])
	}
	return op, name, fd, nil
}

// parseStore splits a message, and says whether it makes sense with this descriptor, or without one (negative).
func parseStore(message []byte, fd int) (op byte, name string, ok bool) {
	if len(message) == 0 {
		return 0, "", false
	}
	op, name = message[0], string(message[1:])
	return op, name, validStore(op, name, fd)
}

func validStore(op byte, name string, fd int) bool {
	if len(name) > maxName || strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == ':' }) {
		return false
	}
	switch op {
	case storeHold:
		return name != "" && fd >= 0
	case storeDrop:
		return name != "" && fd < 0
	case storeReady:
		return name == "" && fd < 0
	}
	return false
}

// store is the worker's end: what the keeper holds for it. A nil store holds nothing.
type store struct {
	args []string // of the daemon

	mu    sync.Mutex
	conn  *net.UnixConn  // guarded by mu
	files map[string]int // guarded by mu; what is held, by our own descriptors
	once  sync.Once
	over  chan struct{} // closed, once, when the keeper has died
	died  string        // how the worker before this one did
}

// openStore takes over what the keeper holds, from the environment.
func openStore(args []string) (*store, error) {
	f := os.NewFile(storeFD, "keeper")
	unix.CloseOnExec(storeFD)
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, fmt.Errorf("the keeper: %w", err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("the keeper: not a socket of ours")
	}
	s := &store{args: args, conn: conn, files: make(map[string]int), over: make(chan struct{}), died: os.Getenv(envDied)}
	unix.CloseOnExec(lifeFD)
	go func() {
		life := make([]byte, 1)
		unix.SetNonblock(lifeFD, true)
		os.NewFile(lifeFD, "keeper's life").Read(life) // the end of it
		s.orphaned()
	}()
	if names := os.Getenv(envFiles); names != "" {
		for i, name := range strings.Split(names, ":") {
			unix.CloseOnExec(firstFile + i)
			s.files[name] = firstFile + i
		}
	}
	return s, nil
}

// take returns a duplicate of a held file, nil if none is held by that name.
func (s *store) take(name string) (*os.File, error) {
	if s == nil {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fd, ok := s.files[name]
	if !ok {
		return nil, nil
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("take %q: %w", name, err)
	}
	return os.NewFile(uintptr(dup), name), nil
}

// takeFd is take for what must not be polled yet.
func (s *store) takeFd(name string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fd, ok := s.files[name]
	if !ok {
		return -1, fmt.Errorf("%q is not held", name)
	}
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
}

// names returns the names that begin with a prefix, without it.
func (s *store) names(prefix string) []string {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for name := range s.files {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			names = append(names, rest)
		}
	}
	return names
}

// hold has the keeper hold a descriptor of the same file, under a name. It returns when it does.
func (s *store) hold(name string, fd int) error {
	if s == nil {
		return nil
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("hold %q: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.files[name]; ok {
		unix.Close(old)
	}
	s.files[name] = dup
	s.ask(storeHold, name, unix.UnixRights(fd))
	return nil
}

// drop undoes hold.
func (s *store) drop(name string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if fd, ok := s.files[name]; ok {
		unix.Close(fd)
		delete(s.files, name)
		s.ask(storeDrop, name, nil)
	}
}

// ready tells the keeper that the worker serves.
func (s *store) ready() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ask(storeReady, "", nil)
}

// ask sends a message and waits for the answer. A keeper that does not answer has died, and we become the keeper, with
// what is in files.
func (s *store) ask(op byte, name string, rights []byte) {
	_, _, err := s.conn.WriteMsgUnix(append([]byte{op}, name...), rights, nil)
	if err == nil {
		_, err = s.conn.Read(make([]byte, 1))
	}
	if err != nil {
		s.orphaned()
	}
}

// orphaned notes that the keeper has died.
func (s *store) orphaned() { s.once.Do(func() { close(s.over) }) }

// adopt makes this process the keeper. It does not return unless it fails.
func (s *store) adopt() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return adopt(s.args, s.files)
}
