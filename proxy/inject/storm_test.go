package inject

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/victim"
)

// moverVariable makes the test binary a mover: it holds the pid of the process
// that it moves for ever between the namespaces of the first half of its
// descriptors from 3 on and those of the second half, and their types.
const moverVariable = "RCFS_TEST_MOVER"

// moverMain is the mover.
func moverMain() {
	var numbers []int
	for _, word := range strings.Fields(os.Getenv(moverVariable)) {
		n, err := strconv.Atoi(word)
		if err != nil {
			panic(err)
		}
		numbers = append(numbers, n)
	}
	if len(numbers) == 0 {
		return // not asked for
	}
	pid, types := numbers[0], numbers[1:]
	namespaces := func(first int) (to []Namespace) {
		for i, typ := range types {
			to = append(to, Namespace{Type: typ, FD: first + i})
		}
		return to
	}
	fmt.Println("begin")
	for i := 0; ; i++ {
		if err := moveQuietly(pid, namespaces(3+len(types)*(i%2))); err != nil && !isBusy(err) {
			fmt.Fprintln(os.Stderr, "mover:", err)
			os.Exit(1)
		}
	}
}

// startMover starts one.
func startMover(t *testing.T, pid int, a, b []Namespace) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	mover := exec.Command(self)
	variable := fmt.Sprintf("%s=%d", moverVariable, pid)
	for _, ns := range a {
		variable += fmt.Sprintf(" %d", ns.Type)
	}
	mover.Env = append(os.Environ(), variable)
	mover.Stderr = os.Stderr
	for _, ns := range append(append([]Namespace(nil), a...), b...) {
		fd, err := unix.FcntlInt(uintptr(ns.FD), unix.F_DUPFD_CLOEXEC, 3)
		require.NoError(t, err)
		file := os.NewFile(uintptr(fd), "ns")
		defer file.Close()
		mover.ExtraFiles = append(mover.ExtraFiles, file)
	}
	stdout, err := mover.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, mover.Start())
	begin := make([]byte, 6)
	_, err = stdout.Read(begin)
	require.NoError(t, err)
	require.Equal(t, "begin\n", string(begin))
	return mover
}

// kills is how often a mover is killed per kind of victim.
func kills() int {
	if n, err := strconv.Atoi(os.Getenv("RCFS_STORM_KILLS")); err == nil {
		return n
	}
	return victim.Times(10)
}

// survivors are calls that the kernel makes again, anywhere: they go on even when the tracer is killed.
var survivors = []string{
	"nanosleep", "clock", "clock-abs", "poll", "ppoll", "select", "poll-time", "ppoll-time", "select-time",
	"futex", "futex-time", "futex-abs", "futex-pi", "futex-waitv", "pause", "sigsuspend", "wait4", "waitid",
	"read", "write", "eventfd", "signalfd", "inotify",
	"fifo-open", "flock", "setlkw", "splice", "tee", "sendfile", "accept", "recv", "send",
}

// TestTracerIsKilled kills the tracer with SIGKILL at random moments of endless
// moves. No target may die, see an error, lose its signal mask or keep a
// descriptor.
func TestTracerIsKilled(t *testing.T) { eachSafeWay(t, testTracerIsKilled) }

func testTracerIsKilled(t *testing.T) {
	for _, c := range []struct {
		kind string
		args []string
	}{
		{"single", nil},
		{"threads", []string{"1"}},
		{"threads", []string{"8"}},
		{"threads", []string{"8", "+all"}}, // steps
		{"threads", []string{"32"}},
		{"blocked", survivors},
		{"signals", nil},
		{"churn", nil},
		{"forker", nil},
	} {
		t.Run(fmt.Sprint(c.kind, len(c.args), c.args), func(t *testing.T) {
			v := victim.Start(t, c.kind, c.args...)
			files := countFiles(t, v.Pid)
			killMovers(t, v.Pid)
			require.Equal(t, files, countFiles(t, v.Pid), "descriptors of the target")
			require.Empty(t, v.Stop())
		})
	}
}

// TestStoppedTracerIsKilled is the same with a target that gets SIGSTOP and
// SIGCONT all the time, so that it may be stopped inside the slot.
func TestStoppedTracerIsKilled(t *testing.T) { eachSafeWay(t, testStoppedTracerIsKilled) }

func testStoppedTracerIsKilled(t *testing.T) {
	v := victim.Start(t, "threads", "2")
	there, back := newNamespaces(t), home(t)
	for range kills() {
		mover := startMover(t, v.Pid, there, back)
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(20000))*time.Microsecond)
		for ctx.Err() == nil {
			_ = unix.Kill(v.Pid, unix.SIGSTOP)
			time.Sleep(100 * time.Microsecond)
			_ = unix.Kill(v.Pid, unix.SIGCONT)
		}
		cancel()
		_ = unix.Kill(v.Pid, unix.SIGSTOP)
		require.NoError(t, mover.Process.Kill())
		require.EqualError(t, mover.Wait(), "signal: killed")
		require.NoError(t, move(t, v.Pid, back), "it drains the slot first")
		requireIn(t, v.Pid, back)
		require.NoError(t, unix.Kill(v.Pid, unix.SIGCONT))
	}
	require.Empty(t, v.Stop())
}

// TestLimitEpollWhenTracerIsKilled shows a limit: the kernel ends an
// epoll_wait(2) with EINTR at the stop, and when the tracer is killed before it
// has seen that, nobody makes the call go on. Nothing else may happen to it.
func TestLimitEpollWhenTracerIsKilled(t *testing.T) { eachSafeWay(t, testLimitEpollWhenTracerIsKilled) }

func testLimitEpollWhenTracerIsKilled(t *testing.T) {
	v := victim.Start(t, "blocked", "epoll")
	killMovers(t, v.Pid)
	for _, fault := range v.Stop() {
		require.Regexp(t, "^epoll: (interrupted system call after|returned after .* without a reason)", fault)
		t.Log("known limit:", fault)
	}
}

// killMovers starts movers of a process and kills them, and moves it home.
func killMovers(t *testing.T, pid int) {
	t.Helper()
	there, back := newNamespaces(t), home(t)
	for range kills() {
		mover := startMover(t, pid, there, back)
		time.Sleep(time.Duration(rand.IntN(20000)) * time.Microsecond)
		require.NoError(t, mover.Process.Kill())
		require.EqualError(t, mover.Wait(), "signal: killed")
	}
	// The next move finishes what was left.
	require.NoError(t, move(t, pid, back))
	requireIn(t, pid, back)
	requireUntraced(t, pid)
}

// countFiles counts the descriptors of a process.
func countFiles(t *testing.T, pid int) int {
	t.Helper()
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	require.NoError(t, err)
	return len(names)
}
