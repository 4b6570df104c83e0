package fs_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
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

func lockForEver() { runtime.LockOSThread() }

// shell runs a script with bash and returns its output without the last newline. The daemon is in
// this process, and wait(2) for a child of our own would see the stops that are the tracer's, so
// bash is a grandchild.
func shell(t testing.TB, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", `bash -c "$1"; exit $?`, "sh", script).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return strings.TrimSuffix(string(out), "\n")
}

// A move in one tree leaves every slot of the other untouched.
func TestSelectiveReshare(t *testing.T) {
	sys := rig.System(t)
	net := mount(t, sys, rig.Spec("net"))
	cpu := mount(t, sys, rig.Spec("cpu", "uts"))
	mkdir(t, net+"/n")
	mkdir(t, cpu+"/c")
	v := victim.Start(t, "threads", "4")
	pid := fmt.Sprint(v.Pid)
	home := map[string]string{}
	for _, ns := range []string{"uts", "net", "ipc"} {
		home[ns] = namespacesOf(t, v.Pid, ns)[0]
	}

	move(t, net+"/n", pid)
	inNet := namespacesOf(t, v.Pid, "net")
	require.Equal(t, []string{"net:[" + linkTarget(t, net+"/n/net.ns") + "]"}, inNet)
	require.Equal(t, []string{home["uts"]}, namespacesOf(t, v.Pid, "uts"))
	require.Equal(t, []string{"/"}, groupsOf(t, v.Pid, "cpu"))

	move(t, cpu+"/c", pid)
	require.Equal(t, inNet, namespacesOf(t, v.Pid, "net"))
	require.Equal(t, []string{"uts:[" + linkTarget(t, cpu+"/c/uts.ns") + "]"}, namespacesOf(t, v.Pid, "uts"))
	require.Equal(t, []string{"/" + rig.Base() + "/c"}, groupsOf(t, v.Pid, "cpu"))

	move(t, net, pid)
	require.Equal(t, []string{home["net"]}, namespacesOf(t, v.Pid, "net"))
	require.Equal(t, []string{"uts:[" + linkTarget(t, cpu+"/c/uts.ns") + "]"}, namespacesOf(t, v.Pid, "uts"))
	require.Equal(t, []string{home["ipc"]}, namespacesOf(t, v.Pid, "ipc"))
	require.Empty(t, v.Stop())
}

// A thousand tasks moved from one container to another end in one proxy, and so says the table.
func TestThousandTasksShareOneProxy(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("cpu", "pids"))
	a, b := mkdir(t, dir+"/a"), mkdir(t, dir+"/b")
	n := victim.Times(1000)
	pids := readers(t, n)
	lines := []byte(strings.Join(pids, "\n") + "\n")
	require.NoError(t, os.WriteFile(a+"/tasks", lines, 0))
	require.Equal(t, n, strings.Count(read(t, a+"/tasks"), "\n"))
	for _, pid := range pids { // half of them one by one
		move(t, b, pid)
	}
	proxies := strings.Split(strings.TrimSpace(read(t, b+"/rcfs.proxies")), "\n")
	require.Len(t, proxies, 1)
	require.Equal(t, fmt.Sprint(n), strings.Fields(proxies[0])[1])
	require.Contains(t, proxies[0], fmt.Sprintf(" cpu=/%s/b", rig.Base()))
	require.Empty(t, read(t, a+"/rcfs.proxies"))
	st, err := sys.Status()
	require.NoError(t, err)
	require.Len(t, st.Proxies, 1, "the table has dropped the proxies that no task has")
	require.Equal(t, proxies[0], st.Proxies[0])
}

// A child shares what its parent's rcfs.unshare does not name.
func TestUnshareNamesWhatAChildGetsFresh(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("uts", "net", "ipc"))
	require.Equal(t, "ipc net uts\n", read(t, dir+"/rcfs.unshare"))
	require.NoError(t, write(dir+"/rcfs.unshare", "uts\n"))
	a := mkdir(t, dir+"/a")
	require.Equal(t, linkTarget(t, dir+"/net.ns"), linkTarget(t, a+"/net.ns"))
	require.Equal(t, linkTarget(t, dir+"/ipc.ns"), linkTarget(t, a+"/ipc.ns"))
	require.NotEqual(t, linkTarget(t, dir+"/uts.ns"), linkTarget(t, a+"/uts.ns"))
	require.Equal(t, "uts\n", read(t, a+"/rcfs.unshare"), "inherited")

	require.NoError(t, write(a+"/rcfs.unshare", "+net -uts\n"))
	require.Equal(t, "net\n", read(t, a+"/rcfs.unshare"))
	b := mkdir(t, a+"/b")
	require.NotEqual(t, linkTarget(t, a+"/net.ns"), linkTarget(t, b+"/net.ns"))
	require.Equal(t, linkTarget(t, a+"/uts.ns"), linkTarget(t, b+"/uts.ns"))

	// Taking the sharer away does not take the shared namespace away.
	v := victim.Start(t, "threads", "2")
	move(t, b, fmt.Sprint(v.Pid))
	move(t, a, fmt.Sprint(v.Pid))
	require.NoError(t, unix.Rmdir(b))
	require.Equal(t, []string{"uts:[" + linkTarget(t, a+"/uts.ns") + "]"}, namespacesOf(t, v.Pid, "uts"))
	require.Empty(t, v.Stop())
}

