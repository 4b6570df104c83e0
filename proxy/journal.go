package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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
		j.free <- &j.records[i]
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
	for range journalRecords {
		<-j.free
	}
}

// close removes the journal, which is drained.
func (j *journal) close() error {
	mem := unsafe.Slice((*byte)(unsafe.Pointer(j.records)), journalSize)
	return errors.Join(unix.Munmap(mem), os.Remove(j.path))
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

// recover finishes the moves that an earlier daemon was killed in. One that cannot be finished is
// put back to where the roster still has it, as far as that container says where that is.
func (s *System) recover() {
	for i := range s.journal.records {
		r := &s.journal.records[i]
		if atomic.LoadUint32(&r.used) != 0 {
			s.recoverOne(r)
			r.strike()
		}
	}
}

func (s *System) recoverOne(r *record) {
	h := s.hierarchies[r.name()]
	if h == nil {
		s.log.Error("half-moved task in a hierarchy that is not there", "task", r.tid, "hierarchy", r.name())
		return
	}
	c := h.Container(r.container)
	if c == nil {
		s.log.Error("half-moved task in a container that is not there", "task", r.tid, "hierarchy", h.name)
		return
	}
	if err := c.finish(r); err != nil {
		s.log.Error("half-moved task", "task", r.tid, "container", c.Path(), "error", err)
	} else {
		s.log.Info("finished an interrupted move", "task", r.tid, "container", c.Path())
	}
	c.adopt(r.began)
}

// finishPatience is how long a target may take to stop that an earlier daemon left half moved.
const finishPatience = 3 * time.Second

// finish moves the task of r into c, or back.
func (c *Container) finish(r *record) error {
	t, err := FindTask(int(r.tid))
	if errors.Is(err, ErrNoTask) {
		return nil
	}
	if err != nil {
		return err
	}
	defer t.Close()
	born, err := t.born()
	if err != nil || born > r.began {
		return noTask(err) // another process has its number
	}
	whole := r.whole != 0
	deadline := time.Now().Add(finishPatience)
	err = c.take(int(r.tid), whole)
	for errors.Is(err, ErrNotStopped) && time.Now().Before(deadline) {
		err = c.take(int(r.tid), whole)
	}
	if err == nil || errors.Is(err, ErrNoTask) {
		return nil
	}
	path, e := c.h.roster.Locate(t)
	if e != nil {
		return errors.Join(err, noTask(e))
	}
	back := c.h.find(path)
	if back == nil || back == c {
		return err
	}
	if e := back.take(int(r.tid), whole); e != nil && !errors.Is(e, ErrNoTask) {
		return errors.Join(err, e)
	}
	return fmt.Errorf("put back: %w", err)
}

// take moves a task into c as the daemon itself, and is not written down: it is part of a move that is.
func (c *Container) take(tid int, whole bool) error {
	a, err := c.NewAttach(strconv.Itoa(tid), whole, Writer{})
	if err != nil {
		return err
	}
	return a.run(nil)
}

// adopt moves the processes into c that are in one of its groups but not in it, and were born
// after a move into it began: their parent was half moved then.
func (c *Container) adopt(began uint64) {
	for {
		moved := false
		for _, pid := range c.halfBorn(began) {
			err := c.take(pid, true)
			if err != nil && !errors.Is(err, ErrNoTask) {
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
