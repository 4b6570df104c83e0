package subsystems_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/subsystems"
	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// values are what a thread has, as the kernel's own interfaces say.
type values struct {
	Files      unix.Rlimit
	OOM        string
	Policy     uint32
	Nice       int
	Processors unix.CPUSet
	Slack      string
	IO         uintptr
}

func valuesOf(t *testing.T, tid int) (v values) {
	require.NoError(t, unix.Prlimit(tid, unix.RLIMIT_NOFILE, nil, &v.Files))
	v.OOM = strings.TrimSpace(read(t, fmt.Sprintf("/proc/%d/oom_score_adj", tid)))
	attr, err := unix.SchedGetAttr(tid, 0)
	require.NoError(t, err)
	v.Policy = attr.Policy
	nice, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
	require.NoError(t, err)
	v.Nice = 20 - nice
	require.NoError(t, unix.SchedGetaffinity(tid, &v.Processors))
	v.Slack = strings.TrimSpace(read(t, fmt.Sprintf("/proc/%d/timerslack_ns", tid)))
	n, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, 1, uintptr(tid), 0)
	require.Zero(t, errno)
	v.IO = n
	return v
}

func threadsOf(t *testing.T, pid int) (tids []int) {
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	require.NoError(t, err)
	for _, name := range names {
		tid, err := strconv.Atoi(filepath.Base(name))
		require.NoError(t, err)
		tids = append(tids, tid)
	}
	return tids
}

func allValues(t *testing.T, pid int) map[int]values {
	all := make(map[int]values)
	for _, tid := range threadsOf(t, pid) {
		all[tid] = valuesOf(t, tid)
	}
	return all
}

// requireValues holds the threads of a process to what they shall have. Go's runtime makes more at any time: each has what
// another has.
func requireValues(t *testing.T, want map[int]values, pid int, why ...any) {
	t.Helper()
	for tid, is := range allValues(t, pid) {
		if expected, ok := want[tid]; ok {
			require.Equal(t, expected, is, why...)
		} else {
			require.Contains(t, slices.Collect(maps.Values(want)), is, why...)
		}
	}
}

// setValues makes a container of all kinds of values with some of them set, and returns what a task has there that had before.
func setValues(t *testing.T, dir string, before values) values {
	soft := before.Files.Cur - 7
	require.NoError(t, write(dir+"/rlimit.nofile", fmt.Sprintf("%d:%d\n", soft, before.Files.Max)))
	require.NoError(t, write(dir+"/oom.score_adj", "345\n"))
	require.NoError(t, write(dir+"/sched.policy", "batch\n"))
	require.NoError(t, write(dir+"/sched.nice", "7\n"))
	require.NoError(t, write(dir+"/sched.affinity", "0\n"))
	require.NoError(t, write(dir+"/sched.timerslack", "70000\n"))
	require.NoError(t, write(dir+"/ioprio.priority", "best-effort:6\n"))
	require.Equal(t, "batch\n", read(t, dir+"/sched.policy"))
	require.Equal(t, "best-effort:6\n", read(t, dir+"/ioprio.priority"))
	require.Equal(t, "-\n", read(t, dir+"/rlimit.nproc"))
	after := before
	after.Files.Cur, after.OOM, after.Policy, after.Nice = soft, "345", 3, 7
	after.Processors.Zero()
	after.Processors.Set(0)
	after.Slack, after.IO = "70000", 2<<13|6
	return after
}

var valueSpec = func() proxy.Spec { return rig.Spec("ioprio", "mempolicy", "oom", "rlimit", "sched", "umask") }

