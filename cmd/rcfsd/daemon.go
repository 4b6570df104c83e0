package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
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

func daemonMain(args []string, stderr io.Writer) int {
	var f daemonFlags
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
	ready := func(string) {}
	if f.background {
		unix.CloseOnExec(readyFD)
		pipe := os.NewFile(readyFD, "ready")
		ready = func(says string) {
			io.WriteString(pipe, says) // a helper that died does not read; its mount is not made then
			pipe.Close()
		}
	}
	err := runDaemon(f, stderr, ready)
	if errors.Is(err, errRunning) {
		ready(saysBusy)
	} else if err != nil {
		ready(err.Error())
	}
	return report(stderr, "rcfsd", err)
}

// runDaemon serves until a signal comes, or until nothing is left to serve. It says ready when
// the control socket answers.
func runDaemon(f daemonFlags, stderr io.Writer, ready func(string)) (err error) {
	if os.Geteuid() != 0 {
		return exit(exitUsage, errors.New("only root can run it"))
	}
	unix.Umask(0o022)
	if err := os.WriteFile("/proc/self/comm", []byte("rcfsd"), 0); err != nil {
		return err
	}
	dir, err := openRundir()
	if err != nil {
		return exit(exitUsage, err)
	}
	defer func() { err = errors.Join(err, dir.close()) }()
	if f.background {
		if err := logToFile(); err != nil {
			return err
		}
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: f.level}))

	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(signals)
	if f.background {
		signal.Ignore(unix.SIGHUP)
	}

	sys, err := proxy.Open(proxy.Host{Run: runDir}, log)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	changed := make(chan struct{}, 1)
	s, err := listen(socketPath, newModel(sys, log, changed), changed, log)
	if err != nil {
		return errors.Join(err, sys.Close())
	}
	log.Info("ready", "pid", os.Getpid(), "idle-exit", f.idleExit)
	ready(saysReady)

	lonely := time.NewTimer(firstRequest)
	defer lonely.Stop()
	for {
		select {
		case sig := <-signals:
			log.Info("ending", "signal", sig)
			s.close()
			return sys.Close()
		case <-changed:
		case <-sys.Faded():
		case <-lonely.C:
		}
		if f.idleExit && s.closeIfIdle() {
			log.Info("ending, nothing is left to serve")
			return sys.Close()
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
	log     *slog.Logger
	changed chan<- struct{} // told when a view has ended

	mu      sync.Mutex
	mounted map[uint64]*proxy.Hierarchy // guarded by mu; by the mount's device number
}

func newModel(sys *proxy.System, log *slog.Logger, changed chan<- struct{}) *model {
	return &model{sys: sys, log: log, changed: changed, mounted: make(map[uint64]*proxy.Hierarchy)}
}

func (m *model) idle() bool { return m.sys.Idle() }

func (m *model) mount(spec proxy.Spec, dir string) (offer, error) {
	v := fs.NewView(m.sys, dir, m.log)
	h, err := m.sys.Mount(spec, v)
	if err != nil {
		return nil, refused(err)
	}
	return &view{m, h, v}, nil
}

func (m *model) remount(spec proxy.Spec, device uint64) (name, source string, err error) {
	m.mu.Lock()
	h := m.mounted[device]
	m.mu.Unlock()
	if h == nil {
		return "", "", exit(exitMount, fmt.Errorf("this daemon does not serve it: %w", unix.EINVAL))
	}
	if err := m.sys.Extend(h, spec); err != nil {
		return "", "", refused(err)
	}
	return h.Name(), h.Source(), nil
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
	m *model
	h *proxy.Hierarchy
	v *fs.View
}

func (o *view) source() string { return o.h.Source() }

func (o *view) serve(fd int, device uint64) error {
	// Before Serve, since the view can end at once.
	o.m.know(device, o.h)
	if err := o.v.Serve(o.h, fd, func() { o.m.forget(device) }); err != nil {
		o.m.forget(device)
		return exit(exitMount, fmt.Errorf("serve: %w", err))
	}
	o.m.log.Info("mounted", "hierarchy", o.h.Name(), "dir", o.v.Where())
	return nil
}

func (o *view) withdraw() { o.m.sys.Unmount(o.h, o.v) }

func (m *model) know(device uint64, h *proxy.Hierarchy) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mounted[device] = h
}

// forget is called when a mount has ended.
func (m *model) forget(device uint64) {
	m.mu.Lock()
	delete(m.mounted, device)
	m.mu.Unlock()
	select {
	case m.changed <- struct{}{}:
	default: // it is told already
	}
}
