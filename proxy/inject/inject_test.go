package inject

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/victim"
)

// patience is how long anything may take that is not expected to fail.
const patience = time.Minute

// newNamespaces makes new uts, ipc and net namespaces and returns them opened.
func newNamespaces(t testing.TB) []Namespace {
	t.Helper()
	types := []int{unix.CLONE_NEWUTS, unix.CLONE_NEWIPC, unix.CLONE_NEWNET}
	var made []Namespace
	failed := make(chan error)
	go onOwnThread(func() { // never unlocked: the thread must not be used again
		failed <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET); err != nil {
				return err
			}
			for _, typ := range types {
				fd, err := unix.Open(nsPath(os.Getpid(), unix.Gettid(), typ), unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					return err
				}
				made = append(made, Namespace{Type: typ, FD: fd})
			}
			return nil
		}()
	})
	require.NoError(t, <-failed)
	t.Cleanup(func() {
		for _, ns := range made {
			unix.Close(ns.FD)
		}
	})
	return made
}

// home returns the namespaces of the test itself, in the order of newNamespaces.
func home(t testing.TB) []Namespace {
	t.Helper()
	var own []Namespace
	for _, typ := range []int{unix.CLONE_NEWUTS, unix.CLONE_NEWIPC, unix.CLONE_NEWNET} {
		fd, err := unix.Open(nsPath(os.Getpid(), os.Getpid(), typ), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		own = append(own, Namespace{Type: typ, FD: fd})
	}
	return own
}

// requireIn checks every thread of a process.
func requireIn(t *testing.T, pid int, want []Namespace) {
	t.Helper()
	for _, ns := range want {
		var st unix.Stat_t
		require.NoError(t, unix.Fstat(ns.FD, &st))
		tids, err := listThreads(pid)
		require.NoError(t, err)
		for _, tid := range tids {
			var is unix.Stat_t
			if err := unix.Stat(nsPath(pid, tid, ns.Type), &is); err != nil {
				require.Contains(t, []error{unix.ENOENT, unix.EACCES}, err) // it ended
				continue
			}
			require.Equal(t, st.Ino, is.Ino, "thread %d of %d, %s", tid, pid, typeName(ns.Type))
		}
	}
}

// requireUntraced checks that nothing stays attached to a process. For the end of a timeout something
// may be, for an instant.
func requireUntraced(t *testing.T, pid int) {
	t.Helper()
	tids, err := listThreads(pid)
	require.NoError(t, err)
	for _, tid := range tids {
		require.Eventually(t, func() bool { return readStatus(tid, "TracerPid") <= 0 }, patience, time.Millisecond,
			"thread %d of %d", tid, pid)
	}
}

// stop seizes a process and waits for its threads.
func stop(t *testing.T, pid int) *remote {
	t.Helper()
	tr, err := seize(pid)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, tr.Release()) })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, tr.Wait(ctx))
	return tr
}

// move moves a process.
func move(t *testing.T, pid int, to []Namespace) error {
	t.Helper()
	tr := stop(t, pid)
	err := tr.Enter(to)
	require.NoError(t, tr.Release())
	return err
}

func TestMove(t *testing.T) { eachSafeWay(t, testMove) }

func testMove(t *testing.T) {
	for _, c := range []struct {
		kind  string
		args  []string
		times int
	}{
		{"single", nil, 100},
		{"idle", nil, 50},
		{"threads", []string{"1"}, 50},
		{"threads", []string{"8"}, 30},
		{"threads", []string{"32"}, 10},
		{"churn", nil, 20},
		{"forker", nil, 50},
		{"spawner", nil, 50},
		{"execer", nil, 50},
		{"signals", nil, 100},
		{"blocked", anywhere(), 20},
		{"single", []string{"+chroot"}, 5},
		{"single", []string{"+newns"}, 5},
		{"threads", []string{"8", "+chroot"}, 5},
		{"threads", []string{"8", "+newns", "+chroot"}, 5},
		{"threads", []string{"4", "+seccomp"}, 10},
		{"single", []string{"+softfds"}, 5},
	} {
		t.Run(fmt.Sprint(c.kind, c.args), func(t *testing.T) {
			t.Parallel()
			v := victim.Start(t, c.kind, c.args...)
			there, back := newNamespaces(t), home(t)
			for i := range victim.Times(c.times) {
				to := there
				if i%2 == 1 {
					to = back
				}
				tr := stop(t, v.Pid)
				require.NoError(t, tr.Enter(to))
				requireIn(t, v.Pid, to)
				require.NoError(t, tr.Release())
			}
			requireUntraced(t, v.Pid)
			require.Empty(t, undisturbed(t, v.Stop()))
		})
	}
}