// A program's values change as it enters a container, in all threads; they come back as it leaves, also those of a child that
// was born there, and whoever has made the container.
func TestValuesComeAndGo(t *testing.T) {
	dir := mount(t, rig.System(t), valueSpec())
	a := mkdir(t, dir+"/a")
	v := victim.Start(t, "threads", "4")
	require.NoError(t, unix.Setpriority(unix.PRIO_PROCESS, threadsOf(t, v.Pid)[2], 3), "one is not like the others")
	before := allValues(t, v.Pid)
	moved := make(map[int]values)
	for tid, values := range before {
		moved[tid] = setValues(t, a, values)
	}

	move(t, a, fmt.Sprint(v.Pid))
	requireValues(t, moved, v.Pid)
	move(t, a, fmt.Sprint(v.Pid))
	requireValues(t, moved, v.Pid, "it is there already")
	b := mkdir(t, a+"/b")
	require.Equal(t, "345\n", read(t, b+"/oom.score_adj"), "a new container has its parent's")
	require.NoError(t, write(b+"/oom.score_adj", "456\n"))
	require.NoError(t, write(b+"/sched.nice", "-\n"))
	move(t, b, fmt.Sprint(v.Pid))
	inB := make(map[int]values)
	for tid, want := range moved {
		want.OOM, want.Nice = "456", before[tid].Nice
		inB[tid] = want
	}
	requireValues(t, inB, v.Pid)
	require.NoError(t, os.Rename(b, a+"/c"))
	move(t, a, fmt.Sprint(v.Pid))
	requireValues(t, moved, v.Pid)
	move(t, dir, fmt.Sprint(v.Pid))
	requireValues(t, before, v.Pid)
	require.Empty(t, v.Stop())

	// Who is born in a container has its parent's home.
	sh := startShell(t)
	home := valuesOf(t, sh.pid)
	move(t, a, fmt.Sprint(sh.pid))
	there := valuesOf(t, sh.pid)
	child := sh.fork(t)
	require.Equal(t, there, valuesOf(t, child))
	sh2 := valuesOf(t, child)
	require.NotEqual(t, home, sh2)
	move(t, dir, fmt.Sprint(child))
	require.Equal(t, home, valuesOf(t, child))
	require.Equal(t, there, valuesOf(t, sh.pid))
	sh.reap(t, child)
	move(t, dir, fmt.Sprint(sh.pid))
	require.Equal(t, home, valuesOf(t, sh.pid))
	sh.end(t)
}

// What is changed in a container is changed for its members; what is not set any more comes back.
func TestValuesOfMembers(t *testing.T) {
	dir := mount(t, rig.System(t), valueSpec())
	a := mkdir(t, dir+"/a")
	const count = 20
	var list []*victim.Victim
	before := make(map[int]values)
	for range count {
		v := victim.Start(t, "single")
		list = append(list, v)
		before[v.Pid] = valuesOf(t, v.Pid)
		move(t, a, fmt.Sprint(v.Pid))
		require.Equal(t, before[v.Pid], valuesOf(t, v.Pid), "nothing is set")
	}
	for _, v := range list {
		require.Equal(t, before[v.Pid], valuesOf(t, v.Pid))
	}
	require.NoError(t, write(a+"/oom.score_adj", "5\n"))
	require.NoError(t, write(a+"/sched.nice", "5\n"))
	for _, v := range list {
		want := before[v.Pid]
		want.OOM, want.Nice = "5", 5
		requireValues(t, map[int]values{v.Pid: want}, v.Pid)
	}
	lines := strings.Split(strings.TrimSpace(read(t, a+"/rcfs.proxies")), "\n")
	require.Len(t, lines, 1, "equal values are one proxy")
	require.Contains(t, lines[0], " oom=score_adj:5 ")
	require.Contains(t, lines[0], ";nice:5;")

	b := mkdir(t, dir+"/b")
	require.NoError(t, write(b+"/oom.score_adj", "5\n"))
	require.NoError(t, write(b+"/sched.nice", "5\n"))
	move(t, b, fmt.Sprint(list[0].Pid))
	proxyOf := func(dir string) string {
		slots := strings.Fields(read(t, dir+"/rcfs.proxies"))[2:]
		return strings.Join(slots, " ")
	}
	require.Equal(t, proxyOf(a), proxyOf(b), "the same states, whichever container has set them")

	require.NoError(t, write(a+"/oom.score_adj", "-\n"))
	require.NoError(t, write(a+"/sched.nice", "-\n"))
	for _, v := range list[1:] {
		require.Equal(t, before[v.Pid], valuesOf(t, v.Pid))
	}
	for _, v := range list {
		require.Empty(t, v.Stop())
	}
}

