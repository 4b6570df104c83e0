package fs

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// readers read the requests of all mounts of this process. One goroutine at a time has the right to: it waits in the
// kernel until any mount has a request, reads that and handles it, on the processor where its client has been waiting. To hand a
// request to another goroutine, or to be told by Go's poller, would wake other threads, which takes
// longer than most requests.
//
// A request that may have to wait does not keep the others waiting: when there are others, or when it takes longer
// than a tick of the watchdog, another goroutine gets the right to read, and this one ends with its request.
type readers struct {
	mu    sync.Mutex
	loops map[int32]*loop // guarded by mu; by descriptor
	epoll int             // guarded by mu, also while somebody reads; of the loops and wake
	wake  int             // guarded by mu; an eventfd that ends the waiting
	leads bool            // guarded by mu; somebody reads

	// turn is odd while who has the right to read handles what may have to wait. To change it from odd to even is
	// to take the right.
	turn    atomic.Uint64
	watched atomic.Bool // there is a watchdog
}

var allReaders readers

// tick is how long a request may keep others waiting, twice that at most.
const tick = time.Millisecond

// idleTicks is how long there is a watchdog after the last request that may have to wait.
const idleTicks = 100

// add begins to read l's requests.
func (r *readers) add(l *loop) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.leads {
		if err := r.open(); err != nil {
			return err
		}
		r.leads = true
		go r.lead()
	}
	if err := r.listen(l); err != nil {
		return err
	}
	r.loops[int32(l.fd)] = l
	return nil
}

// open needs mu.
func (r *readers) open() (err error) {
	if r.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	if r.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(r.epoll)
		return fmt.Errorf("eventfd: %w", err)
	}
	if err := unix.EpollCtl(r.epoll, unix.EPOLL_CTL_ADD, r.wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(r.wake)}); err != nil {
		unix.Close(r.wake)
		unix.Close(r.epoll)
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	r.loops = make(map[int32]*loop)
	return nil
}

func (r *readers) listen(l *loop) error {
	return unix.EpollCtl(r.epoll, unix.EPOLL_CTL_ADD, l.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(l.fd)})
}

// remove ends the reading of l's requests. One may just be read.
func (r *readers) remove(l *loop) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.loops[int32(l.fd)] != l {
		return
	}
	delete(r.loops, int32(l.fd))
	unix.EpollCtl(r.epoll, unix.EPOLL_CTL_DEL, l.fd, nil) // ENOENT while it waits for room
	if len(r.loops) == 0 {
		unix.Write(r.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// pause has a mount wait until a slot of its ledger is free.
func (r *readers) pause(l *loop) {
	unix.EpollCtl(r.epoll, unix.EPOLL_CTL_DEL, l.fd, nil)
	go func() {
		l.ledger.give(l.ledger.take())
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.loops[int32(l.fd)] == l {
			if err := r.listen(l); err != nil {
				l.log.Error("a mount is not read any more", "error", err)
			}
		}
	}()
}

// lead is what a goroutine does that has the right to read.
func (r *readers) lead() {
	var events [8]unix.EpollEvent
	for {
		n, err := unix.EpollWait(r.epoll, events[:], -1)
		if err != nil && err != unix.EINTR { // none that is known
			panic(fmt.Sprintf("epoll_wait: %v", err))
		}
		for _, e := range events[:max(0, n)] {
			l, over := r.find(e.Fd)
			if over {
				return
			}
			if l != nil && !r.serve(l) {
				return
			}
		}
	}
}

// find returns the loop of a descriptor, nil if there is none any more. Over: there are none at all, and nobody reads.
func (r *readers) find(fd int32) (l *loop, over bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.loops) > 0 {
		if fd == int32(r.wake) {
			var b [8]byte
			unix.Read(r.wake, b[:]) // a loop came after the last had gone
		}
		return r.loops[fd], false
	}
	unix.Close(r.epoll)
	unix.Close(r.wake)
	r.leads = false
	return nil, true
}

// serve reads a request of l, if there is one, and handles it; false: somebody else has the right to read by now.
func (r *readers) serve(l *loop) bool {
	if !l.enter() {
		return true
	}
	defer l.handlers.Done()
	i, ok := l.ledger.tryTake()
	if !ok {
		r.pause(l)
		return true
	}
	n, ok := l.read(i)
	if !ok {
		return true
	}
	if !mayWait(l.ledger.header(i).Opcode) {
		l.handle(i, n)
		return true
	}
	turn := r.turn.Add(1)
	r.watch()
	if r.more() && r.take(turn) {
		l.handle(i, n)
		return false
	}
	l.handle(i, n)
	return r.turn.CompareAndSwap(turn, turn+1)
}

// take gives the right to read to another goroutine, if who handles a request in that turn still has it.
func (r *readers) take(turn uint64) bool {
	if !r.turn.CompareAndSwap(turn, turn+1) {
		return false
	}
	go r.lead()
	return true
}

// more reports whether a request is there.
func (r *readers) more() bool {
	var events [1]unix.EpollEvent
	n, err := unix.EpollWait(r.epoll, events[:], 0)
	return err == nil && n > 0
}

// watch makes sure that there is a watchdog.
func (r *readers) watch() {
	if !r.watched.Load() && r.watched.CompareAndSwap(false, true) {
		go r.watchdog()
	}
}

func (r *readers) watchdog() {
	last := r.turn.Load()
	for idle := 0; ; {
		time.Sleep(tick)
		turn := r.turn.Load()
		switch {
		case turn != last:
			idle = 0
		case turn&1 != 0:
			r.take(turn)
		default:
			idle++
		}
		last = turn
		if idle < idleTicks {
			continue
		}
		r.watched.Store(false)
		if r.turn.Load() == last || !r.watched.CompareAndSwap(false, true) {
			return // else one has begun that has seen this watchdog
		}
		idle = 0
	}
}
