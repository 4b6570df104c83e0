package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rcfs/fs"
	"rcfs/proxy"
)

// The mount helper starts the daemon with descriptor readyFD, a pipe, and reads from it one of
// these, or why the daemon cannot run.
const (
	readyFD   = 3
	saysReady = "ready\n"
	saysBusy  = "another daemon is running\n"
)

// firstRequest is how long an --idle-exit daemon waits for whoever started it.
const firstRequest = 10 * time.Second

// maxLog bounds the log file, which lives in memory, at each start.
const maxLog = 1 << 20

// daemonFlags are the daemon's command line.
type daemonFlags struct {
	idleExit   bool
	background bool
	level      slog.Level
}

func (f *daemonFlags) parse(args []string, stderr io.Writer) (code int) {
	set := flag.NewFlagSet("rcfsd", flag.ContinueOnError)
	set.SetOutput(stderr)
	set.BoolVar(&f.idleExit, "idle-exit", false, "end when no hierarchy is left")
	set.BoolVar(&f.background, "background", false, "started by the mount helper: log to "+logPath+", report on descriptor 3")
	set.TextVar(&f.level, "log-level", slog.LevelInfo, "`level` of the log: debug, info, warn, error")
	if err := set.Parse(args); err != nil {
		return exitUsage
	}
	if set.NArg() > 0 {
		return report(stderr, "rcfsd", exit(exitUsage, fmt.Errorf("argument %q: rcfsd takes none", set.Arg(0))))
	}
	return 0
}

func (f *daemonFlags) log(stderr io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: f.level}))
}

// daemonMain is the keeper.
func daemonMain(args []string, stderr io.Writer) int {
	var f daemonFlags
	if code := f.parse(args, stderr); code != 0 {
		return code
	}
	files, orphan := adopted()
	maps.Copy(files, stored())
	var ready *os.File
	if f.background && !orphan {
		unix.CloseOnExec(readyFD)
		ready = os.NewFile(readyFD, "ready")
	}
	err := prepareDaemon(f, orphan)
	if err != nil {
		if ready != nil {
			io.WriteString(ready, err.Error())
		}
		return report(stderr, "rcfsd", err)
	}
	k := newKeeper(args, files, ready, f.log(stderr))
	k.begun = orphan
	return k.run()
}

func prepareDaemon(f daemonFlags, orphan bool) error {
	if os.Geteuid() != 0 {
		return exit(exitUsage, errors.New("only root can run it"))
	}
	unix.Umask(0o022)
	if err := os.WriteFile("/proc/self/comm", []byte(keeperComm), 0); err != nil {
		return err
	}
	if f.background && !orphan {
		// In the run directory, which is a mount of its own; the worker takes its lock.
		dir, err := openRundir(nil)
		if errors.Is(err, errRunning) {
			return nil // the worker says so
		}
		if err != nil {
			return exit(exitUsage, err)
		}
		dir.lock.Close()
		return logToFile()
	}
	return nil
}

// workerMain is the worker.
func workerMain(args []string, stderr io.Writer) int {
	var f daemonFlags
	if code := f.parse(args, stderr); code != 0 {
		return code
	}
	if err := os.WriteFile("/proc/self/comm", []byte(workerComm), 0); err != nil {
		return report(stderr, "rcfsd", err)
	}
	ready := func(string) {}
	if fd, err := strconv.Atoi(os.Getenv(envReady)); err == nil {
		unix.CloseOnExec(fd)
		pipe := os.NewFile(uintptr(fd), "ready")
		ready = func(says string) {
			io.WriteString(pipe, says) // a helper that died does not read; its mount is not made then
			pipe.Close()
		}
	}
	held, err := openStore(args)
	for _, name := range []string{envFiles, envDied, envReady} {
		os.Unsetenv(name) // not for whoever is started from here
	}
	code := 0
	if err == nil {
		code, err = runWorker(f, held, stderr, ready)
	}
	if errors.Is(err, errRunning) {
		ready(saysBusy)
	} else if err != nil {
		ready(err.Error())
	}
	return max(code, report(stderr, "rcfsd", err))
}

// drainTime is how long requests in hand are waited for when a worker makes room for another.
const drainTime = 2 * time.Second

