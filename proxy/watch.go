package proxy

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Whether a container is populated changes when a task is moved, which rcfs does itself, and when its last task
// ends. For that one of its tasks is waited for, whichever: when it has ended the next is, until there is none.
// Nothing is looked at again and again.

// watcher waits for one container to become populated, or not to be any more.
type watcher struct {
	c     *Container
	look  func(populated, changed bool)
	was   int           // one of its tasks, 0 if it has none
	again chan struct{} // told when a task has been moved
	end   chan struct{}
	done  chan struct{}
}

// Watch calls look, from a goroutine of its own, whenever it may be that c has become populated or has ceased to be:
// with whether it is now, and whether that is certainly a change. stop ends that, and returns when look is not called
// any more.
func (c *Container) Watch(look func(populated, changed bool)) (stop func()) {
	w := &watcher{c: c, look: look, again: make(chan struct{}, 1), end: make(chan struct{}), done: make(chan struct{})}
	c.h.mu.Lock()
	if c.h.watchers == nil {
		c.h.watchers = make(map[*watcher]struct{})
	}
	c.h.watchers[w] = struct{}{}
	c.h.mu.Unlock()
	w.was = c.someTask()
	go w.run()
	return func() {
		c.h.mu.Lock()
		_, ok := c.h.watchers[w]
		delete(c.h.watchers, w)
		c.h.mu.Unlock()
		if ok {
			close(w.end)
		}
		<-w.done
	}
}

// moved has the watchers look again.
func (h *Hierarchy) moved() {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for w := range h.watchers {
		select {
		case w.again <- struct{}{}:
		default: // it is told already
		}
	}
}

func (w *watcher) run() {
	defer close(w.done)
	for last := 0; w.wait(w.was, w.was == last); {
		last = w.was
		w.was = w.c.someTask()
		w.look(w.was != 0, (w.was == 0) != (last == 0))
	}
}

// loneThread is how often a thread is looked at that is in the container without its process, before
// Linux 6.9 (PIDFD_THREAD): nothing tells of its end.
const loneThread = 250 * time.Millisecond

// settling is how long a task that has ended may still be listed.
const settling = 2 * time.Millisecond

// wait returns when a task has ended, if there is one, or another has been moved. False: the watching has ended.
func (w *watcher) wait(tid int, again bool) bool {
	var timer <-chan time.Time
	exit := make(chan struct{})
	if tid != 0 {
		fd, err := openThread(tid)
		switch {
		case errors.Is(err, unix.EINVAL):
			timer = time.After(loneThread)
		case err != nil: // ended
			timer = time.After(settling)
		default:
			f := os.NewFile(uintptr(fd), "pidfd")
			go func() {
				defer close(exit)
				awaitExit(f)
				if again {
					time.Sleep(settling)
				}
			}()
			defer func() {
				f.SetReadDeadline(time.Now())
				<-exit
				f.Close()
			}()
		}
	}
	select {
	case <-w.end:
		return false
	case <-w.again:
	case <-timer:
	case <-exit:
	}
	return true
}

// pidfdThread is PIDFD_THREAD of linux/pidfd.h, which is O_EXCL.
const pidfdThread = unix.O_EXCL

// openThread opens a process by its id, or a thread where the kernel has descriptors of threads (else EINVAL), for
// Go's poller.
func openThread(tid int) (int, error) {
	fd, err := unix.PidfdOpen(tid, unix.PIDFD_NONBLOCK)
	if err == unix.EINVAL || err == unix.ENOENT { // not a process: before 6.9, and since then
		fd, err = unix.PidfdOpen(tid, unix.PIDFD_NONBLOCK|pidfdThread)
	}
	return fd, err
}

// awaitExit returns when a process has ended, or f's deadline is over.
func awaitExit(f *os.File) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool { // the deadline, or the end of the file
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	})
}

// someTask returns a task in c or below it, 0 if there is none.
func (c *Container) someTask() int {
	var b [16]byte
	n, err := c.read("tasks", b[:])
	if err != nil {
		return 0
	}
	if first, _, _ := strings.Cut(string(b[:n]), "\n"); first != "" {
		if tid, err := strconv.Atoi(first); err == nil {
			return tid
		}
	}
	children, _ := c.ChildrenAfter(0, maxChildren)
	for _, child := range children {
		if tid := child.someTask(); tid != 0 {
			return tid
		}
	}
	return 0
}