// A task that moves itself has moved before its write returns, and gets the errno otherwise.
func TestTaskMovesItself(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pids", "uts", "net"))
	a := mkdir(t, dir+"/a")
	require.NoError(t, write(a+"/uts.hostname", "inside\n"))
	require.Equal(t, "inside\n", read(t, a+"/uts.hostname"))
	host, err := os.Hostname()
	require.NoError(t, err)
	require.NotEqual(t, "inside", host)

	for _, script := range []string{"echo $$ > %s/tasks", "echo 0 > %s/tasks", "echo $$ > %s/cgroup.procs", "echo 0 > %s/cgroup.procs"} {
		out := shell(t, fmt.Sprintf(script, a)+"; uname -n; cat /proc/self/cgroup; ls /sys/class/net 2>/dev/null | wc -l")
		require.Contains(t, out, "inside\n", script)
		require.Equal(t, fmt.Sprintf("/%s/a", rig.Base()), groupIn(out, "pids"), script)
	}

	// In and out again, many times, in one program.
	out := shell(t, fmt.Sprintf("for i in $(seq %d); do echo 0 > %s/tasks || exit 1; [ $(uname -n) = inside ] || echo late $i; "+
		"echo 0 > %s/tasks || exit 1; [ $(uname -n) = %s ] || echo stays $i; done", victim.Times(100), a, dir, host))
	require.Empty(t, out)

	// Another one's id before one's own, in one write.
	v := victim.Start(t, "idle")
	out = shell(t, fmt.Sprintf("printf '%d\n%%d\n' $$ > %s/tasks; uname -n", v.Pid, a))
	require.Equal(t, "inside", out)
	require.Equal(t, []string{"uts:[" + linkTarget(t, a+"/uts.ns") + "]"}, namespacesOf(t, v.Pid, "uts"))
	move(t, dir, fmt.Sprint(v.Pid))
	require.Empty(t, v.Stop())
}

// The errno reaches a writer that was answered before its move failed.
func TestTaskThatCannotMoveItself(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("uts", "cpuset"))
	a := mkdir(t, dir+"/a")
	require.NoError(t, os.Chmod(a+"/tasks", 0o666))
	// Refused before anything is stopped.
	out := shell(t, fmt.Sprintf("setpriv --bounding-set -all --inh-caps -all bash -c 'echo $$ > %s/tasks' 2>&1; echo $?", a))
	require.Contains(t, out, "Operation not permitted")
	// Refused after the answer: one thread of the writer's process has no CAP_SYS_ADMIN, so
	// setns(2) fails in it. Its return value of 5 or 6 bytes is replaced.
	v := victim.Start(t, "threads", "3", "+onenocap")
	before := world(t, dir, dir, v.Pid)
	err := write(a+"/tasks", fmt.Sprint(v.Pid))
	require.Equal(t, unix.EPERM, err)
	require.Contains(t, read(t, a+"/rcfs.error"), "uts")
	require.Equal(t, before, world(t, dir, dir, v.Pid))
	require.Empty(t, v.Stop())

	w := victim.Start(t, "mover", a+"/tasks", "+onenocap")
	w.Say("0")
	require.Equal(t, "wrote -1 EPERM", w.Hear())
	require.Empty(t, read(t, a+"/tasks"))
	require.Empty(t, w.Stop())
}

