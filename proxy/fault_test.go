package proxy_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/proxy/inject"
	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
	"rcfs/testdata/view"
)

// stage is a mount of real and of fake subsystems, where moves fail as faults says.
type stage struct {
	sys         *proxy.System
	dir, a, b   string
	log         *logBuffer
	writtenDown atomic.Int64 // moves in the journal, when the last target was let go
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take returns what was logged since it was asked last.
func (l *logBuffer) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.b.String()
	l.b.Reset()
	return s
}

func newStage(t *testing.T, subsystems ...string) *stage {
	const run = "/run/rcfs"
	require.NoError(t, os.MkdirAll(run, 0o755))
	t.Cleanup(proxy.InterceptRosters(func(r proxy.Roster) proxy.Roster { return faultyRoster{r} }))
	s := &stage{log: &logBuffer{}}
	var err error
	s.sys, err = proxy.Open(proxy.Host{Run: run}, slog.New(slog.NewTextHandler(s.log, nil)))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.sys.Close()) })
	s.sys.Intercept(faultySeizer(s.sys, &s.writtenDown))
	s.dir = view.Mount(t, s.sys, rig.Spec(subsystems...))
	s.a, s.b = view.Mkdir(t, s.dir+"/a"), view.Mkdir(t, s.dir+"/b")
	t.Cleanup(func() { faults.set(nil) })
	return s
}

// world is all that a move could have changed of a process: where its threads are, each different
// place once, or else where these threads are, and who is in the containers.
func (s *stage) world(t *testing.T, pid int, tids ...string) string {
	t.Helper()
	every := len(tids) == 0
	if every {
		tids = threadsOf(t, pid)
	}
	var lines []string
	for _, tid := range tids {
		dir := fmt.Sprintf("/proc/%d/task/%s", pid, tid)
		var line strings.Builder
		for _, ns := range []string{"ipc", "net", "uts"} {
			target, err := os.Readlink(dir + "/ns/" + ns)
			require.NoError(t, err)
			line.WriteString(target + " ")
		}
		for group := range strings.Lines(view.Read(t, dir+"/cgroup")) {
			if !strings.HasSuffix(group, ":/\n") { // such lines come and go with others' hierarchies
				line.WriteString(strings.TrimSpace(group) + " ")
			}
		}
		if !every || !slices.Contains(lines, line.String()) {
			lines = append(lines, line.String())
		}
	}
	for _, container := range []string{s.a, s.b} {
		lines = append(lines, container+": "+strings.ReplaceAll(view.Read(t, container+"/cgroup.procs"), "\n", " "))
	}
	return strings.Join(append(lines, groupsOfFakes(pid)), "\n")
}

func threadsOf(t *testing.T, pid int) []string {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	require.NoError(t, err)
	var tids []string
	for _, e := range entries {
		tids = append(tids, e.Name())
	}
	return tids
}

// over waits for the end of all moves and checks that nothing is left of them.
func (s *stage) over(t *testing.T, pid int) {
	t.Helper()
	rig.Eventually(t, func() string {
		if n := s.sys.UnderWay(); n != 0 {
			return fmt.Sprint(n, " moves under way")
		}
		return ""
	})
	require.Zero(t, s.sys.WrittenDown())
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	require.NoError(t, err)
	for _, file := range files {
		require.Contains(t, view.Read(t, file), "\nTracerPid:\t0\n")
	}
}

// reason is an error of a step, and what the writer sees of it.
type reason struct {
	err   error
	errno unix.Errno
	says  string
}

var (
	gone        = reason{inject.ErrGone, unix.ESRCH, "no such task"}
	traced      = reason{inject.ErrTraced, unix.EBUSY, "is being traced"}
	timeout     = reason{inject.ErrTimeout, unix.EAGAIN, "did not stop in time"}
	unsupported = reason{inject.ErrUnsupported, unix.EPERM, "this kind of task cannot be moved"}
	noMemory    = reason{unix.ENOMEM, unix.ENOMEM, "cannot allocate memory"}
	noFiles     = reason{unix.EMFILE, unix.EMFILE, "too many open files"}
	forbidden   = reason{unix.EPERM, unix.EPERM, "operation not permitted"}
	ended       = reason{unix.ESRCH, unix.ESRCH, "no such task"}
)

var (
	ofInject  = []reason{gone, traced, timeout, unsupported, noMemory, noFiles, forbidden}
	ofOutside = []reason{ended, noMemory, noFiles, forbidden}
	ofCheck   = []reason{noMemory, noFiles, forbidden} // a target that lives is looked at again after ESRCH
)