// TestMoveBySteps moves as where there is no blob: the calls are stepped through.
func TestMoveBySteps(t *testing.T) {
	inWays(t, []string{bySteps}, testMoveBySteps)
}

func testMoveBySteps(t *testing.T) {
	for _, c := range []struct {
		kind string
		args []string
		want error
	}{
		{"single", nil, nil},
		{"threads", []string{"8"}, nil},
		{"threads", []string{"32"}, nil},
		{"churn", nil, nil},
		{"signals", nil, nil},
		{"blocked", anywhere(), nil},
		{"threads", []string{"8", "+newns", "+chroot"}, nil},
		{"threads", []string{"4", "+seccomp"}, nil},
		{"single", []string{"+softfds"}, nil},
		{"single", []string{"+fullfds"}, unix.EMFILE},
		{"threads", []string{"8", "+onenocap"}, unix.EPERM},
	} {
		t.Run(fmt.Sprint(c.kind, c.args), func(t *testing.T) {
			v := victim.Start(t, c.kind, c.args...)
			there, back := newNamespaces(t), home(t)
			for range victim.Times(10) {
				require.ErrorIs(t, move(t, v.Pid, there), c.want)
				if c.want != nil {
					requireIn(t, v.Pid, back)
					continue
				}
				requireIn(t, v.Pid, there)
				require.NoError(t, move(t, v.Pid, back))
			}
			requireUntraced(t, v.Pid)
			require.Empty(t, undisturbed(t, v.Stop()))
		})
	}
}

// TestTableOfItsOwn moves threads that do not all have one descriptor table. Where only a process's
// leader has a pidfd, before Linux 6.9, nothing reaches another table, and nothing is moved.
func TestTableOfItsOwn(t *testing.T) { eachWay(t, testTableOfItsOwn) }

func testTableOfItsOwn(t *testing.T) {
	v := victim.Start(t, "threads", "4", "+ownfiles")
	tids, err := listThreads(v.Pid)
	require.NoError(t, err)
	i := slices.IndexFunc(tids, func(tid int) bool { return !sameFiles(v.Pid, tid) })
	require.Positive(t, i)
	there, back := newNamespaces(t), home(t)
	fd, err := unix.PidfdOpen(tids[i], unix.O_EXCL)
	if err == unix.EINVAL && !haveHandles() {
		require.ErrorIs(t, move(t, v.Pid, there), ErrUnsupported)
		require.ErrorIs(t, moveThread(tids[i], there), ErrUnsupported)
	} else {
		if err == nil {
			require.NoError(t, unix.Close(fd))
		}
		require.NoError(t, move(t, v.Pid, there))
		requireIn(t, v.Pid, there)
		require.NoError(t, move(t, v.Pid, back))
		require.NoError(t, moveThread(tids[i], there))
		requireThreadIn(t, v.Pid, tids[i], there)
		require.NoError(t, moveThread(tids[i], back))
		require.NoError(t, move(t, v.Pid, back), "with those born of it while it was there")
	}
	for _, tid := range tids { // not those born meanwhile of one that was away
		requireThreadIn(t, v.Pid, tid, back)
	}
	requireUntraced(t, v.Pid)
	require.Empty(t, v.Stop())
}

func TestThreadsAreListed(t *testing.T) {
	v := victim.Start(t, "threads", "8")
	tr := stop(t, v.Pid)
	want, err := listThreads(v.Pid)
	require.NoError(t, err)
	slices.Sort(want)
	require.Equal(t, want, tr.Threads())
	require.NoError(t, tr.Release())
	require.Empty(t, tr.Threads())
	require.Empty(t, v.Stop())
}

func TestSeizeThread(t *testing.T) { eachWay(t, testSeizeThread) }

func testSeizeThread(t *testing.T) {
	v := victim.Start(t, "threads", "4")
	tids, err := listThreads(v.Pid)
	require.NoError(t, err)
	there := newNamespaces(t)
	tr, err := seizeThread(tids[2])
	require.NoError(t, err)
	defer tr.Release()
	require.NoError(t, tr.Wait(t.Context()))
	require.Equal(t, tids[2:3], tr.Threads())
	require.NoError(t, tr.Enter(there))
	require.NoError(t, tr.Release())
	var st, is unix.Stat_t
	require.NoError(t, unix.Fstat(there[0].FD, &st))
	for _, tid := range tids {
		require.NoError(t, unix.Stat(nsPath(v.Pid, tid, unix.CLONE_NEWUTS), &is))
		require.Equal(t, tid == tids[2], is.Ino == st.Ino, "thread %d", tid)
	}
	require.Empty(t, v.Stop())
}

