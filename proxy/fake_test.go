package proxy_test

import (
	"errors"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/proxy/inject"
)

// script says what fails: steps of moves have names, and ask it whether they do.
type script struct {
	mu    sync.Mutex
	fails map[string]failure // by step
	seen  []string           // the steps that have failed
}

// failure lets a step fail once, after it has gone well some times.
type failure struct {
	after int
	err   error
}

var faults script

func (s *script) set(fails map[string]failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails, s.seen = fails, nil
}

// failed returns the steps that have failed since set.
func (s *script) failed() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

func (s *script) at(step string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.fails[step]
	if !ok {
		return nil
	}
	if f.after > 0 {
		f.after--
		s.fails[step] = f
		return nil
	}
	delete(s.fails, step)
	s.seen = append(s.seen, step)
	return f.err
}

// faultyTracer is a real trace some steps of which fail. Where that is after they were made, they are
// undone first, as package inject does.
type faultyTracer struct {
	proxy.Tracer
	sys *proxy.System
	// writtenDown is how many moves the journal has when the target is let go.
	writtenDown *atomic.Int64
}

func faultySeizer(sys *proxy.System, writtenDown *atomic.Int64) func(proxy.Seizer) proxy.Seizer {
	return func(seize proxy.Seizer) proxy.Seizer {
		return func(on *inject.Tracer, t *proxy.Task, whole bool) (proxy.Tracer, error) {
			if err := faults.at("seize"); err != nil {
				return nil, err
			}
			trace, err := seize(on, t, whole)
			if err != nil {
				return nil, err
			}
			return &faultyTracer{trace, sys, writtenDown}, nil
		}
	}
}

func (f *faultyTracer) Wait(until time.Time) error {
	if err := faults.at("stop"); err != nil {
		return err // and the threads go on until Release
	}
	if err := f.Tracer.Wait(until); err != nil {
		return err
	}
	return faults.at("wait")
}

// Where a thread can refuse to enter.
var enterSteps = []string{"enter, first thread", "enter, one in the middle", "enter, last thread"}

func (f *faultyTracer) Enter(to []inject.Namespace, changes map[int][]inject.Change) error {
	if err := f.Tracer.Enter(to, changes); err != nil {
		return err
	}
	tids := f.Threads()
	for i, k := range []int{0, len(tids) / 2, len(tids) - 1} {
		if err := faults.at(enterSteps[i]); err != nil {
			return errors.Join(&inject.EnterError{TID: tids[k], Type: to[len(to)-1].Type, Err: err}, f.Tracer.Undo())
		}
	}
	return nil
}

func (f *faultyTracer) Undo() error {
	return errors.Join(f.Tracer.Undo(), faults.at("undo"))
}

func (f *faultyTracer) SetResult(tid, n int) error {
	if err := faults.at("result"); err != nil {
		return err
	}
	return f.Tracer.SetResult(tid, n)
}

func (f *faultyTracer) Release() error {
	f.writtenDown.Store(int64(f.sys.WrittenDown()))
	return errors.Join(f.Tracer.Release(), faults.at("release"))
}

// faultyRoster is a real roster that sometimes refuses.
type faultyRoster struct{ proxy.Roster }

func (r faultyRoster) Place(t *proxy.Task, path string, whole bool) error {
	if err := faults.at("roster"); err != nil {
		return err
	}
	return r.Roster.Place(t, path, whole)
}

func (r faultyRoster) SetNote(path, key, value string) error {
	if err := faults.at("note, " + key); err != nil {
		return err
	}
	return r.Roster.SetNote(path, key, value)
}

// fake is a subsystem that has its groups in its own memory, which outlives any system.
type fake struct {
	name string
	mu   sync.Mutex
	last uint64
	root *fakeObject
	at   map[int]*fakeObject    // by process; root where there is none
	made map[uint64]*fakeObject // by container
}

type fakeObject struct {
	id   proxy.ID
	name string
}

func (o *fakeObject) ID() proxy.ID   { return o.id }
func (o *fakeObject) String() string { return o.name }

const fakeDevice = 1 << 40 // no kernel's

