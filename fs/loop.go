package fs

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// loop answers a mount's requests, when they have been read (readers.go).
//
// A request is in the ledger from before the read to after the answer. Whoever takes over answers what it finds there:
// an answer that stands there is sent once more, which the kernel takes for an unknown one when it has
// it (ENOENT); what has none is handled again. To write a value twice is harmless, so long as nobody has been told
// that it is written; what makes and removes containers asks the ledger what was so before (dir.go).
type loop struct {
	fd       int // of /dev/fuse
	ledger   *Ledger
	server   *fuse.ProtocolServer
	watch    *watches
	backings *backings
	// containerOf finds the container of a node, nil if it is gone.
	containerOf func(node uint64) *proxy.Container
	log         *slog.Logger

	mu       sync.RWMutex
	closed   bool           // guarded by mu; no more requests are read
	ended    bool           // set before over is closed: the mount has ended
	over     chan struct{}  // closed when no more requests are read
	handlers sync.WaitGroup // those who read or handle one; none is added when closed
}

// enter lets a request be read; false: no more are. Its end is handlers.Done.
func (l *loop) enter() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return false
	}
	l.handlers.Add(1)
	return true
}

// end has no more requests read, because the mount has ended or because somebody else is to serve it. Some may be in hand still.
func (l *loop) end(ended bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed, l.ended = true, ended
		allReaders.remove(l)
		close(l.over)
	}
}

// Opcodes of linux/fuse.h that the loop looks at.
const (
	opRmdir       = 11
	opMkdir       = 9
	opForget      = 2
	opSetattr     = 4
	opRename      = 12
	opRead        = 15
	opWrite       = 16
	opInit        = 26
	opPoll        = 40
	opBatchForget = 42
	opRename2     = 45
)

// begin opens the connection, on a new mount by the kernel's first request, else by the one that is
// kept. A request of the kernel that is not what it should be: EPROTO.
func (l *loop) begin() error {
	first := l.ledger.text(offInit, maxInit)
	if first != "" {
		l.replay([]byte(first))
		return nil
	}
	i := l.ledger.take()
	defer l.ledger.give(i)
	in := l.ledger.request(i)
	n, err := l.await(in)
	if err != nil {
		return fmt.Errorf("read the first request: %w", err)
	}
	if n < int(unsafe.Sizeof(fuse.InHeader{})) || l.ledger.header(i).Opcode != opInit {
		return fmt.Errorf("the first request: %w", unix.EPROTO)
	}
	out := l.ledger.answer(i)
	size, status := l.server.HandleRequest([][]byte{in[:n]}, [][]byte{out})
	if !status.Ok() {
		return fmt.Errorf("answer the first request: %w", unix.Errno(status))
	}
	// A kernel that has the answer does not ask again.
	if err := l.ledger.setText(offInit, maxInit, string(in[:n])); err != nil {
		return err
	}
	if _, err := unix.Write(l.fd, out[:size]); err != nil {
		return fmt.Errorf("answer the first request: %w", err)
	}
	return nil
}

// firstPatience is how long the kernel may take to send its first request: it does so when it mounts.
const firstPatience = 10 * time.Second

// await reads a request, and waits for it. EAGAIN: none has come.
func (l *loop) await(in []byte) (int, error) {
	p := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
	for {
		ready, err := unix.Poll(p, int(firstPatience.Milliseconds()))
		if err == unix.EINTR { // a signal of Go's
			continue
		}
		if err != nil {
			return 0, err
		}
		n, err := unix.Read(l.fd, in)
		if err == unix.EINTR || err == unix.EAGAIN && ready > 0 {
			continue
		}
		return n, err
	}
}

// replay has the server learn again what it learned from the first request. One that makes no sense leaves it with
// what every kernel of today can do.
func (l *loop) replay(first []byte) {
	out := make([]byte, slotOut)
	n := len(first)
	if n >= int(unsafe.Sizeof(fuse.InHeader{})) && (*fuse.InHeader)(unsafe.Pointer(&first[0])).Opcode == opInit {
		if _, status := l.server.HandleRequest([][]byte{first}, [][]byte{out}); status.Ok() && (*fuse.OutHeader)(unsafe.Pointer(&out[0])).Status == 0 {
			return
		}
	}
	l.log.Error("what the kernel said when the mount was made is not to be read; it is served all the same")
	init := fuse.InitIn{Major: 7, Minor: 31}
	init.Opcode = opInit
	init.Length = uint32(unsafe.Sizeof(init))
	l.server.HandleRequest([][]byte{unsafe.Slice((*byte)(unsafe.Pointer(&init)), unsafe.Sizeof(init))}, [][]byte{out})
}