// A move ends in every step with every error: all is as it was before, the reason is said, and the
// next move goes well.
func TestFaultsOfEveryStep(t *testing.T) {
	s := newStage(t, "afirst", "cpu", "ipc", "pids", "uts", "zfreezer", "zlast")
	v := victim.Start(t, "blocked", "read", "futex", "poll")
	pid := fmt.Sprint(v.Pid)
	view.Move(t, s.a, pid)
	before := s.world(t, v.Pid)
	threads := len(threadsOf(t, v.Pid))
	require.Greater(t, threads, 3)
	for _, c := range []struct {
		step    string
		after   int
		reasons []reason
		says    string
	}{
		{"afirst, look", 0, []reason{noMemory, noFiles}, "afirst: "},
		{"afirst, look", threads - 1, []reason{noMemory}, "afirst: "},
		{"afirst, check", 0, ofCheck, "afirst: "},
		{"zlast, check", 0, ofCheck, "zlast: "},
		{"seize", 0, ofInject, ""},
		{"stop", 0, ofInject, ""},
		{"wait", 0, ofInject, ""},
		{"afirst, look", threads + 1, []reason{noMemory, noFiles}, "afirst: "},
		{"afirst, place", 0, ofOutside, "afirst: "},
		{"zlast, place", 0, ofOutside, "zlast: "},
		{enterSteps[0], 0, ofInject, "uts: "},
		{enterSteps[1], 0, ofInject, "uts: "},
		{enterSteps[2], 0, ofInject, "uts: "},
		{"zfreezer, place", 0, ofOutside, "zfreezer: "},
		{"roster", 0, ofOutside, "roster: "},
	} {
		for _, r := range some(c.reasons) {
			t.Run(fmt.Sprint(c.step, " ", c.after, ": ", r.err), func(t *testing.T) {
				faults.set(map[string]failure{c.step: {c.after, r.err}})
				s.writtenDown.Store(0)
				require.Equal(t, r.errno, write(s.b+"/tasks", pid))
				require.Equal(t, []string{c.step}, faults.failed())
				why := view.Read(t, s.b+"/rcfs.error")
				require.Contains(t, why, c.says)
				require.Contains(t, why, r.says)
				require.Contains(t, why, "("+unix.ErrnoName(r.errno)+")")
				require.Equal(t, before, s.world(t, v.Pid))
				require.Zero(t, s.writtenDown.Load(), "no later daemon may finish what was refused")
				s.over(t, v.Pid)
			})
		}
		view.Move(t, s.b, pid)
		require.NotEqual(t, before, s.world(t, v.Pid))
		view.Move(t, s.a, pid)
		require.Equal(t, before, s.world(t, v.Pid))
	}
	require.NotContains(t, s.log.take(), "level=ERROR")
	require.NoError(t, unix.Rmdir(s.b), "no failed move holds the container")
	require.Empty(t, v.Stop())
}

// A move into groups alone begins where the kernel may refuse, also where tasks may be frozen: then nothing has been changed.
func TestReluctantGroupIsFirst(t *testing.T) {
	s := newStage(t, "afirst", "cpu", "pids", "zfreezer", "zlast")
	v := victim.Start(t, "idle")
	before := s.world(t, v.Pid)
	faults.set(map[string]failure{"zfreezer, place": {0, unix.EPERM}, "afirst, place": {0, unix.EIO}})
	require.Equal(t, unix.EPERM, write(s.b+"/tasks", fmt.Sprint(v.Pid)))
	require.Equal(t, []string{"zfreezer, place"}, faults.failed())
	faults.set(nil)
	require.Equal(t, before, s.world(t, v.Pid))
	view.Move(t, s.b, fmt.Sprint(v.Pid))
	require.NotEqual(t, before, s.world(t, v.Pid))
	require.Empty(t, v.Stop())
}

