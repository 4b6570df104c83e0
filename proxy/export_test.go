package proxy

import (
	"sync/atomic"
	"time"

	"rcfs/proxy/inject"
)

// Tracer and Seizer are the interface between a move and package inject.
type (
	Tracer = tracer
	Seizer = func(on *inject.Tracer, t *Task, whole bool) (Tracer, error)
)

// Intercept puts something between moves and package inject. No move may be under way.
func (s *System) Intercept(f func(Seizer) Seizer) { s.seize = f(s.seize) }

// InterceptRosters puts something before the rosters of hierarchies that are made from now on, until
// end is called.
func InterceptRosters(f func(Roster) Roster) (end func()) {
	before := rosters
	rosters = interceptedRosters{before, f}
	return func() { rosters = before }
}

type interceptedRosters struct {
	Rosters
	f func(Roster) Roster
}

func (r interceptedRosters) Open(name string) (Roster, error) {
	roster, err := r.Rosters.Open(name)
	if err != nil {
		return nil, err
	}
	return r.f(roster), nil
}

// WrittenDown counts the moves in the journal.
func (s *System) WrittenDown() int {
	n := 0
	for i := range s.journal.records {
		n += int(atomic.LoadUint32(&s.journal.records[i].used))
	}
	return n
}

// WriteDown writes a move of a process down that nobody makes, as a daemon leaves it that is killed before.
func (s *System) WriteDown(h *Hierarchy, path string, pid int) error {
	t, err := FindTask(pid)
	if err != nil {
		return err
	}
	defer t.Close()
	r := <-s.journal.free
	r.write(h.find(path), t, true)
	s.journal.free <- r
	return nil
}

// LeaveIntent writes the note of a change down that nobody makes, as a daemon leaves it that is killed before.
func (h *Hierarchy) LeaveIntent(text string) error { return h.roster.SetNote("", noteIntent, text) }

// Intent returns that note.
func (h *Hierarchy) Intent() (string, error) { return h.roster.Note("", noteIntent) }

// SetFirstRetry sets, for systems opened from now on, when a target that does not stop is tried again for the first
// time. It returns what it was.
func SetFirstRetry(d time.Duration) (before time.Duration) {
	before, firstRetry = firstRetry, d
	return before
}

// UnderWay counts the moves that have not ended.
func (s *System) UnderWay() int {
	s.moves.mu.Lock()
	defer s.moves.mu.Unlock()
	return max(len(s.moves.running), journalRecords-len(s.journal.free))
}