func TestUndo(t *testing.T) { eachWay(t, testUndo) }

func testUndo(t *testing.T) {
	v := victim.Start(t, "threads", "8")
	there, back := newNamespaces(t), home(t)
	tr := stop(t, v.Pid)
	require.NoError(t, tr.Enter(there))
	requireIn(t, v.Pid, there)
	require.NoError(t, tr.Undo())
	requireIn(t, v.Pid, back)
	require.NoError(t, tr.Undo(), "a second undo has nothing to do")
	require.NoError(t, tr.Release())
	require.NoError(t, tr.Release(), "twice")
	require.Empty(t, v.Stop())
}

func TestOneThreadRefuses(t *testing.T) { eachWay(t, testOneThreadRefuses) }

func testOneThreadRefuses(t *testing.T) {
	v := victim.Start(t, "threads", "8", "+onenocap")
	err := move(t, v.Pid, newNamespaces(t))
	var refused *EnterError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, unix.EPERM, refused.Err)
	require.Equal(t, unix.CLONE_NEWUTS, refused.Type)
	requireIn(t, v.Pid, home(t))
	requireUntraced(t, v.Pid)
	require.Empty(t, v.Stop())
}

// TestOneThreadHasNoRoom is TestOneThreadRefuses with a thread whose own descriptor table is full.
func TestOneThreadHasNoRoom(t *testing.T) { eachWay(t, testOneThreadHasNoRoom) }

func testOneThreadHasNoRoom(t *testing.T) {
	v := victim.Start(t, "threads", "8", "+onefull")
	before := countFiles(t, v.Pid)
	there, back := newNamespaces(t), home(t)
	for range 3 {
		require.ErrorIs(t, move(t, v.Pid, there), unix.EMFILE)
		requireIn(t, v.Pid, back)
	}
	requireUntraced(t, v.Pid)
	require.Equal(t, before, countFiles(t, v.Pid))
	require.Empty(t, v.Stop())
}

// TestNoMemory moves a program that may not map one page more. Where namespaces come by handle that
// is not needed.
func TestNoMemory(t *testing.T) { eachWay(t, testNoMemory) }

func testNoMemory(t *testing.T) {
	v := victim.Start(t, "single")
	before := countFiles(t, v.Pid)
	there, back := newNamespaces(t), home(t)
	var was unix.Rlimit
	require.NoError(t, unix.Prlimit(v.Pid, unix.RLIMIT_AS, &unix.Rlimit{Cur: 4096, Max: unix.RLIM_INFINITY}, &was))
	want := error(unix.ENOMEM)
	if haveHandles() {
		want = nil
	}
	require.ErrorIs(t, move(t, v.Pid, there), want)
	if want == nil {
		back = there
	}
	requireIn(t, v.Pid, back)
	require.NoError(t, unix.Prlimit(v.Pid, unix.RLIMIT_AS, &was, nil))
	require.NoError(t, move(t, v.Pid, there))
	requireIn(t, v.Pid, there)
	requireUntraced(t, v.Pid)
	require.Equal(t, before, countFiles(t, v.Pid))
	require.Empty(t, v.Stop())
}

func TestRefusals(t *testing.T) { eachWay(t, testRefusals) }

func testRefusals(t *testing.T) {
	for _, c := range []struct {
		name, kind string
		args       []string
		want       error
	}{
		{"no capability", "threads", []string{"2", "+nocap"}, unix.EPERM},
		{"full descriptor table", "single", []string{"+fullfds"}, unix.EMFILE},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := victim.Start(t, c.kind, c.args...)
			require.ErrorIs(t, move(t, v.Pid, newNamespaces(t)), c.want)
			requireIn(t, v.Pid, home(t))
			require.Empty(t, v.Stop())
		})
	}
}

func TestSeizeErrors(t *testing.T) {
	v := victim.Start(t, "idle")
	first := stop(t, v.Pid)
	for _, c := range []struct {
		name  string
		pid   int
		want  error
		errno unix.Errno
	}{
		{"no such process", 1 << 22, ErrGone, unix.ESRCH},
		{"traced by another", v.Pid, ErrTraced, unix.EBUSY},
		{"kernel thread", 2, ErrUnsupported, unix.EOPNOTSUPP},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.pid == 2 {
				if stat, err := readStat(2); err != nil || stat.flags&pfKthread == 0 {
					t.Skip("no kernel thread is to be seen in this pid namespace")
				}
			}
			_, err := seize(c.pid)
			require.ErrorIs(t, err, c.want)
			require.ErrorIs(t, err, c.errno)
		})
	}
	require.NoError(t, first.Release())
	require.Empty(t, v.Stop())
}