// A task that moves itself learns of every fault after the answer to its write.
func TestFaultsOfAMoveOfItself(t *testing.T) {
	s := newStage(t, "afirst", "cpu", "ipc", "pids", "uts", "zfreezer", "zlast")
	v := victim.Start(t, "mover", s.b+"/tasks")
	view.Move(t, s.a, fmt.Sprint(v.Pid))
	before := s.world(t, v.Pid)
	for _, c := range []struct {
		step    string
		reasons []reason
	}{
		{"seize", ofInject},
		{"stop", []reason{timeout, unsupported, noMemory}},
		{"wait", []reason{traced, timeout, unsupported, noMemory, noFiles, forbidden}},
		{"afirst, place", []reason{noMemory, noFiles, forbidden}},
		{enterSteps[0], []reason{traced, timeout, unsupported, noMemory, noFiles, forbidden}},
		{enterSteps[2], []reason{noMemory, noFiles, forbidden}},
		{"zfreezer, place", []reason{noMemory, forbidden}},
		{"roster", []reason{noMemory, forbidden}},
	} {
		for _, r := range some(c.reasons) {
			t.Run(fmt.Sprint(c.step, ": ", r.err), func(t *testing.T) {
				faults.set(map[string]failure{c.step: {0, r.err}})
				s.writtenDown.Store(0)
				v.Say("0")
				require.Equal(t, "wrote -1 "+unix.ErrnoName(r.errno), v.Hear())
				require.Contains(t, view.Read(t, s.b+"/rcfs.error"), r.says)
				s.over(t, v.Pid)
				require.Zero(t, s.writtenDown.Load())
				require.Equal(t, before, s.world(t, v.Pid))
			})
		}
	}
	require.NotContains(t, s.log.take(), "level=ERROR")

	// Where it cannot be told, the log is.
	faults.set(map[string]failure{"roster": {0, unix.EPERM}, "result": {0, unix.EINVAL}})
	v.Say("0")
	require.Equal(t, "wrote 2", v.Hear())
	s.over(t, v.Pid)
	require.Equal(t, before, s.world(t, v.Pid))
	require.Contains(t, s.log.take(), "does not learn that it was not moved")

	v.Say("0")
	require.Equal(t, "wrote 2", v.Hear())
	s.over(t, v.Pid)
	require.NotEqual(t, before, s.world(t, v.Pid))
	require.Empty(t, v.Stop())
}

// What cannot be put back is said, in rcfs.error and in the log, and all else is put back.
func TestFaultsOfUndo(t *testing.T) {
	s := newStage(t, "afirst", "cpu", "ipc", "pids", "uts", "zfreezer", "zlast")
	v := victim.Start(t, "blocked", "read", "futex", "poll")
	view.Move(t, s.a, fmt.Sprint(v.Pid))
	before := s.world(t, v.Pid)
	for _, c := range []struct {
		step  string // that fails when it is undone
		after int
		says  string
		stays string // what is left in the container
	}{
		{"undo", 0, "namespaces and own values", ""},
		{"afirst, place", 1, "afirst", "afirst=/b"},
		{"zlast, place", 1, "zlast", "zlast=/b"},
		{"zfreezer, place", 1, "zfreezer", "zfreezer=/b"},
	} {
		for _, r := range some([]reason{noMemory, forbidden, ended}) {
			t.Run(fmt.Sprint(c.step, ": ", r.err), func(t *testing.T) {
				faults.set(map[string]failure{"roster": {0, unix.ENOSPC}, c.step: {c.after, r.err}})
				require.Equal(t, unix.ENOSPC, write(s.b+"/tasks", fmt.Sprint(v.Pid)))
				require.Equal(t, []string{"roster", c.step}, faults.failed())
				s.over(t, v.Pid)
				why, log := view.Read(t, s.b+"/rcfs.error"), s.log.take()
				if r.err == unix.ESRCH { // who has ended need not be put back
					require.NotContains(t, why+log, "not put back")
				} else {
					require.Contains(t, why, c.says+": not put back: "+r.err.Error())
					require.Contains(t, log, "attach not undone")
				}
				now := s.world(t, v.Pid)
				if c.stays != "" {
					require.Contains(t, now, c.stays)
					now = strings.Replace(now, c.stays, strings.Replace(c.stays, "/b", "/a", 1), 1)
				}
				require.Equal(t, before, now)
				view.Move(t, s.b, fmt.Sprint(v.Pid)) // makes it whole again
				view.Move(t, s.a, fmt.Sprint(v.Pid))
				require.Equal(t, before, s.world(t, v.Pid))
			})
		}
	}
	require.Empty(t, v.Stop())
}

