package proxy

import (
	"sync"
	"time"
)

// moves lets one move of a process run at a time. It is the only lock that is held while a
// target is waited for, and all it keeps waiting is other moves of that very target.
type moves struct {
	mu      sync.Mutex
	running map[int]*move // guarded by mu; by thread group id
}

type move struct {
	ended   chan struct{} // closed when the move has ended
	stopped chan struct{} // closed when the move has told the target to stop
	freed   chan struct{} // closed when it is about to let the target go on
}

func newMove() *move {
	return &move{ended: make(chan struct{}), stopped: make(chan struct{}), freed: make(chan struct{})}
}

// begin waits until no other move of process tgid is running. A writer that moves its own
// process (own) cannot wait for a move that waits for it to stop: ErrNotStopped, as when the other
// one takes longer than until then.
func (m *moves) begin(until time.Time, tgid int, own bool) (mine *move, waited bool, err error) {
	for {
		m.mu.Lock()
		other := m.running[tgid]
		if other == nil {
			mine = newMove()
			if m.running == nil {
				m.running = make(map[int]*move)
			}
			m.running[tgid] = mine
			m.mu.Unlock()
			return mine, waited, nil
		}
		m.mu.Unlock()
		waited = true
		stopped := other.stopped
		if !own {
			stopped = nil
		}
		select {
		case <-other.ended:
		case <-stopped:
			select {
			case <-other.freed:
				<-other.ended
			default:
				return nil, waited, ErrNotStopped
			}
		case <-time.After(time.Until(until)):
			return nil, waited, ErrNotStopped
		}
	}
}

func (m *moves) end(tgid int, mine *move) {
	m.mu.Lock()
	delete(m.running, tgid)
	m.mu.Unlock()
	close(mine.ended)
}
