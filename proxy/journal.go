package proxy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// journal says which moves are under way, for the daemon that comes after one that was killed. It
// is a shared mapping of a file that lives in memory: what is written there outlives the process
// from that moment on, and costs no system call.
type journal struct {
	path    string
	records *[journalRecords]record // mapped
	free    chan *record
	closing chan struct{}
	retries sync.WaitGroup

	mu   sync.Mutex
	left []*leftover // guarded by mu
}

// leftover is a move of an earlier daemon that is still to be finished: what was written down, and where.
type leftover struct {
	record
	at *record
}

// journalRecords bounds how many moves can be under way. Others wait.
const journalRecords = 256

// record is one move. A target does not need its start time to be told from another process that
// got its number: that one was born after the move began.
type record struct {
	used      uint32 // atomic; 1 while the other fields mean something
	tid       int32
	whole     uint32
	_         uint32
	began     uint64 // nanoseconds of CLOCK_BOOTTIME
	container uint64
	hierarchy [64]byte // its name, with zeros behind it
	_         [32]byte
}

const journalSize = int(unsafe.Sizeof([journalRecords]record{}))

// openJournal maps the journal in a directory, and makes it if there is none.
func openJournal(dir string) (*journal, error) {
	path := filepath.Join(dir, "journal")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	defer f.Close()
	// No hole: where memory is short this fails now, and not a write to the mapping later.
	if err := allocate(f, int64(journalSize)); err != nil {
		return nil, fmt.Errorf("journal: allocate %s: %w", path, err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, journalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("journal: map %s: %w", path, err)
	}
	j := &journal{
		path:    path,
		records: (*[journalRecords]record)(unsafe.Pointer(&mem[0])),
		free:    make(chan *record, journalRecords),
		closing: make(chan struct{}),
	}
	for i := range j.records {
		if r := &j.records[i]; r.used != 0 {
			j.left = append(j.left, &leftover{*r, r})
		} else {
			j.free <- r
		}
	}
	return j, nil
}

// allocate gives a file its room. A signal, as Go's runtime sends them to itself, ends fallocate(2).
func allocate(f *os.File, size int64) error {
	for {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != unix.EINTR {
			return err
		}
	}
}

// drain waits for the moves that are under way, and lets none begin any more. What they use is in use
// until then.
func (j *journal) drain() {
	close(j.closing)
	j.retries.Wait()
	for idle := 0; idle < journalRecords-j.countLeft(); idle++ {
		<-j.free
	}
}

func (j *journal) countLeft() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.left)
}

// close removes the journal, which is drained, unless there is something for the next daemon to finish.
func (j *journal) close() error {
	var err error
	if !slices.ContainsFunc(j.records[:], func(r record) bool { return r.used != 0 }) {
		err = os.Remove(j.path)
	}
	mem := unsafe.Slice((*byte)(unsafe.Pointer(j.records)), journalSize)
	return errors.Join(err, unix.Munmap(mem))
}

// reserve gives a move a place in the journal for as long as it lasts; it has to be released. ErrEnding:
// no more moves are made.
func (j *journal) reserve() (*record, error) {
	select {
	case <-j.closing:
		return nil, ErrEnding
	case r := <-j.free:
		return r, nil
	}
}

func (j *journal) release(r *record) {
	r.strike()
	j.free <- r
}

// write writes down a move.
func (r *record) write(c *Container, t *Task, whole bool) {
	r.tid, r.whole, r.began, r.container = int32(t.TID), 0, bootNanoseconds(), c.id
	if whole {
		r.whole = 1
	}
	r.hierarchy = [64]byte{}
	copy(r.hierarchy[:], c.h.name)
	atomic.StoreUint32(&r.used, 1)
}

// strike strikes it out, if it was written down.
func (r *record) strike() { atomic.StoreUint32(&r.used, 0) }

func (r *record) name() string {
	name, _, _ := bytes.Cut(r.hierarchy[:], []byte{0})
	return string(name)
}

func bootNanoseconds() uint64 {
	var ts unix.Timespec
	// It cannot fail: the clock is known to every kernel.
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return uint64(ts.Nano())
}