// Threads that are in different containers are put back each into its own.
func TestFaultsWithThreadsApart(t *testing.T) {
	subsystems := []string{"ipc", "uts"}
	s := newStage(t, threaded(t, subsystems, "cpu", "pids")...)
	v := victim.Start(t, "threads", "4")
	view.Move(t, s.a, fmt.Sprint(v.Pid))
	tids := threadsOf(t, v.Pid)
	for _, i := range []int{1, len(tids) - 1} {
		view.Move(t, s.b, tids[i])
	}
	before := s.world(t, v.Pid, tids...)
	c := view.Mkdir(t, s.dir+"/c")
	for _, container := range []string{s.a, s.b, c} {
		for _, step := range append([]string{"seize", "stop", "wait", "roster"}, enterSteps...) {
			t.Run(filepath.Base(container)+", "+step, func(t *testing.T) {
				faults.set(map[string]failure{step: {0, unix.ENOMEM}})
				require.Equal(t, unix.ENOMEM, write(container+"/cgroup.procs", fmt.Sprint(v.Pid)))
				require.Equal(t, before, s.world(t, v.Pid, tids...))
				s.over(t, v.Pid)
			})
		}
	}
	// One thread alone.
	for _, step := range []string{"seize", "stop", "wait", enterSteps[0], "roster"} {
		t.Run("a thread alone, "+step, func(t *testing.T) {
			faults.set(map[string]failure{step: {0, unix.EMFILE}})
			require.Equal(t, unix.EMFILE, write(c+"/tasks", tids[1]))
			require.Equal(t, before, s.world(t, v.Pid, tids...))
			s.over(t, v.Pid)
		})
	}
	require.Empty(t, view.Read(t, c+"/tasks"))
	view.Move(t, s.dir, fmt.Sprint(v.Pid))
	require.Empty(t, v.Stop())
}

// threaded adds those of the controllers that this kernel has on v1, where threads move alone.
func threaded(t *testing.T, subsystems []string, controllers ...string) []string {
	t.Run("layout", func(t *testing.T) {
		for _, info := range rig.System(t).Subsystems() {
			for _, name := range controllers {
				if info.Name == name && info.Backend == "v1" {
					subsystems = append(subsystems, name)
				}
			}
		}
	})
	return subsystems
}

// A namespace that cannot be opened, after others have been.
func TestNamespaceThatCannotBeOpened(t *testing.T) {
	s := newStage(t, "afirst", "cpu", "ipc", "uts", "zclosed")
	v := victim.Start(t, "blocked", "read", "futex", "poll")
	before := s.world(t, v.Pid)
	require.Equal(t, unix.EMFILE, write(s.b+"/tasks", fmt.Sprint(v.Pid)))
	require.Contains(t, view.Read(t, s.b+"/rcfs.error"), "zclosed: too many open files")
	require.Equal(t, before, s.world(t, v.Pid))
	s.over(t, v.Pid)
	require.Empty(t, v.Stop())
}

// When a target is not let go as it should, it has moved all the same: the write says so, and the log
// the rest.
func TestFaultsOfRelease(t *testing.T) {
	s := newStage(t, "afirst", "cpu", "ipc", "pids", "uts", "zfreezer", "zlast")
	v := victim.Start(t, "blocked", "read", "futex", "poll")
	for i, r := range append(ofInject, ofInject...) {
		to := []string{s.a, s.b}[i%2]
		faults.set(map[string]failure{"release": {0, r.err}})
		require.NoError(t, write(to+"/tasks", fmt.Sprint(v.Pid)), r.err)
		require.Equal(t, []string{"release"}, faults.failed())
		require.EqualValues(t, 1, s.writtenDown.Load())
		require.Contains(t, strings.Fields(view.Read(t, to+"/cgroup.procs")), fmt.Sprint(v.Pid))
		s.over(t, v.Pid)
		if log := s.log.take(); r.err == inject.ErrGone {
			require.NotContains(t, log, "level=ERROR")
		} else {
			require.Contains(t, log, r.err.Error())
		}
	}
	view.Move(t, s.dir, fmt.Sprint(v.Pid))
	require.Empty(t, v.Stop())
}

// some are all reasons, or where the machine is slow the last.
func some(reasons []reason) []reason {
	if victim.Slow() > 1 {
		return reasons[len(reasons)-1:]
	}
	return reasons
}

// write writes. On a slow machine it does so again where the target has not stopped in time by itself.
func write(file, data string) error {
	err := view.Write(file, data)
	for i := 1; err == unix.EAGAIN && len(faults.failed()) == 0 && i < victim.Slow(); i++ {
		err = view.Write(file, data)
	}
	return err
}