// refused is why a write is, of a target that a slow machine may not stop in time.
func refused(t *testing.T, file, text string) (err error) {
	rig.Eventually(t, func() string {
		if err = write(file, text); errors.Is(err, unix.EAGAIN) {
			return err.Error()
		}
		return ""
	})
	return err
}

// A thread that cannot have what the others can leaves all as it was.
func TestValueOfOneThreadRefused(t *testing.T) {
	dir := mount(t, rig.System(t), valueSpec())
	a := mkdir(t, dir+"/a")
	require.NoError(t, write(a+"/oom.score_adj", "5\n"))
	require.NoError(t, write(a+"/sched.policy", "batch\n"))
	v := victim.Start(t, "threads", "5")
	last := slices.Max(threadsOf(t, v.Pid))
	require.NoError(t, unix.SchedSetAttr(last, &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: 6, Runtime: 5e7, Deadline: 1e8, Period: 1e8, // SCHED_DEADLINE
	}, 0))
	before := allValues(t, v.Pid)
	require.ErrorIs(t, refused(t, a+"/tasks", fmt.Sprint(v.Pid)), unix.EBUSY)
	require.Contains(t, read(t, a+"/rcfs.error"), "sched.policy to batch: the thread has a policy that could not be given back")
	requireValues(t, before, v.Pid)
	require.Empty(t, read(t, a+"/tasks"))

	// The same of a value that is set while it is in: it may not be.
	require.NoError(t, write(a+"/sched.policy", "-\n"))
	move(t, a, fmt.Sprint(v.Pid))
	w := victim.Start(t, "single")
	move(t, a, fmt.Sprint(w.Pid))
	inside, others := allValues(t, v.Pid), allValues(t, w.Pid)
	require.ErrorIs(t, refused(t, a+"/sched.policy", "batch\n"), unix.EBUSY)
	require.Equal(t, "-\n", read(t, a+"/sched.policy"))
	requireValues(t, inside, v.Pid)
	requireValues(t, others, w.Pid)
	move(t, dir, fmt.Sprint(v.Pid))
	requireValues(t, before, v.Pid)
	require.Empty(t, v.Stop())
	require.Empty(t, w.Stop())
}

// A hard limit that cannot be raised again is not lowered.
func TestHardLimits(t *testing.T) {
	dir := mount(t, rig.System(t), valueSpec())
	a := mkdir(t, dir+"/a")
	v := victim.Start(t, "single")
	before := valuesOf(t, v.Pid)
	require.NoError(t, write(a+"/rlimit.nofile", "500\n"))
	require.Equal(t, "500:500\n", read(t, a+"/rlimit.nofile"))
	if may := hasCapability(t, unix.CAP_SYS_RESOURCE); may {
		move(t, a, fmt.Sprint(v.Pid))
		require.Equal(t, unix.Rlimit{Cur: 500, Max: 500}, valuesOf(t, v.Pid).Files)
		move(t, dir, fmt.Sprint(v.Pid))
	} else {
		require.ErrorIs(t, write(a+"/tasks", fmt.Sprint(v.Pid)), unix.EPERM)
		require.Contains(t, read(t, a+"/rcfs.error"), "rcfsd has no CAP_SYS_RESOURCE to raise the hard limit again")
		// Of members likewise.
		b := mkdir(t, dir+"/b")
		move(t, b, fmt.Sprint(v.Pid))
		require.ErrorIs(t, write(b+"/rlimit.nofile", "500\n"), unix.EPERM)
		require.Equal(t, "-\n", read(t, b+"/rlimit.nofile"))
		require.Contains(t, read(t, b+"/rcfs.error"), fmt.Sprintf("attach %d \"/b\": rlimit: rlimit.nofile from ", v.Pid))
		move(t, dir, fmt.Sprint(v.Pid))
	}
	require.Equal(t, before, valuesOf(t, v.Pid))
	require.Empty(t, v.Stop())
}