// isLeft reports whether a move of an earlier daemon is still to be finished.
func (j *journal) isLeft(l *leftover) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Contains(j.left, l)
}

// settle strikes out those of the moves left that done says.
func (j *journal) settle(done func(*leftover) bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.left = slices.DeleteFunc(j.left, func(l *leftover) bool {
		if !done(l) {
			return false
		}
		j.release(l.at)
		return true
	})
}

// supersede strikes out what is left to be finished of moves of t's process in a hierarchy: it has been moved
// there since.
func (j *journal) supersede(t *Task, hierarchy string) {
	j.settle(func(l *leftover) bool {
		return l.name() == hierarchy && (int(l.tid) == t.TGID || t.Has(int(l.tid)))
	})
}

// newest returns the moves left, but of each process and hierarchy only the last, before which the others had
// ended: they are struck out.
func (j *journal) newest() []*leftover {
	j.mu.Lock()
	list := slices.Clone(j.left)
	j.mu.Unlock()
	slices.SortFunc(list, func(a, b *leftover) int { return cmp.Compare(b.began, a.began) })
	type place struct {
		tgid      int
		hierarchy string
	}
	seen := make(map[place]bool)
	return slices.DeleteFunc(list, func(l *leftover) bool {
		t, err := FindTask(int(l.tid))
		if err != nil {
			return false // finish sees why
		}
		defer t.Close()
		at := place{t.TGID, l.name()}
		older := seen[at]
		if seen[at] = true; older {
			j.strikeLeft(l)
		}
		return older
	})
}

// forget strikes out the moves left that were into containers of a hierarchy which has none any more.
func (j *journal) forget(hierarchy string) {
	j.settle(func(l *leftover) bool { return l.name() == hierarchy })
}

// strikeLeft strikes out a move left, unless it is already.
func (j *journal) strikeLeft(l *leftover) { j.settle(func(other *leftover) bool { return other == l }) }

// finishPatience is how long the targets may take to stop that an earlier daemon left half moved, before requests
// are answered.
const finishPatience = 3 * time.Second

// recover finishes the moves that an earlier daemon was killed in. One that cannot be finished is
// put back to where the roster still has it, as far as that container says where that is. A target that
// does not stop in time is tried again until it does, or is moved elsewhere.
func (s *System) recover() {
	deadline := time.Now().Add(finishPatience)
	for _, l := range s.journal.newest() {
		done := s.recoverOne(l)
		for !done && time.Now().Before(deadline) {
			done = s.recoverOne(l)
		}
		if !done {
			s.log.Warn("half-moved task does not stop", "task", l.tid, "hierarchy", l.name())
			pause := firstRetry
			s.journal.retries.Go(func() { s.retry(l, pause) })
		}
	}
}

// settle finishes what earlier daemons had begun to change of members of containers.
func (h *Hierarchy) settle() {
	for _, c := range h.list() {
		for _, slot := range h.binding().leads {
			s, ok := h.sys.subsystems[slot].(Settler)
			if !ok || c == h.root || !c.Owns(slot) {
				continue
			}
			unsettled, err := s.Unsettled(c.Object(slot))
			if err == nil && unsettled {
				err = errors.Join(c.Renew(h.sys.subsystems[slot], Writer{}), s.Settle(c.Object(slot)))
			}
			if err != nil {
				h.sys.log.Error("members not settled", "container", c.Path(), "subsystem", h.sys.subsystems[slot].Name(), "error", err)
			}
		}
	}
}

// firstRetry is how long to wait before a half-moved task that did not stop is tried again, lastRetry how long at most
// later. A variable for tests.
var firstRetry = 100 * time.Millisecond

const lastRetry = 3 * time.Second

func (s *System) retry(l *leftover, pause time.Duration) {
	for ; ; pause = min(2*pause, lastRetry) {
		select {
		case <-s.journal.closing:
			return
		case <-time.After(pause):
		}
		if s.recoverOne(l) {
			return
		}
	}
}

