package fs_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// bothWays is bound where awkward targets are moved: what is entered from inside and from outside.
var bothWays = []string{"cpu", "ipc", "net", "pids", "uts"}

const bothWaysRoster = "name=rcfs.cpu-ipc-net-pids-uts"

// ground mounts them and makes two containers.
func ground(t *testing.T) (sys *proxy.System, dir, a, b string) {
	sys = rig.System(t)
	dir = mount(t, sys, rig.Spec(bothWays...))
	return sys, dir, mkdir(t, dir+"/a"), mkdir(t, dir+"/b")
}

// places returns where the threads of a process are, each different place once.
func places(t testing.TB, pid int) []string {
	t.Helper()
	for {
		dirs, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		require.NoError(t, err)
		require.NotEmpty(t, dirs)
		var list []string
		for _, dir := range dirs {
			at, ok := placeOf(t, dir)
			// A leader that an execve(2) replaces between two looks is in the first group of all.
			again, still := placeOf(t, dir)
			if ok && still && at == again && !slices.Contains(list, at) {
				list = append(list, at)
			}
		}
		if len(list) > 0 {
			return list
		} // else one thread was about to replace all others by an execve(2)
	}
}

// placeOf returns where the thread with a directory in /proc is, and who traces it; false if it is
// about to end.
func placeOf(t testing.TB, dir string) (string, bool) {
	var at []string
	for _, ns := range []string{"ipc", "net", "uts"} {
		target, err := os.Readlink(dir + "/ns/" + ns)
		if err != nil {
			require.Contains(t, []error{unix.ENOENT, unix.ESRCH, unix.EACCES}, errors.Unwrap(err)) // see distinct
			return "", false
		}
		at = append(at, target)
	}
	cgroup, err := os.ReadFile(dir + "/cgroup")
	status, statusErr := os.ReadFile(dir + "/status")
	if err != nil || statusErr != nil || exiting(dir) {
		return "", false
	}
	for _, hierarchy := range []string{"cpu", "pids", bothWaysRoster} {
		at = append(at, groupIn(string(cgroup), hierarchy))
	}
	return strings.Join(append(at, "tracer", statusLine(string(status), "TracerPid")), " "), true
}

// in is what placeOf says of a thread that is wholly in a container.
func in(t testing.TB, container string) string {
	var at []string
	for _, ns := range []string{"ipc", "net", "uts"} {
		at = append(at, fmt.Sprintf("%s:[%s]", ns, linkTarget(t, container+"/"+ns+".ns")))
	}
	name := "/" + filepath.Base(container)
	return strings.Join(append(at, "/"+rig.Base()+name, "/"+rig.Base()+name, name, "tracer 0"), " ")
}

// requireIn checks that every thread of a process is in a container, and nobody's tracee. A thread that moves its process
// goes on while others are still being let go.
func requireIn(t testing.TB, container string, pid int) {
	t.Helper()
	rig.Eventually(t, func() string {
		if tracers := statusOf(t, pid, "TracerPid"); len(tracers) != 1 || tracers[0] != "0" {
			return fmt.Sprint("traced by ", tracers)
		}
		return ""
	})
	require.Equal(t, []string{in(t, container)}, places(t, pid))
	require.Contains(t, strings.Fields(read(t, container+"/cgroup.procs")), fmt.Sprint(pid))
}

// statusOf returns what the threads of a process have in a line of their status.
func statusOf(t testing.TB, pid int, key string) []string {
	t.Helper()
	return distinct(t, fmt.Sprintf("/proc/%d/task/*/status", pid), func(file string) (string, error) {
		b, err := os.ReadFile(file)
		return statusLine(string(b), key), err
	})
}