// runWorker serves until a signal comes, or until nothing is left to serve. It says ready when the control socket
// answers. It returns the exit status where that is not the error's.
func runWorker(f daemonFlags, held *store, stderr io.Writer, ready func(string)) (code int, err error) {
	dir, err := openRundir(held)
	if err != nil {
		return 0, exit(exitUsage, err)
	}
	log := f.log(stderr)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(signals)

	keeper := os.Getppid()
	sys, err := proxy.Open(proxy.Host{Run: runDir, Parts: []int{keeper}}, log)
	if err != nil {
		return 0, errors.Join(fmt.Errorf("open: %w", err), dir.close())
	}
	changed, again := make(chan struct{}, 1), make(chan struct{}, 1)
	m := newModel(sys, held, keeper, log, changed, again)
	m.resume()
	listener, err := controlSocket(held)
	if err != nil {
		return 0, errors.Join(err, sys.Close(), dir.close())
	}
	s := serve(listener, m, changed, log)
	log.Info("ready", "pid", os.Getpid(), "idle-exit", f.idleExit)
	held.ready()
	ready(saysReady)
	end := func() (int, error) {
		s.close()
		return 0, errors.Join(sys.Close(), dir.close())
	}

	lonely := time.NewTimer(firstRequest)
	defer lonely.Stop()
	for {
		select {
		case sig := <-signals:
			if sig == unix.SIGHUP || managed() {
				log.Info("making room", "signal", sig)
				m.drain()
				return map[bool]int{true: exitAgain}[sig == unix.SIGHUP], nil
			}
			log.Info("ending", "signal", sig)
			return end()
		case <-again:
			log.Info("making room for another worker")
			m.drain()
			return exitAgain, nil
		case <-held.over:
			log.Error("the keeper has died")
			m.drain()
			return 0, held.adopt()
		case <-changed:
		case <-sys.Faded():
		case <-lonely.C:
		}
		if f.idleExit && s.closeIfIdle() {
			log.Info("ending, nothing is left to serve")
			return end()
		}
	}
}

