package main

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The daemon is two processes. The worker does everything; the keeper, its parent, does nothing but start it, and again
// when it has died. What has to outlive the worker are open files: the control socket, each mount's /dev/fuse and
// ledger, the lock. The worker has the keeper hold them, by names (store.go); the next worker gets them all.
//
// A worker whose keeper has died becomes the keeper itself: it executes the program once more, which keeps its open
// files and its process id, and that starts a worker.

// A worker's descriptors: its end of the connection to the keeper, a pipe that ends with the keeper, and the files
// that the keeper holds.
const (
	storeFD   = 3
	lifeFD    = 4
	firstFile = 5
)

// What a worker is told by its environment.
const (
	envFiles = "RCFS_FILES" // the names of the files from firstFile on, by colons
	envDied  = "RCFS_DIED"  // how its predecessor ended, if it died: diedKilled or diedCrashed
	envReady = "RCFS_READY" // the descriptor to say on that it is ready
)

const (
	diedKilled  = "killed"
	diedCrashed = "crashed"
)

// exitAgain is a worker's exit status that asks for another one.
const exitAgain = 75

// Comms, by which ps(1) tells the two from each other.
const (
	keeperComm = "rcfsd"
	workerComm = "rcfsd-worker"
)

// How long the keeper pauses before it starts a worker after one that died young.
const (
	young        = time.Second
	firstPause   = 5 * time.Millisecond
	longestPause = time.Second
)

// keeper holds what has to outlive workers.
type keeper struct {
	args    []string // of a worker
	program string   // on disk, where there may be a newer one by now
	log     *slog.Logger
	ready   *os.File // given to the first worker
	notify  *notifier

	mu     sync.Mutex
	files  map[string]int // guarded by mu; descriptors, not os.Files, which would be polled
	worker *os.Process    // guarded by mu; nil between two
	serves bool           // guarded by mu; the worker has said that it does
	ending os.Signal      // guarded by mu; the signal that ends the daemon
	begun  bool           // guarded by mu; a worker has served
}

// newKeeper makes a keeper that holds what its own predecessor held.
func newKeeper(args []string, files map[string]int, ready *os.File, log *slog.Logger) *keeper {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		program = ""
	}
	return &keeper{
		args: args, program: strings.TrimSuffix(program, " (deleted)"), log: log, ready: ready, files: files,
		notify: newNotifier(log),
	}
}

// run keeps workers until one ends by itself, and returns its exit status.
func (k *keeper) run() int {
	// It has next to nothing. What each start of a worker leaves behind shall not add up to the 4 MB from which on Go
	// looks for what can go.
	debug.SetGCPercent(10)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(signals)
	go func() {
		for sig := range signals {
			k.signal(sig)
		}
	}()
	pause, died := firstPause, ""
	for {
		begun := time.Now()
		state, err := k.work(died)
		if err != nil {
			k.log.Error("no worker can be started", "error", err)
			if k.hopeless() {
				return exitSystem
			}
		} else if !k.another(state) {
			k.notify.say("STOPPING=1")
			return max(state.ExitCode(), 0)
		}
		died = howDied(state)
		if time.Since(begun) > young || err == nil && state.ExitCode() == exitAgain {
			pause = firstPause
			continue
		}
		time.Sleep(pause)
		pause = min(2*pause, longestPause)
	}
}

// hopeless says whether a worker that cannot be started need not be tried again.
func (k *keeper) hopeless() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.begun || k.ending != nil
}

// another says whether there is to be another worker after one that ended so.
func (k *keeper) another(state *os.ProcessState) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case !k.begun: // the first could not even begin
		return false
	case state.Exited() && state.ExitCode() == exitAgain:
		return true
	case state.Exited() && (state.ExitCode() == 0 || k.ending != nil):
		return false
	}
	k.log.Error("the worker has died", "how", state.String())
	return true
}

func howDied(state *os.ProcessState) string {
	switch {
	case state == nil, state.Exited() && state.ExitCode() == exitAgain:
		return ""
	case !state.Exited() && state.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL:
		return diedKilled
	}
	return diedCrashed
}

// work starts a worker and returns when it has ended.
func (k *keeper) work(died string) (*os.ProcessState, error) {
	store, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(store[0])
	var life [2]int
	if err := unix.Pipe2(life[:], unix.O_CLOEXEC); err != nil {
		unix.Close(store[1])
		return nil, fmt.Errorf("pipe: %w", err)
	}
	defer unix.Close(life[1])
	p, err := k.start([]int{store[1], life[0]}, died)
	unix.Close(store[1])
	unix.Close(life[0])
	if err != nil {
		return nil, err
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		k.serve(store[0])
	}()
	state, err := p.Wait()
	unix.Shutdown(store[0], unix.SHUT_RDWR) // whoever else has the other end, it is not the worker
	<-served
	k.mu.Lock()
	k.worker, k.serves = nil, false
	k.mu.Unlock()
	return state, err
}