func hasCapability(t *testing.T, capability int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	require.NoError(t, unix.Capget(&header, &data[0]))
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

// What a task had before is known to the next daemon, and what a task has changed itself comes back when a move fails.
func TestValuesOutliveTheDaemon(t *testing.T) {
	sys, err := proxy.Open(proxy.Host{Run: "/run/rcfs"}, rig.Log(t))
	require.NoError(t, err)
	dir, done := mountOnce(t, sys, valueSpec())
	a := mkdir(t, dir+"/a")
	v := victim.Start(t, "threads", "3")
	before := allValues(t, v.Pid)
	setValues(t, a, before[v.Pid])
	move(t, a, fmt.Sprint(v.Pid))
	there := allValues(t, v.Pid)
	require.NoError(t, unix.Unmount(dir, 0))
	<-done
	require.NoError(t, sys.Close())

	dir = mount(t, rig.System(t), valueSpec())
	a = dir + "/a"
	require.Equal(t, "batch\n", read(t, a+"/sched.policy"))
	requireValues(t, there, v.Pid)
	require.NoError(t, write(a+"/sched.policy", "idle\n"))
	tid := slices.Max(threadsOf(t, v.Pid))
	attr, err := unix.SchedGetAttr(tid, 0)
	require.NoError(t, err)
	require.EqualValues(t, 5, attr.Policy)
	move(t, dir, fmt.Sprint(v.Pid))
	requireValues(t, before, v.Pid)
	require.Empty(t, v.Stop())
}

// A move that fails after the values were changed puts back what the task had, its own changes included.
func TestValuesArePutBack(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("oom", "sched", "uts"))
	a, b := mkdir(t, dir+"/a"), mkdir(t, dir+"/b")
	require.NoError(t, write(dir+"/a/sched.nice", "4\n"))
	require.NoError(t, write(dir+"/b/sched.nice", "9\n"))
	require.NoError(t, write(dir+"/b/oom.score_adj", "9\n"))
	v := victim.Start(t, "threads", "4", "+onenocap")
	before := allValues(t, v.Pid)
	require.ErrorIs(t, write(b+"/tasks", fmt.Sprint(v.Pid)), unix.EPERM)
	requireValues(t, before, v.Pid)
	require.Empty(t, v.Stop())

	w := victim.Start(t, "threads", "4")
	move(t, a, fmt.Sprint(w.Pid))
	require.NoError(t, unix.Setpriority(unix.PRIO_PROCESS, slices.Max(threadsOf(t, w.Pid)), 11), "its own doing")
	there := allValues(t, w.Pid)
	pin, err := os.Readlink(b + "/uts.ns")
	require.NoError(t, err)
	require.NoError(t, unix.Unmount(pin, unix.MNT_DETACH), "the move fails late: there is nothing to enter")
	require.Error(t, write(b+"/tasks", fmt.Sprint(w.Pid)))
	requireValues(t, there, w.Pid)
	move(t, a, fmt.Sprint(w.Pid))
	for _, is := range allValues(t, w.Pid) {
		require.Equal(t, 4, is.Nice, "whoever moves it there again wants the container's")
	}
	require.Empty(t, w.Stop())
}