func statusLine(text, key string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// patiently moves a task that a busy machine may not stop in time: it is asked again.
func patiently(t testing.TB, container string, pid int) {
	t.Helper()
	rig.Eventually(t, func() string {
		err := write(container+"/tasks", fmt.Sprint(pid))
		if err != nil && err != unix.EAGAIN {
			t.Fatalf("%v: %s", err, read(t, container+"/rcfs.error"))
		}
		if err != nil {
			return err.Error()
		}
		return ""
	})
}

// Whatever the target is doing, it is moved wholly and does not notice.
func TestAwkwardTargets(t *testing.T) {
	_, dir, a, b := ground(t)
	many := fmt.Sprint(max(32, 500/victim.Slow()))
	stop := func(t *testing.T, v *victim.Victim) { stopped(t, v.Pid, unix.SIGSTOP, "T") }
	for _, c := range []struct {
		name, kind string
		args       []string
		times      int
		before     func(*testing.T, *victim.Victim)
		after      func(*testing.T, *victim.Victim)
	}{
		{"a filter that kills on setns", "threads", []string{"4", "+seccomp"}, 10, nil, nil},
		{"a filter that kills on all it does not do", "single", []string{"+strict"}, 10, nil, nil},
		{"stopped", "threads", []string{"4"}, 4, stop, func(t *testing.T, v *victim.Victim) {
			rig.Eventually(t, func() string { return notState(t, v.Pid, "T") })
		}},
		{"threads that come and go", "churn", []string{"4"}, 10, nil, nil},
		{"forks", "forker", nil, 10, nil, nil},
		{"forks and executions", "spawner", nil, 10, nil, nil},
		{"executions from a thread", "execer", nil, 100, nil, nil},
		{"signals", "signals", nil, 10, nil, nil},
		{"a full descriptor table, which may grow", "single", []string{"+softfds"}, 4, nil, nil},
		{"futexes", "futex", []string{"32"}, 10, nil, nil},
		{"hundreds of threads", "futex", []string{many}, 2, nil, nil},
		{"Go", "goroutines", []string{"16"}, 10, nil, nil},
		{"chroot", "threads", []string{"8", "+chroot"}, 4, nil, nil},
		{"pid and mnt namespaces of its own", "threads", []string{"8", "+newns"}, 4, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := victim.Start(t, c.kind, c.args...)
			home := places(t, v.Pid)
			if c.before != nil {
				c.before(t, v)
			}
			for i := range victim.Times(c.times) {
				to := []string{a, b}[i%2]
				patiently(t, to, v.Pid)
				requireIn(t, to, v.Pid)
				if c.after != nil {
					c.after(t, v)
				}
			}
			patiently(t, dir, v.Pid)
			require.Equal(t, home, places(t, v.Pid))
			if c.before != nil {
				require.NoError(t, unix.Kill(v.Pid, unix.SIGCONT))
			}
			require.Empty(t, v.Stop())
		})
	}
}

// stopped sends a signal and waits for the state that it leads to.
func stopped(t *testing.T, pid int, sig unix.Signal, state string) {
	require.NoError(t, unix.Kill(pid, sig))
	rig.Eventually(t, func() string { return notState(t, pid, state) })
}

// notState returns the states of the threads of a process if it is not one state.
func notState(t *testing.T, pid int, state string) string {
	states := statusOf(t, pid, "State")
	if len(states) == 1 && strings.HasPrefix(states[0], state) {
		return ""
	}
	return fmt.Sprint("threads are not in state ", state, ": ", states)
}

// There is no room for the one descriptor that a move takes, in the whole process or in its last
// thread: nothing has changed.
func TestNoRoomForADescriptor(t *testing.T) {
	_, _, a, b := ground(t)
	for _, c := range []struct {
		name, kind string
		args       []string
	}{
		{"whole process", "single", []string{"+fullfds"}},
		{"last thread", "threads", []string{"6", "+onefull"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := victim.Start(t, c.kind, c.args...)
			home := places(t, v.Pid)
			for range 3 {
				err := write(a+"/tasks", fmt.Sprint(v.Pid))
				if err == unix.EPERM { // before Linux 6.9 nothing reaches a thread's own table
					require.Contains(t, read(t, a+"/rcfs.error"), "descriptor table")
					require.Equal(t, "+onefull", c.args[len(c.args)-1])
				} else {
					require.Equal(t, unix.EMFILE, err)
					require.Contains(t, read(t, a+"/rcfs.error"), "(EMFILE)")
				}
				require.Equal(t, home, places(t, v.Pid))
			}
			require.Empty(t, read(t, b+"/tasks"))
			require.Empty(t, v.Stop())
		})
	}
}