// start starts a worker, from the program on disk if that can be executed.
func (k *keeper) start(fds []int, died string) (*os.Process, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	attr := syscall.ProcAttr{Files: []uintptr{0, 1, 2}}
	names := slices.Sorted(maps.Keys(k.files))
	for _, name := range names {
		fds = append(fds, k.files[name])
	}
	attr.Env = append(os.Environ(), envFiles+"="+strings.Join(names, ":"), envDied+"="+died)
	if k.ready != nil {
		attr.Env = append(attr.Env, envReady+"="+strconv.Itoa(storeFD+len(fds)))
		fds = append(fds, int(k.ready.Fd()))
	}
	for _, fd := range fds {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	pid, err := syscall.ForkExec(k.program, append([]string{workerComm}, k.args...), &attr)
	if err != nil {
		pid, err = syscall.ForkExec("/proc/self/exe", append([]string{workerComm}, k.args...), &attr)
	}
	if err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return nil, err
	}
	k.worker = p
	if k.ending != nil {
		p.Signal(k.ending)
	}
	return p, nil
}

// signal passes on what ends the daemon, and what has the worker make room for another. One that has not begun to serve
// is the program on disk, and would die of the latter.
func (k *keeper) signal(sig os.Signal) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if sig != unix.SIGHUP {
		k.ending = sig
	}
	if k.worker != nil && (sig != unix.SIGHUP || k.serves) {
		k.worker.Signal(sig) // it may have ended
	}
}

// serve does what the worker asks for, until it has ended.
func (k *keeper) serve(store int) {
	for {
		op, name, fd, err := receiveStore(store)
		if err != nil {
			if err != io.EOF {
				k.log.Error("the worker's files", "error", err)
			}
			return
		}
		k.do(op, name, fd)
		if err := unix.Send(store, []byte{op}, unix.MSG_NOSIGNAL); err != nil {
			return // it has ended
		}
	}
}

func (k *keeper) do(op byte, name string, fd int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	old, held := k.files[name]
	switch op {
	case storeHold:
		k.files[name] = fd
		k.notify.hold(name, fd)
	case storeDrop:
		delete(k.files, name)
		k.notify.drop(name)
	case storeReady:
		if k.ready != nil {
			k.ready.Close()
			k.ready = nil
		}
		k.begun, k.serves = true, true
		k.notify.say("READY=1\nMAINPID=" + strconv.Itoa(os.Getpid()))
		return
	}
	if held {
		unix.Close(old)
	}
}

// adopt makes this worker, whose keeper has died, the keeper. It does not return unless it fails.
func adopt(args []string, files map[string]int) error {
	names := slices.Sorted(maps.Keys(files))
	var numbers []string
	for _, name := range names {
		if _, err := unix.FcntlInt(uintptr(files[name]), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("keep %q: %w", name, err)
		}
		numbers = append(numbers, strconv.Itoa(files[name]))
	}
	env := slices.DeleteFunc(os.Environ(), func(s string) bool {
		return strings.HasPrefix(s, envFiles+"=") || strings.HasPrefix(s, envDied+"=") || strings.HasPrefix(s, envReady+"=")
	})
	env = append(env, envAdopted+"="+strings.Join(names, ":")+" "+strings.Join(numbers, ":"))
	return unix.Exec("/proc/self/exe", append([]string{keeperComm}, args...), env)
}

// envAdopted has the names and the numbers of the files that a worker that has become a keeper held.
const envAdopted = "RCFS_ADOPTED"

// adopted returns them.
func adopted() (files map[string]int, orphan bool) {
	files = make(map[string]int)
	text, orphan := os.LookupEnv(envAdopted)
	names, numbers, _ := strings.Cut(text, " ")
	os.Unsetenv(envAdopted)
	if names == "" {
		return files, orphan
	}
	all := strings.Split(numbers, ":")
	for i, name := range strings.Split(names, ":") {
		if i >= len(all) {
			break
		}
		if fd, err := strconv.Atoi(all[i]); err == nil && isOpen(fd) && validStore(storeHold, name, fd) {
			unix.CloseOnExec(fd)
			files[name] = fd
		}
	}
	return files, orphan
}

func isOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}
