package inject

import (
	"context"
	"sync"
	"time"
)

// remote is a Trace that lives in a Do of its own, for a test that has several, or none at its end.
type remote struct {
	trace *Trace
	calls chan func()
	ended chan struct{}
	once  sync.Once
}

func seize(pid int) (*remote, error) {
	return traceRemotely(func(t *Tracer) (*Trace, error) { return t.Seize(pid) })
}

func seizeThread(tid int) (*remote, error) {
	return traceRemotely(func(t *Tracer) (*Trace, error) { return t.SeizeThread(tid) })
}

func traceRemotely(seize func(*Tracer) (*Trace, error)) (*remote, error) {
	r := &remote{calls: make(chan func()), ended: make(chan struct{})}
	seized := make(chan error)
	go func() {
		defer close(r.ended)
		Do(func(t *Tracer) {
			var err error
			r.trace, err = seize(t)
			seized <- err
			for f := range r.calls {
				f()
			}
		})
	}()
	err := <-seized
	if err != nil {
		r.end()
		return nil, err
	}
	return r, nil
}

func (r *remote) end() {
	r.once.Do(func() { close(r.calls) })
	<-r.ended
}

func (r *remote) do(f func() error) (err error) {
	select {
	case <-r.ended: // f says what a released trace says
		return f()
	default:
	}
	done := make(chan struct{})
	r.calls <- func() {
		err = f()
		close(done)
	}
	<-done
	return err
}

func (r *remote) Wait(ctx context.Context) error {
	until, limited := ctx.Deadline()
	if !limited {
		until = time.Now().Add(patience)
	}
	return r.do(func() error { return r.trace.Wait(until) })
}

func (r *remote) Enter(to []Namespace) error {
	return r.do(func() error { return r.trace.Enter(to, nil) })
}

func (r *remote) Change(changes map[int][]Change) error {
	return r.do(func() error { return r.trace.Enter(nil, changes) })
}

func (r *remote) Undo() error { return r.do(r.trace.Undo) }

func (r *remote) SetResult(tid, n int) error {
	return r.do(func() error { return r.trace.SetResult(tid, n) })
}

func (r *remote) Threads() (tids []int) {
	_ = r.do(func() error {
		tids = r.trace.Threads()
		return nil
	})
	return tids
}

func (r *remote) Release() (err error) {
	r.once.Do(func() {
		err = r.do(r.trace.Release)
		close(r.calls)
	})
	<-r.ended
	return err
}