// A tracer moves and goes on tracing. Its tracee is refused, and neither of them notices.
func TestTracerAndTracee(t *testing.T) {
	_, dir, a, b := ground(t)
	v := victim.Start(t, "tracing")
	tracee := v.Hear()
	tracer := statusOf(t, atoi(tracee), "TracerPid")
	before := places(t, atoi(tracee))
	for i := range victim.Times(20) {
		to := []string{a, b}[i%2]
		require.Equal(t, unix.EBUSY, write(to+"/tasks", tracee))
		require.Contains(t, read(t, to+"/rcfs.error"), "is being traced")
		patiently(t, to, v.Pid)
		requireIn(t, to, v.Pid)
		require.Equal(t, tracer, statusOf(t, atoi(tracee), "TracerPid"))
	}
	require.Equal(t, before, places(t, atoi(tracee)))
	patiently(t, dir, v.Pid)
	require.Empty(t, v.Stop())
}

// A parent in vfork(2) does not stop, and is as it was when that has been said. Afterwards it moves.
func TestVforkParent(t *testing.T) {
	_, _, a, _ := ground(t)
	v := victim.Start(t, "vfork")
	inVfork(t, v.Pid)
	home := places(t, v.Pid)
	for range 2 {
		require.Equal(t, unix.EAGAIN, write(a+"/tasks", fmt.Sprint(v.Pid)))
		require.Contains(t, read(t, a+"/rcfs.error"), "did not stop in time")
		require.Equal(t, home, places(t, v.Pid))
	}
	v.Say("")
	require.Equal(t, "joined", v.Hear())
	patiently(t, a, v.Pid)
	requireIn(t, a, v.Pid)
	require.Empty(t, v.Stop())
}

// A task that moves itself, but of which another thread does not stop, learns that it has not moved.
func TestWriterWithAThreadInVfork(t *testing.T) {
	_, _, a, _ := ground(t)
	v := victim.Start(t, "mover", a+"/tasks", "+vfork")
	inVfork(t, v.Pid)
	home := places(t, v.Pid)
	for range 2 {
		v.Say("0")
		require.Equal(t, "wrote -1 EAGAIN", v.Hear())
		rig.Eventually(t, func() string { // it hears so before it is let go wholly
			if at := places(t, v.Pid); !slices.Equal(at, home) {
				return fmt.Sprint(at)
			}
			return ""
		})
	}
	require.Empty(t, v.Stop())
}

// inVfork waits until a thread of a process waits in vfork(2).
func inVfork(t *testing.T, pid int) {
	rig.Eventually(t, func() string {
		for _, state := range statusOf(t, pid, "State") {
			if strings.HasPrefix(state, "D") {
				return ""
			}
		}
		return "not in vfork(2)"
	})
}

// A target of eight threads is killed at some moment of its move: whoever moves it hears so, and
// nothing is left of it.
func TestTargetKilledInMidMove(t *testing.T) {
	_, _, a, b := ground(t)
	for i := range victim.Times(25) {
		v := victim.Start(t, "threads", "8")
		patiently(t, b, v.Pid)
		var killed sync.WaitGroup
		killed.Go(func() {
			time.Sleep(time.Duration(i*victim.Slow()) * 100 * time.Microsecond)
			unix.Kill(v.Pid, unix.SIGKILL)
		})
		if err := write(a+"/tasks", fmt.Sprint(v.Pid)); err != nil {
			require.Contains(t, []error{unix.ESRCH, unix.EAGAIN}, err, "%s", read(t, a+"/rcfs.error"))
		}
		killed.Wait()
		require.NotEmpty(t, v.Stop())
		require.Empty(t, read(t, a+"/cgroup.procs")+read(t, b+"/cgroup.procs"))
	}
	require.NoError(t, unix.Rmdir(a))
	require.NoError(t, unix.Rmdir(b))
}