// logToFile makes the log file standard error, so that it also gets what the runtime says when
// it dies.
func logToFile() error {
	log, err := os.OpenFile(logPath, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	if st, err := log.Stat(); err == nil && st.Size() > maxLog {
		if err := log.Truncate(0); err != nil {
			return err
		}
	}
	if err := unix.Dup3(int(log.Fd()), 2, 0); err != nil {
		return fmt.Errorf("log to %s: %w", logPath, err)
	}
	return nil
}

// model is the backend of the daemon.
type model struct {
	sys     *proxy.System
	held    *store
	keeper  int
	log     *slog.Logger
	changed chan<- struct{} // told when a view has ended
	again   chan<- struct{} // told when another worker is wanted

	mu      sync.Mutex
	mounted map[uint64]*view // guarded by mu; by the mount's device number
}

func newModel(sys *proxy.System, held *store, keeper int, log *slog.Logger, changed, again chan<- struct{}) *model {
	return &model{sys: sys, held: held, keeper: keeper, log: log, changed: changed, again: again, mounted: make(map[uint64]*view)}
}

// mountNote is what a ledger says of its mount.
type mountNote struct {
	Hierarchy string `json:"hierarchy"`
	Dir       string `json:"dir"`
	Device    uint64 `json:"device"`
}

// The files of a mount are held under these names and its number.
const (
	heldLedger = "ledger."
	heldFuse   = "fuse."
)

// resume serves the mounts of an earlier worker again. One that cannot be is given up.
func (m *model) resume() {
	for _, number := range m.held.names(heldLedger) {
		if err := m.resumeOne(number); err != nil {
			m.log.Error("a mount is lost", "number", number, "error", err)
			m.release(number)
		}
	}
	m.sys.Resumed()
}

// suspicion is by how much of ten the death of a worker makes suspect what it had in hand. Killed is what a good one is, too.
var suspicion = map[string]uint32{"": 0, diedKilled: 1, diedCrashed: 5}

func (m *model) resumeOne(number string) error {
	file, err := m.held.take(heldLedger + number)
	if err != nil {
		return err
	}
	ledger, err := fs.OpenLedger(file)
	if err != nil {
		return err
	}
	dev, err := m.held.takeFd(heldFuse + number)
	if err != nil {
		return errors.Join(err, ledger.Close())
	}
	var note mountNote
	if err := json.Unmarshal([]byte(ledger.Note()), &note); err != nil {
		unix.Close(dev)
		return errors.Join(fmt.Errorf("the ledger's note: %w", err), ledger.Close())
	}
	v := &view{m: m, v: fs.NewView(m.sys, note.Dir, m.log), number: number, device: note.Device}
	if v.h, err = m.sys.Resume(note.Hierarchy, v.v); err != nil {
		unix.Close(dev)
		return errors.Join(err, ledger.Close())
	}
	if err := v.begin(dev, ledger, suspicion[m.held.died]); err != nil {
		v.withdraw()
		return err
	}
	return nil
}

// release has the keeper hold a mount's files no longer.
func (m *model) release(number string) {
	m.held.drop(heldFuse + number)
	m.held.drop(heldLedger + number)
}

// drain has no view read any more, and waits for what is in hand.
func (m *model) drain() {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all sync.WaitGroup
	for _, v := range m.mounted {
		all.Go(func() { v.v.Stop(drainTime) })
	}
	all.Wait()
}

func (m *model) restart() {
	select {
	case m.again <- struct{}{}:
	default: // it is on its way
	}
}

func (m *model) idle() bool { return m.sys.Idle() }

func (m *model) mount(spec proxy.Spec, dir string) (offer, error) {
	v := fs.NewView(m.sys, dir, m.log)
	h, err := m.sys.Mount(spec, v)
	if err != nil {
		return nil, refused(err)
	}
	return &view{m: m, h: h, v: v}, nil
}

func (m *model) remount(spec proxy.Spec, device uint64) (name, source string, err error) {
	m.mu.Lock()
	v := m.mounted[device]
	m.mu.Unlock()
	if v == nil {
		return "", "", exit(exitMount, fmt.Errorf("this daemon does not serve it: %w", unix.EINVAL))
	}
	if err := m.sys.Extend(v.h, spec); err != nil {
		return "", "", refused(err)
	}
	return v.h.Name(), v.h.Source(), nil
}

// refused adds to the error of a mount the errno that a mount(2) of the same kind would have
// given, and the exit status.
func refused(err error) error {
	switch {
	case errors.Is(err, proxy.ErrBound), errors.Is(err, proxy.ErrNotEmpty):
		return exit(exitMount, withErrno(err, unix.EBUSY))
	case errors.Is(err, proxy.ErrUnknown), errors.Is(err, proxy.ErrName), errors.Is(err, proxy.ErrValue):
		return exit(exitUsage, withErrno(err, unix.EINVAL))
	}
	return exit(exitMount, err)
}

func withErrno(err error, errno unix.Errno) error {
	if errors.Is(err, errno) {
		return err
	}
	return fmt.Errorf("%w: %w", err, errno)
}

// view is the offer of the daemon.
type view struct {
	m      *model
	h      *proxy.Hierarchy
	v      *fs.View
	number string // by which the keeper holds its files
	device uint64
}

func (o *view) source() string { return o.h.Source() }

func (o *view) serve(fd int, device uint64) error {
	o.device = device
	o.number = fmt.Sprintf("%d.%x", device, time.Now().UnixNano()) // a device's number is used again
	ledger, err := fs.NewLedger()
	if err != nil {
		unix.Close(fd)
		return exit(exitSystem, err)
	}
	note, err := json.Marshal(mountNote{o.h.Name(), o.v.Where(), device})
	if err == nil {
		err = ledger.SetNote(string(note))
	}
	if err == nil {
		err = o.m.held.hold(heldLedger+o.number, ledger.Fd())
	}
	if err == nil {
		err = o.m.held.hold(heldFuse+o.number, fd)
	}
	if err != nil {
		unix.Close(fd)
		o.m.release(o.number)
		return exit(exitSystem, errors.Join(err, ledger.Close()))
	}
	if err := o.begin(fd, ledger, 0); err != nil {
		o.m.release(o.number)
		return exit(exitMount, fmt.Errorf("serve: %w", err))
	}
	o.m.log.Info("mounted", "hierarchy", o.h.Name(), "dir", o.v.Where())
	return nil
}

// begin serves the mount.
func (o *view) begin(fd int, ledger *fs.Ledger, suspicion uint32) error {
	// Before Serve, since the view can end at once.
	o.m.mu.Lock()
	o.m.mounted[o.device] = o
	o.m.mu.Unlock()
	err := o.v.Serve(o.h, fd, ledger, suspicion, o.ended)
	if err != nil {
		o.forget()
	}
	return err
}

func (o *view) withdraw() { o.m.sys.Unmount(o.h, o.v) }

// ended is called when the mount has ended.
func (o *view) ended() {
	o.m.release(o.number)
	o.forget()
	select {
	case o.m.changed <- struct{}{}:
	default: // it is told already
	}
}

func (o *view) forget() {
	o.m.mu.Lock()
	defer o.m.mu.Unlock()
	if o.m.mounted[o.device] == o {
		delete(o.m.mounted, o.device)
	}
}