// state returns the state letter of a process.
func state(t *testing.T, pid int) string {
	t.Helper()
	stat, err := readStat(pid)
	require.NoError(t, err)
	return string(stat.state)
}

func TestStoppedStaysStopped(t *testing.T) { eachWay(t, testStoppedStaysStopped) }

func testStoppedStaysStopped(t *testing.T) {
	for _, kind := range []string{"single", "threads"} {
		t.Run(kind, func(t *testing.T) {
			v := victim.Start(t, kind)
			require.NoError(t, unix.Kill(v.Pid, unix.SIGSTOP))
			require.Eventually(t, func() bool { return state(t, v.Pid) == "T" }, patience, time.Millisecond)
			there := newNamespaces(t)
			require.NoError(t, move(t, v.Pid, there))
			requireIn(t, v.Pid, there)
			require.Eventually(t, func() bool { return state(t, v.Pid) == "T" }, patience, time.Millisecond)
			require.NoError(t, unix.Kill(v.Pid, unix.SIGCONT))
			require.Empty(t, v.Stop())
		})
	}
}

// TestStopAndContinueStorm sends SIGSTOP and SIGCONT all the time.
func TestStopAndContinueStorm(t *testing.T) { eachWay(t, testStopAndContinueStorm) }

func testStopAndContinueStorm(t *testing.T) {
	v := victim.Start(t, "threads", "4")
	there, back := newNamespaces(t), home(t)
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			default:
				_ = unix.Kill(v.Pid, unix.SIGSTOP)
				time.Sleep(200 * time.Microsecond)
				_ = unix.Kill(v.Pid, unix.SIGCONT)
				time.Sleep(200 * time.Microsecond)
			}
		}
	}()
	for range victim.Times(50) {
		require.NoError(t, move(t, v.Pid, there))
		require.NoError(t, move(t, v.Pid, back))
	}
	close(end)
	<-ended
	requireUntraced(t, v.Pid)
	require.Empty(t, v.Stop())
}

func TestVforkParentTimesOut(t *testing.T) {
	v := victim.Start(t, "vfork")
	require.Eventually(t, func() bool { return inVfork(t, v.Pid) }, patience, time.Millisecond)
	tr, err := seize(v.Pid)
	require.NoError(t, err)
	t.Cleanup(func() { tr.Release() })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err = tr.Wait(ctx)
	require.ErrorIs(t, err, ErrTimeout)
	require.ErrorIs(t, err, unix.EAGAIN)
	require.NoError(t, tr.Release())
	requireUntraced(t, v.Pid)
	require.Empty(t, v.Stop())
}

// TestOneThreadDoesNotStop gives up a process one thread of which does not stop. The others, which
// have, do not notice, whatever they wait in.
func TestOneThreadDoesNotStop(t *testing.T) {
	v := victim.Start(t, "blocked", append(exact(), "+vfork")...)
	require.Eventually(t, func() bool { return inVfork(t, v.Pid) }, patience, time.Millisecond)
	for range victim.Times(10) {
		tr, err := seize(v.Pid)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		require.ErrorIs(t, tr.Wait(ctx), ErrTimeout)
		cancel()
		require.NoError(t, tr.Release())
		requireUntraced(t, v.Pid)
	}
	require.Empty(t, undisturbed(t, v.Stop()))
}

// inVfork says whether a thread waits as a vfork parent does: killable, but
// deaf to anything else.
func inVfork(t *testing.T, pid int) bool {
	t.Helper()
	tids, err := listThreads(pid)
	require.NoError(t, err)
	return slices.ContainsFunc(tids, func(tid int) bool {
		stat, err := readStat(tid)
		return err == nil && stat.state == 'D'
	})
}

// TestReleaseWithoutWait lets threads go that may still run.
func TestReleaseWithoutWait(t *testing.T) {
	v := victim.Start(t, "threads", "4")
	for range 20 {
		tr, err := seize(v.Pid)
		require.NoError(t, err)
		require.NoError(t, tr.Release())
		requireUntraced(t, v.Pid)
	}
	require.Empty(t, v.Stop())
}

// TestKilledInMidMove kills targets at some moment of a move: nothing hangs.
func TestKilledInMidMove(t *testing.T) { eachWay(t, testKilledInMidMove) }