// Values that make no sense are refused.
func TestValuesRefused(t *testing.T) {
	dir := mount(t, rig.System(t), valueSpec())
	a := mkdir(t, dir+"/a")
	for file, texts := range map[string][]string{
		"rlimit.nofile":    {"", "x", "-1", "1:", ":1", "2:1", "1:2:3", "0x10", "18446744073709551616", "1 2"},
		"oom.score_adj":    {"", "1001", "-1001", "1.5", "--", "x"},
		"sched.policy":     {"", "fifo", "fifo:0", "fifo:100", "batch:1", "other+", "deadline", "number:6", "x"},
		"sched.nice":       {"20", "-21", "x"},
		"sched.affinity":   {"", "x", "1-0", "0-", "0,,1", "70000"},
		"sched.timerslack": {"0", "-1", "x"},
		"ioprio.priority":  {"", "best-effort:8", "best-effort:-1", "x:1", "idle:1"},
		"umask.mask":       {"", "8", "1000", "-1", "x"},
		"mempolicy.policy": {"", "x", "bind", "default:0", "local:0", "bind:", "bind:x", "bind=x:0", "bind=static|static:0", "9"},
	} {
		for _, text := range texts {
			require.ErrorIs(t, write(a+"/"+file, text+"\n"), unix.EINVAL, "%s %q", file, text)
		}
		require.Equal(t, "-\n", read(t, a+"/"+file))
	}
	require.NoFileExists(t, dir+"/oom.score_adj", "the root has no values")
}

// A container's owner cannot give away what it could not have by itself.
func TestValuesNeedCapability(t *testing.T) {
	dir := mount(t, rig.System(t), valueSpec())
	a := mkdir(t, dir+"/a")
	require.NoError(t, os.Chown(a, 1000, 1000))
	as := func(file, text string) error {
		cmd := exec.Command("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "sh", "-c", `printf '%s\n' "$1" > "$2"`, "sh", text, a+"/"+file)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w", out, err)
		}
		return nil
	}
	var limit unix.Rlimit
	require.NoError(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &limit))
	for _, c := range []struct {
		file, text string
		capability int
	}{
		{"rlimit.nofile", fmt.Sprintf("5:%d", limit.Max+1), unix.CAP_SYS_RESOURCE},
		{"oom.score_adj", "-1", unix.CAP_SYS_RESOURCE},
		{"sched.policy", "fifo:1", unix.CAP_SYS_NICE},
		{"sched.nice", "-1", unix.CAP_SYS_NICE},
		{"ioprio.priority", "realtime:7", unix.CAP_SYS_NICE},
	} {
		require.Error(t, as(c.file, c.text), c.file)
		require.Contains(t, read(t, a+"/rcfs.error"), "a capability is missing (EPERM)")
		require.Equal(t, "-\n", read(t, a+"/"+c.file))
		err := write(a+"/"+c.file, c.text+"\n")
		if !hasCapability(t, c.capability) {
			require.ErrorIs(t, err, unix.EPERM)
			continue
		}
		require.NoError(t, err)
		require.NoError(t, write(a+"/"+c.file, "-\n"))
	}
	for file, text := range map[string]string{
		"rlimit.nofile": "5", "oom.score_adj": "1", "sched.policy": "idle", "sched.nice": "1", "ioprio.priority": "idle:0",
	} {
		require.NoError(t, as(file, text), file)
	}

	// Nor can it change what it could not move.
	v := victim.Start(t, "single")
	require.NoError(t, write(a+"/rlimit.nofile", "-\n"))
	move(t, a, fmt.Sprint(v.Pid))
	before := allValues(t, v.Pid)
	for _, file := range []string{"sched.nice", "umask.mask"} {
		require.Error(t, as(file, "7"))
		require.Contains(t, read(t, a+"/rcfs.error"), "(EACCES)")
		require.Equal(t, before, allValues(t, v.Pid))
	}
	require.Empty(t, v.Stop())
}

// Whatever a value's file takes it shows as it would take it again.
func FuzzValues(f *testing.F) {
	for _, text := range []string{"5", "5:6", "unlimited", "fifo:10+reset", "batch", "0-3,8", "best-effort:7", "-3", "1:1024", "none", "0077", "bind=static|balancing:0-3"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for name, parse := range subsystems.ValueParsers() {
			shown, err := parse(text)
			if err != nil {
				require.ErrorIs(t, err, proxy.ErrValue, name)
				continue
			}
			require.NotContains(t, shown, " ", name)
			again, err := parse(shown)
			require.NoError(t, err, name)
			require.Equal(t, shown, again, name)
		}
	})
}