// The writer and the target are threads of one process, or the same one.
func TestThreadsThatMoveEachOther(t *testing.T) {
	sys, dir, a, b := ground(t)
	threaded := !onV2(t, sys, "cpu") && !onV2(t, sys, "pids")
	for _, writer := range []string{"first", "+second"} {
		args := []string{a + "/tasks"}
		if writer == "+second" {
			args = append(args, writer)
		}
		v := victim.Start(t, "mover", args...)
		for _, file := range []string{"tasks", "cgroup.procs"} {
			for _, whose := range []string{"0", "first", "second"} {
				t.Run(fmt.Sprint(writer, " writes ", whose, " to ", file), func(t *testing.T) {
					patiently(t, b, v.Pid)
					requireIn(t, b, v.Pid)
					first, second := moverThreads(t, v.Pid)
					target := map[string]int{"first": first, "second": second}[whose]
					v.Say(fmt.Sprint("@", file, " ", target))
					heard := v.Hear()
					if whose == "0" {
						target = first
						if writer == "+second" {
							target = second
						}
					}
					switch {
					case file == "cgroup.procs" || target == first:
						require.Regexp(t, "^wrote [0-9]+$", heard, read(t, a+"/rcfs.error"))
						requireIn(t, a, v.Pid)
					case !threaded:
						require.Equal(t, "wrote -1 EINVAL", heard)
						requireIn(t, b, v.Pid)
					default:
						require.Regexp(t, "^wrote [0-9]+$", heard, read(t, a+"/rcfs.error"))
						require.ElementsMatch(t, []string{in(t, a), in(t, b)}, places(t, v.Pid))
						require.Equal(t, fmt.Sprintln(second), read(t, a+"/tasks"))
					}
				})
			}
		}
		patiently(t, dir, v.Pid)
		require.Empty(t, v.Stop())
	}
}

// moverThreads returns the two threads of a mover that are its own: its first, and the one that has
// all signals blocked as well, which Go's own threads have not.
func moverThreads(t *testing.T, pid int) (first, second int) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	require.NoError(t, err)
	for _, file := range files {
		tid := atoi(filepath.Base(filepath.Dir(file)))
		blocked := statusLine(read(t, file), "SigBlk")
		if tid != pid && blocked == statusOf(t, pid, "SigBlk")[0] {
			require.Zero(t, second, "only one")
			second = tid
		}
	}
	require.NotZero(t, second)
	return pid, second
}

// Two writers move one target at the same time, in rounds that begin together: both are done, and it
// is wholly where one of them wanted it. In a part of the rounds it is one of the writers itself.
func TestTwoMovesOfOneTarget(t *testing.T) {
	_, _, a, b := ground(t)
	both := [][]string{{in(t, a)}, {in(t, b)}}
	for _, c := range []struct {
		name   string
		rounds int
		v      *victim.Victim
		first  func(*victim.Victim) error
	}{
		{"two others", 200, victim.Start(t, "blocked", "read", "futex", "poll"), func(v *victim.Victim) error {
			return write(a+"/tasks", fmt.Sprint(v.Pid))
		}},
		{"another and itself", 50, victim.Start(t, "mover", a+"/tasks"), func(v *victim.Victim) error {
			v.Say("0")
			switch heard := v.Hear(); heard {
			case "wrote 2":
				return nil
			case "wrote -1 EAGAIN":
				return unix.EAGAIN
			default:
				return fmt.Errorf("heard %q", heard)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			done := 0
			for range victim.Times(c.rounds) {
				errs := make(chan error, 2)
				begin := make(chan bool)
				go func() { <-begin; errs <- c.first(c.v) }()
				go func() { <-begin; errs <- write(b+"/tasks", fmt.Sprint(c.v.Pid)) }()
				close(begin)
				moved := false
				for range 2 {
					err := <-errs
					moved = moved || err == nil
					if err != nil {
						require.Equal(t, unix.EAGAIN, err, "a: %s, b: %s", read(t, a+"/rcfs.error"), read(t, b+"/rcfs.error"))
					} else {
						done++
					}
				}
				if !moved {
					continue
				}
				rig.Eventually(t, func() string { // who has moved itself hears so before it is let go wholly
					at := places(t, c.v.Pid)
					if slices.Equal(at, both[0]) || slices.Equal(at, both[1]) {
						return ""
					}
					return fmt.Sprint(at)
				})
			}
			require.Greater(t, done, victim.Times(c.rounds)/2, "that a busy machine has refused nearly all says nothing")
			require.Empty(t, c.v.Stop())
		})
	}
}