// What refuses last leaves groups, namespaces and roster as they were.
func TestRefusalLeavesEverything(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("cpu", "pids", "cpuset", "uts", "net", "ipc"))
	a := mkdir(t, dir+"/a")
	v := victim.Start(t, "threads", "4")
	move(t, dir, fmt.Sprint(v.Pid))

	// A v1 cpuset without cpus: said before anything is changed. On v2 it has its parent's.
	require.NoError(t, os.WriteFile(a+"/cpuset.cpus", []byte("\n"), 0))
	if !onV2(t, sys, "cpuset") {
		before := world(t, dir, dir, v.Pid)
		require.Equal(t, unix.ENOSPC, write(a+"/tasks", fmt.Sprint(v.Pid)))
		require.Contains(t, read(t, a+"/rcfs.error"), "cpuset: cpuset.cpus is empty")
		require.Equal(t, before, world(t, dir, dir, v.Pid))
		require.NoError(t, write(a+"/cpuset.cpus", strings.TrimSpace(read(t, dir+"/cpuset.cpus"))))
	}

	// Namespaces refuse after the groups have been entered.
	half := victim.Start(t, "threads", "6", "+onenocap")
	before := world(t, dir, dir, half.Pid)
	require.Equal(t, unix.EPERM, write(a+"/tasks", fmt.Sprint(half.Pid)))
	require.Equal(t, before, world(t, dir, dir, half.Pid))
	require.Empty(t, half.Stop())

	move(t, a, fmt.Sprint(v.Pid))
	require.Empty(t, v.Stop())
}

// The limits are real, for children that are forked later too.
func TestLimitLimits(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pids", "uts"))
	a := mkdir(t, dir+"/a")
	require.NoError(t, write(a+"/pids.max", "5\n"))
	require.Equal(t, "5\n", read(t, a+"/pids.max"))
	script := fmt.Sprintf("sh -c 'echo $$ > %s/tasks; for i in 1 2 3 4 5 6 7 8; do sleep 1000 >/dev/null 2>&1 & done'; true", a)
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	require.NoError(t, err)
	require.Contains(t, string(out), "annot fork")
	sleepers := strings.Fields(read(t, a+"/tasks"))
	require.Len(t, sleepers, 4, "the shell has ended")
	for _, pid := range sleepers {
		require.NoError(t, unix.Kill(atoi(pid), unix.SIGKILL))
		unix.Wait4(atoi(pid), nil, 0, nil)
	}
}

// One process that forks as fast as it can is moved among three containers. Every child ends
// wholly in one of them.
func TestForkerEndsWhollySomewhere(t *testing.T) {
	for _, subsystems := range [][]string{{"cpu", "pids", "cpuset", "freezer"}, {"cpu", "pids", "uts", "ipc"}} {
		t.Run(strings.Join(subsystems, ","), func(t *testing.T) {
			sys := rig.System(t)
			dir := mount(t, sys, rig.Spec(subsystems...))
			containers := []string{mkdir(t, dir+"/a"), mkdir(t, dir+"/b"), mkdir(t, dir+"/c")}
			forker := startForker(t)
			for i := range victim.Times(1000) {
				move(t, containers[i%3], fmt.Sprint(forker.Process.Pid))
			}
			stopForker(t, forker)
			total := 0
			for _, name := range []string{"a", "b", "c"} {
				tids := strings.Fields(read(t, dir+"/"+name+"/tasks"))
				total += len(tids)
				for _, tid := range tids {
					b, err := os.ReadFile("/proc/" + tid + "/cgroup")
					if os.IsNotExist(err) || err == unix.ESRCH {
						continue
					}
					for _, s := range subsystems {
						if _, err := os.Stat(dir + "/" + name + "/" + s + ".ns"); err == nil {
							require.Equal(t, []string{s + ":[" + linkTarget(t, dir+"/"+name+"/"+s+".ns") + "]"}, namespacesOf(t, atoi(tid), s))
							continue
						}
						require.Equal(t, fmt.Sprintf("/%s/%s", rig.Base(), name), groupIn(string(b), s), "%s of task %s", s, tid)
					}
				}
			}
			require.Greater(t, total, 10)
			for _, s := range subsystems {
				if _, err := os.Stat(dir + "/a/" + s + ".ns"); err == nil {
					continue
				}
				if members, ok := groupMembers(t, sys, s); ok {
					require.Equal(t, total, members, "tasks in the groups of %s and in the containers", s)
				}
			}
		})
	}
}

func atoi(s string) int { n, _ := strconv.Atoi(s); return n }

// startForker starts a program that forks children which stay, up to a number, as fast as it can,
// and kills them all in the cleanup.
func startForker(t *testing.T) *exec.Cmd {
	cmd := exec.Command("bash", "-c", fmt.Sprintf("for i in {1..%d}; do sleep 1000 & done; wait", max(60, victim.Times(300))))
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		cmd.Wait()
		rig.Eventually(t, func() string {
			if unix.Kill(-cmd.Process.Pid, 0) == nil {
				for {
					if pid, _ := unix.Wait4(-cmd.Process.Pid, nil, unix.WNOHANG, nil); pid <= 0 {
						break
					}
				}
				return "children live"
			}
			return ""
		})
	})
	return cmd
}