// ownValues are what each thread can only change itself.
func ownValues(t *testing.T, pid int) map[int]string {
	all := make(map[int]string)
	for _, tid := range threadsOf(t, pid) {
		status := read(t, fmt.Sprintf("/proc/%d/task/%d/status", pid, tid))
		mask := status[strings.Index(status, "Umask:\t"):]
		// The first line of any file that is mapped: nobody has given a policy to that.
		policy := read(t, fmt.Sprintf("/proc/%d/task/%d/numa_maps", pid, tid))
		all[tid] = mask[len("Umask:\t"):strings.IndexByte(mask, '\n')] + " " + strings.Fields(policy)[1]
	}
	return all
}

func requireOwn(t *testing.T, pid int, want string, why ...any) {
	t.Helper()
	for _, is := range ownValues(t, pid) {
		require.Equal(t, want, is, why...)
	}
}

// Mask and memory policy are changed by the task itself, stopped for that, in all threads.
func TestValuesThatTasksChangeThemselves(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("mempolicy", "umask", "uts"))
	a := mkdir(t, dir+"/a")
	require.NoError(t, write(a+"/umask.mask", "7\n"))
	require.NoError(t, write(a+"/mempolicy.policy", "bind:0\n"))
	require.Equal(t, "0007\n", read(t, a+"/umask.mask"))
	kinds := [][]string{{"single"}, {"threads", "4"}, {"threads", "3", "+chroot"}}
	if rig.KernelIsAtLeast(6, 9) { // before, namespaces cannot be given to threads with descriptors of their own
		kinds = append(kinds, []string{"threads", "3", "+ownfiles"})
	}
	for _, kind := range kinds {
		v := victim.Start(t, kind[0], kind[1:]...)
		for range 2 {
			requireOwn(t, v.Pid, "0022 default")
			move(t, a, fmt.Sprint(v.Pid))
			requireOwn(t, v.Pid, "0007 bind:0")
			require.Contains(t, read(t, a+"/rcfs.proxies"), " mempolicy=policy:bind:0 ")
			require.NoError(t, write(a+"/umask.mask", "77\n"))
			requireOwn(t, v.Pid, "0077 bind:0", "members change at once")
			require.NoError(t, write(a+"/mempolicy.policy", "-\n"))
			requireOwn(t, v.Pid, "0077 default")
			require.ErrorIs(t, write(a+"/mempolicy.policy", "interleave:900\n"), unix.EINVAL, "the kernel refuses")
			require.Contains(t, read(t, a+"/rcfs.error"), "changes mempolicy.policy to interleave:900: invalid argument")
			require.Equal(t, "-\n", read(t, a+"/mempolicy.policy"))
			requireOwn(t, v.Pid, "0077 default")
			require.NoError(t, write(a+"/umask.mask", "7\n"))
			require.NoError(t, write(a+"/mempolicy.policy", "bind:0\n"))
			move(t, dir, fmt.Sprint(v.Pid))
		}
		requireOwn(t, v.Pid, "0022 default")
		require.Empty(t, v.Stop())
	}

	// One thread may not enter the namespace: the others give back what they have changed before.
	v := victim.Start(t, "threads", "4", "+onenocap")
	require.ErrorIs(t, write(a+"/tasks", fmt.Sprint(v.Pid)), unix.EPERM)
	requireOwn(t, v.Pid, "0022 default")
	require.Empty(t, read(t, a+"/tasks"))
	require.Empty(t, v.Stop())

	// A policy that the kernel does not take leaves the task where it was.
	require.NoError(t, write(a+"/mempolicy.policy", "prefer:900\n"))
	w := victim.Start(t, "threads", "4")
	require.ErrorIs(t, write(a+"/tasks", fmt.Sprint(w.Pid)), unix.EINVAL)
	requireOwn(t, w.Pid, "0022 default")
	require.Empty(t, read(t, a+"/tasks"))
	require.Empty(t, w.Stop())
}

