package inject

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// deadline is when a call is to end that a move has interrupted: it has been made again with
// its whole timeout (eintr.go). Were this program to end before, the call would take that.
//
// The thread is stopped once more then, and if it is in that very call, which the
// mark proves (on arm64, that it has not gone to sleep again), it is let go with an answer.
type deadline struct {
	pid, tid int
	at       time.Duration
	call     pendingCall
	slept    int // how often the thread had gone to sleep when it slept in the call
	timer    *time.Timer
	running  bool          // it is too late to take it
	over     chan struct{} // closed when that is done
}

// deadlines are all there are, by tid.
var deadlines = struct {
	sync.Mutex
	of map[int]*deadline
}{of: map[int]*deadline{}}

// setDeadline sets the deadline of a thread that has been let go.
func setDeadline(pid, tid int, at time.Duration, call pendingCall, slept int) {
	d := &deadline{pid: pid, tid: tid, at: at, call: call, slept: slept, over: make(chan struct{})}
	deadlines.Lock()
	defer deadlines.Unlock()
	deadlines.of[tid] = d
	d.timer = time.AfterFunc(at-monotonic(), d.run)
}

// takeDeadline takes the deadline from a thread that is about to be seized: whoever does so, sets it
// again. Nil: there is none.
func takeDeadline(tid int) *deadline {
	deadlines.Lock()
	d := deadlines.of[tid]
	delete(deadlines.of, tid)
	running := d != nil && d.running
	deadlines.Unlock()
	switch {
	case running:
		<-d.over
		return takeDeadline(tid) // it may have been set again
	case d != nil:
		d.timer.Stop()
	}
	return d
}

// ending bounds how many threads are stopped at a time for their deadlines, each of which takes an OS
// thread.
var ending = make(chan struct{}, 4)

// endPatience is how long a thread may take to stop for its deadline. It sleeps where any signal wakes it.
const endPatience = 300 * time.Millisecond

func (d *deadline) run() {
	ending <- struct{}{}
	defer func() { <-ending }()
	deadlines.Lock()
	d.running = deadlines.of[d.tid] == d
	deadlines.Unlock()
	if !d.running {
		return
	}
	defer close(d.over)
	d.end()
	deadlines.Lock()
	defer deadlines.Unlock()
	if deadlines.of[d.tid] == d {
		delete(deadlines.of, d.tid)
	}
}

// end ends the call, if the thread still is in it: release does.
func (d *deadline) end() {
	if now, _, ok := pendingOf(d.tid); !ok || now != d.call {
		return
	}
	Do(func(t *Tracer) {
		trace, err := t.seize(&tracer{pid: d.pid, only: d.tid, ending: d})
		if err != nil {
			return // it is gone, or somebody else traces it
		}
		_ = trace.s.waitStops(time.Now().Add(endPatience))
		_ = trace.Release() // at worst the call goes on
	})
}

// Own says whether the tracer of a thread (TracerPid in /proc/PID/status) belongs to this program. Outside a
// trace of the caller's it then is there to end a call, for an instant that Seize waits for.
func Own(tracer int) bool { return tracer > 0 && unix.Tgkill(os.Getpid(), tracer, 0) == nil }