func testKilledInMidMove(t *testing.T) {
	there := newNamespaces(t)
	for i := range victim.Times(60) {
		v := victim.Start(t, "threads", "8")
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			time.Sleep(time.Duration(i*victim.Slow()) * 100 * time.Microsecond)
			_ = unix.Kill(v.Pid, unix.SIGKILL)
		}()
		tr, err := seize(v.Pid)
		if err == nil {
			t.Cleanup(func() { tr.Release() })
			err = tr.Wait(t.Context())
		}
		if err == nil {
			err = tr.Enter(there)
		}
		if err != nil {
			require.ErrorIs(t, err, ErrGone)
		}
		if tr != nil {
			require.NoError(t, tr.Release())
		}
		<-killed
		require.NotEmpty(t, v.Stop())
	}
}

// TestTwoAtATime moves one target from two goroutines: one at a time, the
// other is told so.
func TestTwoAtATime(t *testing.T) { eachWay(t, testTwoAtATime) }

func testTwoAtATime(t *testing.T) {
	v := victim.Start(t, "threads", "4")
	targets := [][]Namespace{newNamespaces(t), home(t)}
	results := make(chan error, 4)
	for i := range 4 {
		go func() {
			var failed error
			for range victim.Times(20) {
				if err := moveQuietly(v.Pid, targets[i%2]); err != nil && !isBusy(err) {
					failed = err
				}
			}
			results <- failed
		}()
	}
	for range 4 {
		require.NoError(t, <-results)
	}
	requireUntraced(t, v.Pid)
	require.NoError(t, move(t, v.Pid, targets[0]))
	requireIn(t, v.Pid, targets[0])
	require.Empty(t, v.Stop())
}

func moveQuietly(pid int, to []Namespace) error {
	return moveSeized(to, func(t *Tracer) (*Trace, error) { return t.Seize(pid) })
}

// moveSeized moves what is seized.
func moveSeized(to []Namespace, seize func(*Tracer) (*Trace, error)) (err error) {
	Do(func(t *Tracer) {
		var tr *Trace
		if tr, err = seize(t); err != nil {
			return
		}
		defer tr.Release()
		if err = tr.Wait(time.Now().Add(patience)); err != nil {
			return
		}
		if os.Getenv(caughtVariable) != "" {
			tr.s.asked, tr.s.quiet = true, 1<<(unix.SIGWINCH-1)
		}
		err = tr.Enter(to, nil)
	})
	return err
}

// caughtVariable lets SIGWINCH mark even in programs that catch it.
const caughtVariable = "RCFS_TEST_CAUGHT"

func TestSetResult(t *testing.T) {
	for _, c := range []struct {
		name string
		n    int
		want string
	}{
		{"error", -int(unix.EPERM), "wrote -1 EPERM"},
		{"count", 3, "wrote 3"},
		{"as it was", 4096, "wrote 4096"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, tid := startWriter(t)
			v.Say("go")
			tr := stopInWrite(t, v.Pid, tid)
			require.NoError(t, tr.SetResult(tid, c.n))
			require.NoError(t, tr.Release())
			require.Equal(t, c.want, v.Hear())
			require.Empty(t, v.Stop())
		})
	}
}

func TestSetResultRefuses(t *testing.T) {
	v := victim.Start(t, "single")
	waitInCall(t, v.Pid, unix.SYS_READ)
	tr := stop(t, v.Pid)
	require.Error(t, tr.SetResult(v.Pid, -5), "it is in read")
	require.Error(t, tr.SetResult(1, -5), "not ours")
	require.NoError(t, tr.Release())
	require.Empty(t, v.Stop())
}

// startWriter starts a victim that writes two pages into a pipe of one.
func startWriter(t *testing.T) (v *victim.Victim, tid int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, unix.Mkfifo(path, 0o600))
	reader, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { reader.Close() })
	_, err = unix.FcntlInt(reader.Fd(), unix.F_SETPIPE_SZ, 4096)
	require.NoError(t, err)
	v = victim.Start(t, "writer", path, "8192")
	tid, err = strconv.Atoi(v.Hear())
	require.NoError(t, err)
	return v, tid
}

// stopInWrite stops the victim while it is in write(2). Since a part of its
// bytes has been written, the stop completes the call.
func stopInWrite(t *testing.T, pid, tid int) *remote {
	t.Helper()
	waitInCall(t, tid, unix.SYS_WRITE)
	return stop(t, pid)
}

// waitInCall waits until a thread sleeps in a system call.
func waitInCall(t *testing.T, tid, nr int) {
	t.Helper()
	file := fmt.Sprintf("/proc/%d/syscall", tid)
	require.Eventually(t, func() bool {
		text, _ := os.ReadFile(file)
		return strings.HasPrefix(string(text), fmt.Sprintf("%d ", nr)) && state(t, tid) == "S"
	}, patience, time.Millisecond)
}