// A task that moves itself has the values before its write(2) returns. It cannot change them as a member: it would have to be
// stopped in its own write.
func TestTaskChangesItsOwnValues(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("mempolicy", "sched", "umask"))
	a := mkdir(t, dir+"/a")
	require.NoError(t, write(a+"/umask.mask", "7\n"))
	// A grandchild, see package inject on waiting for children that are moved.
	out, err := exec.Command("sh", "-c", `bash -c "$1"; exit $?`, "sh", fmt.Sprintf(`umask 2; echo $$ > %s/tasks && umask
echo 70 2>/dev/null > %[1]s/umask.mask || cat %[1]s/rcfs.error; umask
(umask); nice() { local stat=$(</proc/$$/stat); set -- ${stat##*) }; echo ${17}; }
echo 3 > %[1]s/sched.nice && nice; echo 0 > %[2]s/tasks && umask; nice`, a, dir)).CombinedOutput()
	require.NoError(t, err, string(out))
	require.Regexp(t, `^0007
write umask.mask "/a": umask: .*it asks for this itself, and cannot be stopped before it is answered.*\(EBUSY\)
0007
0007
3
0002
0
$`, string(out))
	require.Equal(t, "0007\n", read(t, a+"/umask.mask"))
}

// Processors are those of the container, whichever its cpuset has; a policy is had by the leave of the cpu group that the task
// comes into.
func TestValuesComeAfterGroups(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("cpuset", "sched", "cpu"))
	a := mkdir(t, dir+"/a")
	require.NoError(t, write(a+"/sched.affinity", "1\n"))
	realTime := write(a+"/cpu.rt_runtime_us", "1000\n") == nil
	if realTime {
		require.NoError(t, write(a+"/sched.policy", "fifo:1\n"))
	}
	v := victim.Start(t, "threads", "3")
	before := allValues(t, v.Pid)
	for range 2 {
		move(t, a, fmt.Sprint(v.Pid))
		for _, is := range allValues(t, v.Pid) {
			var one unix.CPUSet
			one.Set(1)
			require.Equal(t, one, is.Processors)
			require.Equal(t, realTime, is.Policy == 1)
		}
		move(t, dir, fmt.Sprint(v.Pid))
		requireValues(t, before, v.Pid)
	}
	require.Empty(t, v.Stop())
}

// A process whose threads come and go, and one that undoes what is done to it, keep nobody for ever.
func TestValuesOfRestlessThreads(t *testing.T) {
	dir := mount(t, rig.System(t), valueSpec())
	a := mkdir(t, dir+"/a")
	require.NoError(t, write(a+"/sched.nice", "5\n"))
	v := victim.Start(t, "churn")
	for i := range 20 {
		to, want := a, 5+i%3
		require.NoError(t, write(a+"/sched.nice", fmt.Sprintln(want)))
		if i%2 == 1 {
			to, want = dir, 0
		}
		move(t, to, fmt.Sprint(v.Pid))
		for _, tid := range threadsOf(t, v.Pid) {
			if nice, err := unix.Getpriority(unix.PRIO_PROCESS, tid); err == nil {
				require.Equal(t, want, 20-nice, "thread %d of %d", tid, v.Pid)
			}
		}
	}
	require.Empty(t, v.Stop())

	w := victim.Start(t, "threads", "3")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
				unix.Setpriority(unix.PRIO_PROCESS, w.Pid, n%4)
			}
		}
	}()
	for i := range 20 {
		move(t, []string{a, dir}[i%2], fmt.Sprint(w.Pid))
		require.NoError(t, write(a+"/sched.nice", fmt.Sprintln(7+i%2)))
	}
	close(stop)
	<-stopped
	require.Empty(t, w.Stop())
}