func (f *fake) object(p proxy.Place) *fakeObject {
	f.last++
	return &fakeObject{proxy.ID{Dev: fakeDevice, Ino: f.last}, "/" + p.Path()}
}

func (f *fake) Name() string                     { return f.name }
func (f *fake) Probe(proxy.Host) (string, error) { return "fake", nil }
func (f *fake) Unbind(proxy.Place) error         { return nil }

func (f *fake) Bind(root proxy.Place) (proxy.Object, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.root, f.at = f.object(root), make(map[int]*fakeObject)
	return f.root, nil
}

func (f *fake) Create(p proxy.Place, _ proxy.Object) (proxy.Object, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.made == nil {
		f.made = make(map[uint64]*fakeObject)
	}
	f.made[p.ContainerID()] = f.object(p)
	return f.made[p.ContainerID()], nil
}

func (f *fake) Reopen(p proxy.Place, _ proxy.Object) (proxy.Object, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o := f.made[p.ContainerID()]; o != nil {
		return o, nil
	}
	return nil, fs.ErrNotExist
}

func (f *fake) Destroy(p proxy.Place) error {
	if err := faults.at(f.name + ", destroy"); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.made, p.ContainerID())
	return nil
}

func (f *fake) Current(t *proxy.Task) (proxy.Object, error) {
	if err := faults.at(f.name + ", look"); err != nil {
		return nil, err
	}
	st, err := t.Status()
	if err != nil {
		return nil, err
	}
	return f.of(st.TGID), nil
}

func (f *fake) of(pid int) *fakeObject {
	f.mu.Lock()
	defer f.mu.Unlock()
	if o := f.at[pid]; o != nil {
		return o
	}
	return f.root
}

// fakePlacer is a controller of whole processes. One that freezes is entered last.
type fakePlacer struct {
	fake
	freezes   bool
	reluctant bool
}

func (f *fakePlacer) Kind() string  { return proxy.KindController }
func (f *fakePlacer) Freezes() bool { return f.freezes }

func (f *fakePlacer) Reluctant() bool { return f.reluctant }

func (f *fakePlacer) Check(*proxy.Task, proxy.Object) error {
	return faults.at(f.name + ", check")
}

func (f *fakePlacer) Locate(t *proxy.Task) (proxy.Location, error) {
	o, err := f.Current(t)
	if err != nil {
		return proxy.Location{}, err
	}
	return proxy.Location{Name: o.String()}, nil
}

func (f *fakePlacer) Place(t *proxy.Task, to proxy.Location, _ bool) error {
	if err := faults.at(f.name + ", place"); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at[t.TGID] = f.named(to.Name)
	return nil
}

// named needs mu.
func (f *fake) named(name string) *fakeObject {
	for _, o := range f.made {
		if o.name == name {
			return o
		}
	}
	return f.root
}

// fakeNamespace is one that cannot be opened.
type fakeNamespace struct{ fake }

func (f *fakeNamespace) Kind() string                             { return proxy.KindNamespace }
func (f *fakeNamespace) EnterOrder(*proxy.Task, proxy.Object) int { return 1000 }
func (f *fakeNamespace) Open(proxy.Object) (proxy.Namespace, error) {
	return proxy.Namespace{}, unix.EMFILE
}

// They are around the real ones in the order in which a move comes to them.
var (
	firstPlacer = &fakePlacer{fake: fake{name: "afirst"}}
	lastPlacer  = &fakePlacer{fake: fake{name: "zlast"}}
	freezer     = &fakePlacer{fake: fake{name: "zfreezer"}, freezes: true, reluctant: true}
	placers     = []*fakePlacer{firstPlacer, lastPlacer, freezer}
)

func init() {
	for _, f := range placers {
		proxy.Register(f)
	}
	proxy.Register(&fakeNamespace{fake{name: "zclosed"}})
}

// groupsOfFakes is where a process is in the fakes.
func groupsOfFakes(pid int) string {
	var list []string
	for _, f := range placers {
		list = append(list, f.name+"="+f.of(pid).name)
	}
	return strings.Join(list, " ")
}