// stopForker stops it: from then on nothing changes.
func stopForker(t *testing.T, forker *exec.Cmd) {
	require.NoError(t, forker.Process.Signal(unix.SIGSTOP))
	rig.Eventually(t, func() string {
		stat := read(t, fmt.Sprintf("/proc/%d/stat", forker.Process.Pid))
		if !strings.Contains(stat, ") T ") {
			return "not stopped: " + stat
		}
		return ""
	})
}

// Several at once: movers of the same targets, readers of tasks, makers of containers.
func TestManyAtOnce(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("cpu", "pids", "uts", "net"))
	names := []string{"", "/a", "/b", "/c"}
	for _, name := range names[1:] {
		mkdir(t, dir+name)
	}
	victims := []*victim.Victim{victim.Start(t, "threads", "4"), victim.Start(t, "threads", "1"), victim.Start(t, "churn", "3")}
	var wg sync.WaitGroup
	end := time.Now().Add(2 * time.Second)
	for worker := range 4 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(worker)))
			for time.Now().Before(end) {
				v := victims[random.IntN(len(victims))]
				to := dir + names[random.IntN(len(names))]
				// EBUSY: the tracer of a move that it did not stop for is being taken off.
				if err := write(to+"/tasks", fmt.Sprint(v.Pid)); err != nil && err != unix.EAGAIN && err != unix.EBUSY {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for i := 0; time.Now().Before(end); i++ {
			c := fmt.Sprintf("%s/x%d", dir, i)
			if err := os.Mkdir(c, 0o755); err != nil {
				t.Error(err)
			}
			os.ReadFile(dir + "/a/tasks")
			os.ReadFile(dir + "/a/rcfs.proxies")
			if err := unix.Rmdir(c); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	for _, v := range victims {
		where := groupsOf(t, v.Pid, "cpu")
		require.Len(t, where, 1)
		require.Equal(t, where, groupsOf(t, v.Pid, "pids"))
		name := strings.TrimPrefix(where[0], "/"+rig.Base())
		name = strings.TrimSuffix(name, "/")
		require.Equal(t, []string{"uts:[" + linkTarget(t, dir+name+"/uts.ns") + "]"}, namespacesOf(t, v.Pid, "uts"))
		require.Equal(t, []string{"net:[" + linkTarget(t, dir+name+"/net.ns") + "]"}, namespacesOf(t, v.Pid, "net"))
		require.Empty(t, v.Stop())
	}
}

// Several ids in one write: whole lines only, in order, up to the first that fails.
func TestSeveralIdsInOneWrite(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pids"))
	a := mkdir(t, dir+"/a")
	v, w := victim.Start(t, "idle"), victim.Start(t, "idle")
	fd, err := unix.Open(a+"/tasks", unix.O_WRONLY, 0)
	require.NoError(t, err)
	defer unix.Close(fd)

	n, err := unix.Write(fd, fmt.Appendf(nil, "%d\n%d", v.Pid, w.Pid))
	require.NoError(t, err)
	require.Equal(t, len(fmt.Sprintln(v.Pid)), n, "the last line may be half of a longer one")
	n, err = unix.Write(fd, fmt.Appendf(nil, "%d\nxyz\n%d\n", w.Pid, v.Pid))
	require.NoError(t, err)
	require.Equal(t, len(fmt.Sprintln(w.Pid)), n)
	require.Contains(t, read(t, a+"/rcfs.error"), `"xyz\n": not a decimal task id (EINVAL)`)
	_, err = unix.Write(fd, []byte("xyz\n1\n"))
	require.Equal(t, unix.EINVAL, err)
	procs := strings.Fields(read(t, a+"/cgroup.procs"))
	require.ElementsMatch(t, []string{fmt.Sprint(v.Pid), fmt.Sprint(w.Pid)}, procs)
}

// Linking to a namespace is good enough for nsenter, and lo is up.
func TestNamespaceLinks(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("uts", "net", "ipc"))
	a := mkdir(t, dir+"/a")
	require.NoError(t, write(a+"/uts.hostname", "elsewhere\n"))
	require.NoError(t, write(a+"/uts.domainname", "example.org\n"))
	require.Equal(t, "elsewhere", shell(t, "nsenter --uts="+a+"/uts.ns uname -n"))
	require.Equal(t, "example.org", shell(t, "nsenter --uts="+a+"/uts.ns cat /proc/sys/kernel/domainname"))
	require.Equal(t, "lo\n", read(t, a+"/net.devices"))
	flags := shell(t, "nsenter --net="+a+"/net.ns unshare --mount sh -c 'mount -t sysfs s /sys && cat /sys/class/net/lo/flags'")
	require.Equal(t, "0x9", flags, "IFF_UP|IFF_LOOPBACK")
	require.Equal(t, unix.EINVAL, write(a+"/uts.hostname", strings.Repeat("x", 65)))
	require.Equal(t, unix.ENODEV, write(a+"/net.devices", "no-such"))
}

// A renaming that one subsystem refuses (on v2 none is possible) is taken back in those that have done
// it.
func TestRenameIsAllOrNothing(t *testing.T) {
	sys := rig.System(t)
	controllers := []string{"cpu", "pids", "hugetlb"} // on v1, and on v2 of a mixed host
	dir := mount(t, sys, rig.Spec(controllers...))
	name, want := "new", error(nil)
	for _, controller := range controllers {
		if onV2(t, sys, controller) {
			name, want = "old", unix.EPERM
		}
	}
	mkdir(t, dir+"/old")
	require.Equal(t, want, unix.Rename(dir+"/old", dir+"/new"))
	v := victim.Start(t, "single")
	require.NoError(t, write(dir+"/"+name+"/tasks", fmt.Sprint(v.Pid)))
	for _, controller := range controllers {
		base, leaf := baseDir(t, sys, controller)
		procs := read(t, base+"/"+name+leaf+"/cgroup.procs")
		require.Equal(t, fmt.Sprint(v.Pid)+"\n", procs, controller)
	}
	require.NoError(t, write(dir+"/tasks", fmt.Sprint(v.Pid)))
	require.Empty(t, v.Stop())
	require.NoError(t, unix.Rmdir(dir+"/"+name))
}

// What one mount of a hierarchy changes, another shows.
func TestTwoViews(t *testing.T) {
	sys := rig.System(t)
	one := mount(t, sys, rig.Spec("ipc", "uts")) // nothing of v2, which cannot rename
	two := mount(t, sys, rig.Spec("uts", "ipc"))
	seen := func(path string, want bool) {
		t.Helper()
		rig.Eventually(t, func() string {
			if _, err := os.Stat(path); (err == nil) != want {
				return fmt.Sprint(path, ": ", err)
			}
			return ""
		})
	}
	mkdir(t, one+"/a")
	seen(two+"/a/tasks", true)
	require.NoError(t, os.Rename(one+"/a", one+"/b"))
	seen(two+"/a", false)
	seen(two+"/b/tasks", true)
	require.NoError(t, os.Chown(one+"/b", 1000, 1000))
	rig.Eventually(t, func() string {
		var st unix.Stat_t
		unix.Stat(two+"/b/tasks", &st)
		if st.Uid != 1000 {
			return fmt.Sprint("uid ", st.Uid)
		}
		return ""
	})
	require.NoError(t, unix.Rmdir(one+"/b"))
	seen(two+"/b", false)
	_, err := sys.Mount(proxy.Spec{Subsystems: []string{"ipc"}, Base: rig.Base()}, nil)
	require.ErrorIs(t, err, proxy.ErrBound)
	require.ErrorContains(t, err, one)
}

// What is born of a process while it moves has the values of the container that it is in, and what it came from gives nothing
// that it has not.
func TestForkersChildrenHaveTheirContainersValues(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("oom", "sched"))
	containers := []string{mkdir(t, dir+"/a"), mkdir(t, dir+"/b"), mkdir(t, dir+"/c")}
	for i, file := range []string{"sched.nice", "oom.score_adj"} { // c has none
		require.NoError(t, write(containers[i]+"/"+file, fmt.Sprintln(i+4)))
	}
	forker := startForker(t)
	for i := range victim.Times(300) {
		move(t, containers[i%3], fmt.Sprint(forker.Process.Pid))
	}
	stopForker(t, forker)
	total := 0
	for i, want := range []struct {
		nice int
		oom  string
	}{{4, "0\n"}, {0, "5\n"}, {0, "0\n"}} {
		for pid := range strings.FieldsSeq(read(t, containers[i]+"/cgroup.procs")) {
			nice, err := unix.Getpriority(unix.PRIO_PROCESS, atoi(pid))
			require.NoError(t, err)
			require.Equal(t, want.nice, 20-nice, "process %s in %s", pid, containers[i])
			require.Equal(t, want.oom, read(t, "/proc/"+pid+"/oom_score_adj"))
			total++
		}
	}
	require.Greater(t, total, 10)
}