// suspect is how much suspicion makes a request be answered EIO.
const suspect = 10

// resume answers what a predecessor had in hand. What was in hand whenever one died is not tried for ever:
// suspicion is what the death of the last adds to each.
func (l *loop) resume(suspicion uint32) {
	for _, i := range l.ledger.inHand() {
		if *l.ledger.state(i) == slotAnswers {
			l.send(i)
			continue
		}
		*l.ledger.suspicion(i) += suspicion
		h := l.ledger.header(i)
		if *l.ledger.suspicion(i) >= suspect {
			l.log.Error("a request is given up: those who served it died", "unique", h.Unique, "opcode", h.Opcode, "node", h.NodeId)
			l.answerEmpty(i, -int32(unix.EIO))
			continue
		}
		l.handlers.Go(func() { l.handle(i, int(h.Length)) })
	}
}

// read reads a request of n bytes into a slot; false: there is none, and the slot is given back.
func (l *loop) read(i int) (n int, ok bool) {
	n, err := unix.Read(l.fd, l.ledger.request(i))
	if err == nil && n >= int(unsafe.Sizeof(fuse.InHeader{})) {
		return n, true
	}
	l.ledger.give(i)
	switch err {
	case unix.ENODEV, unix.ECONNABORTED: // unmounted, or aborted
		l.end(true)
	case nil, unix.EAGAIN, unix.EINTR, unix.ENOENT: // ENOENT: its sender has been killed
	default:
		l.log.Error("read a request", "error", err)
		time.Sleep(time.Millisecond) // not to do this for ever without a pause
	}
	return 0, false
}

// disconnected asks the kernel whether the file system of an open /dev/fuse was unmounted: it polls as an error
// then (fuse_dev_poll in fs/fuse/dev.c).
func disconnected(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&unix.POLLERR != 0
}

// mayWait reports whether to handle a request may take long: for a target, for the kernel, for another
// request.
func mayWait(opcode uint32) bool {
	switch opcode {
	case opRead, opWrite, opMkdir, opRmdir, opRename, opRename2, opSetattr, opPoll:
		return true
	}
	return false
}

// handle makes the answer to the request in a slot and sends it.
func (l *loop) handle(i, n int) {
	h := l.ledger.header(i)
	switch h.Opcode {
	case opForget, opBatchForget: // names are never forgotten here
		l.ledger.give(i)
		return
	case opPoll:
		in := (*pollIn)(unsafe.Pointer(h))
		if events, ok := l.watch.poll(in, l.containerOf(in.NodeId)); ok {
			out := (*pollOut)(unsafe.Pointer(&l.ledger.answer(i)[0]))
			*out = pollOut{revents: events}
			l.finish(i, int(unsafe.Sizeof(*out)), 0)
		} else {
			l.answerEmpty(i, -int32(unix.ENOSYS))
		}
		return
	case opMkdir, opRmdir, opRename, opRename2:
		l.ledger.hold(h.Unique, i)
		defer l.ledger.letGo(h.Unique)
	}
	out := l.ledger.answer(i)
	size, status := l.server.HandleRequest([][]byte{l.ledger.request(i)[:n]}, [][]byte{out})
	switch {
	case size > 0:
		atomic.StoreUint32(l.ledger.state(i), slotAnswers)
		l.send(i)
	case !status.Ok(): // it makes no sense
		l.answerEmpty(i, -int32(status))
	default:
		l.ledger.give(i)
	}
}

// answerEmpty answers with an error, or nothing but success.
func (l *loop) answerEmpty(i int, status int32) {
	l.finish(i, int(unsafe.Sizeof(fuse.OutHeader{})), status)
}

// finish puts the header before an answer of so many bytes, and sends it.
func (l *loop) finish(i, size int, status int32) {
	*(*fuse.OutHeader)(unsafe.Pointer(&l.ledger.answer(i)[0])) = fuse.OutHeader{
		Length: uint32(size), Status: status, Unique: l.ledger.header(i).Unique,
	}
	atomic.StoreUint32(l.ledger.state(i), slotAnswers)
	l.send(i)
}

// send sends the answer that stands in a slot, and gives the slot back.
func (l *loop) send(i int) {
	out := l.ledger.answer(i)
	if size := (*fuse.OutHeader)(unsafe.Pointer(&out[0])).Length; size <= slotOut {
		// ENOENT: the kernel has it already, or nobody waits any more. ENODEV: unmounted.
		if _, err := unix.Write(l.fd, out[:size]); err != nil && err != unix.ENOENT && err != unix.ENODEV {
			h := l.ledger.header(i)
			l.log.Warn("answer not taken", "opcode", h.Opcode, "node", h.NodeId, "error", err)
		}
	}
	l.ledger.give(i)
}