// recoverOne finishes a move, and strikes it out; false: its target did not stop.
func (s *System) recoverOne(l *leftover) bool {
	c, err := s.containerOf(l)
	if err == nil {
		err = c.finish(l)
	}
	switch {
	case errors.Is(err, ErrNotStopped):
		return false
	case err != nil && !errors.Is(err, errSuperseded):
		s.log.Error("half-moved task", "task", l.tid, "hierarchy", l.name(), "error", err)
	}
	s.journal.strikeLeft(l)
	if c != nil {
		c.adopt(l.began)
	}
	return true
}

func (s *System) containerOf(l *leftover) (*Container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.hierarchies[l.name()]
	if h == nil {
		return nil, errors.New("its hierarchy is not there")
	}
	c := h.Container(l.container)
	if c == nil {
		return nil, errors.New("its container is not there")
	}
	return c, nil
}

// errSuperseded is that the reason for a move has gone while it waited for another one.
var errSuperseded = errors.New("another move has been made since")

// finish moves the task of l into c, or back.
func (c *Container) finish(l *leftover) error {
	left := func() bool { return c.h.sys.journal.isLeft(l) }
	if !left() {
		return errSuperseded
	}
	tid, whole := int(l.tid), l.whole != 0
	t, err := FindTask(tid)
	if errors.Is(err, ErrNoTask) {
		return nil
	}
	if err != nil {
		return err
	}
	defer t.Close()
	born, err := t.born()
	if err != nil || born > l.began {
		return noTask(err) // another process has its number
	}
	err = c.take(tid, whole, left)
	switch {
	case err == nil:
		c.h.sys.log.Info("finished an interrupted move", "task", tid, "container", c.Path())
		return nil
	case errors.Is(err, ErrNoTask):
		return nil
	case errors.Is(err, ErrNotStopped), errors.Is(err, errSuperseded):
		return err
	}
	path, e := c.h.roster.Locate(t)
	if e != nil {
		return errors.Join(err, noTask(e))
	}
	back := c.h.find(path)
	if back == nil || back == c {
		return err
	}
	if e := back.take(tid, whole, left); e != nil && !errors.Is(e, ErrNoTask) {
		return errors.Join(err, e)
	}
	return fmt.Errorf("put back: %w", err)
}

// take moves a task into c as the daemon itself, and is not written down: it is part of a move that is.
// Still is asked when no other move of the process is under way; false: errSuperseded.
func (c *Container) take(tid int, whole bool, still func() bool) error {
	a, err := c.NewAttach(strconv.Itoa(tid), whole, Writer{})
	if err != nil {
		return err
	}
	a.still = still
	return a.run(nil)
}

// adopt moves the processes into c that are in one of its groups but not in it, and were born
// after a move into it began: their parent was half moved then.
func (c *Container) adopt(began uint64) {
	for {
		moved := false
		for _, pid := range c.halfBorn(began) {
			err := c.take(pid, true, func() bool { return c.isHalfBorn(pid, began) })
			if err != nil && !errors.Is(err, ErrNoTask) && !errors.Is(err, errSuperseded) {
				c.h.sys.log.Error("child of a half-moved task", "task", pid, "container", c.Path(), "error", err)
			}
			moved = moved || err == nil
		}
		if !moved {
			return // else a child that was moved may have forked before
		}
	}
}

func (c *Container) halfBorn(began uint64) []int {
	var list []int
	states := c.slots()
	for _, slot := range c.h.binding().leads {
		l, ok := c.h.sys.subsystems[slot].(Lister)
		if !ok || c.own&(1<<slot) == 0 {
			continue
		}
		pids, err := l.Processes(states[slot].object)
		if err != nil {
			c.h.sys.log.Error("processes of a group", "container", c.Path(), "subsystem", c.h.sys.subsystems[slot].Name(), "error", err)
		}
		for _, pid := range pids {
			if c.isHalfBorn(pid, began) {
				list = append(list, pid)
			}
		}
	}
	return list
}

func (c *Container) isHalfBorn(pid int, began uint64) bool {
	t, err := FindTask(pid)
	if err != nil {
		return false
	}
	defer t.Close()
	path, err := c.h.roster.Locate(t)
	if err != nil || path == c.Path() {
		return false
	}
	if _, err := c.h.sys.ours(t); err != nil {
		return false // a container's keeper is in its groups only
	}
	born, err := t.born()
	return err == nil && born+tick > began
}
