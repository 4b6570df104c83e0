package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// launchPatience is how long a daemon may take to start, or to end before another can.
const launchPatience = 30 * time.Second

// connect connects to the daemon and sends r. It starts a daemon when none runs.
func connect(r *request) (c conn, a *reply, err error) {
	err = untilAnswered(func() error {
		c, err = dial()
		if errors.Is(err, errNoDaemon) {
			if err = launch(); err == nil {
				c, err = dial()
			}
		}
		// One that is starting does not listen yet, one that is ending does no longer.
		if errors.Is(err, errNoDaemon) || errors.Is(err, errRunning) {
			return fmt.Errorf("%w: %w", errGone, err)
		}
		if err != nil {
			return err
		}
		if a, err = c.call(r, -1); err != nil {
			c.Close()
		}
		return err
	})
	return c, a, err
}

// launch starts a daemon that ends by itself, and returns when its socket answers. errRunning:
// there is one already.
func launch() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", "--idle-exit", "--background")
	cmd.Args[0] = "rcfsd"
	cmd.Dir = "/"
	cmd.Env = daemonEnv()
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// Whatever else the caller of mount(8) left open would stay open as long as the daemon.
	if err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return errors.Join(fmt.Errorf("close_range: %w", err), w.Close())
	}
	err = startFromInit(cmd)
	w.Close()
	if err != nil {
		return fmt.Errorf("start rcfsd: %w", err)
	}
	says, err := readReady(r)
	if says == saysReady {
		return cmd.Process.Release()
	}
	if err != nil {
		cmd.Process.Kill() // it has not ended by itself
	}
	waitErr := cmd.Wait()
	switch {
	case says == saysBusy:
		return errRunning
	case err != nil:
		return fmt.Errorf("rcfsd did not start: %w", err)
	case says == "":
		return fmt.Errorf("rcfsd did not start: %v; see %s", waitErr, logPath)
	}
	return fmt.Errorf("rcfsd did not start: %s", strings.TrimSpace(says))
}

// runtimeEnv are the variables that tell the Go runtime of a program how to run, and mean nothing else.
var runtimeEnv = []string{"GODEBUG", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GORACE", "GOTRACEBACK"}

// daemonEnv is the daemon's environment, whatever the caller of mount(8) has in its own.
func daemonEnv() []string {
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, name := range runtimeEnv {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

func readReady(r *os.File) (string, error) {
	if err := r.SetReadDeadline(time.Now().Add(launchPatience)); err != nil {
		return "", err
	}
	says, err := io.ReadAll(r)
	return string(says), err
}

// startFromInit starts the daemon in the namespaces of process 1, as far as rcfs manages them,
// wherever mount(8) was called: the root container of every hierarchy stands for what the daemon
// is in. The mount namespace stays the caller's, with its /run.
func startFromInit(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is not to be used again
		err := enterInit()
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	return <-started
}

// enterInit brings the calling thread into the namespaces of process 1. Where those cannot be
// seen, ours are all there is.
func enterInit() error {
	for _, name := range []string{"cgroup", "ipc", "net", "uts"} {
		ns, err := openInit("ns/" + name)
		if err != nil {
			continue
		}
		err = unix.Setns(int(ns.Fd()), 0)
		ns.Close()
		if err != nil {
			return fmt.Errorf("enter the %s namespace of process 1: %w", name, err)
		}
	}
	return nil
}

// openInit opens a file of process 1. Some machines shield it; kthreadd, which is process 2 and
// like all kernel threads has no program, is in the same namespaces.
func openInit(file string) (*os.File, error) {
	f, err := os.Open("/proc/1/" + file)
	if err != nil {
		if _, linkErr := os.Readlink("/proc/2/exe"); errors.Is(linkErr, os.ErrNotExist) {
			return os.Open("/proc/2/" + file)
		}
	}
	return f, err
}
