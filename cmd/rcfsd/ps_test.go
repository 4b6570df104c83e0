package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy/census"
	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// first is how rcfs ps counts if nothing else is asked for, and has to say that it does here.
func first() (by string, args []string) {
	if rig.BPF() {
		return census.ByBPF, []string{"ps", "--json"}
	}
	return census.ByProc, []string{"ps", "--json"}
}

// psWays are the two ways to count, by what each has to call itself.
func psWays() map[string][]string {
	by, args := first()
	ways := map[string][]string{census.ByProc: {"ps", "--json", "--proc"}}
	ways[by] = args
	return ways
}

// count is what rcfs ps says by one of them.
func count(t *testing.T, by string, args []string) psReport {
	t.Helper()
	var r psReport
	require.NoError(t, decode([]byte(ok(t, "rcfs", args...)), &r))
	require.Equal(t, by, r.By)
	all := 0
	for i, p := range r.Proxies {
		all += p.Tasks
		require.True(t, i == 0 || p.Tasks <= r.Proxies[i-1].Tasks, "the largest first")
	}
	require.Equal(t, r.Tasks, all)
	return r
}

// label is the name that the only hierarchy has in /proc/PID/cgroup.
func label(t *testing.T) string { return "name=rcfs." + currentStatus(t).Hierarchies[0].Name }

// Tasks of several containers are counted by both ways alike: all threads, by what they have, wherever it is from.
func TestPs(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "uts,net,pids")
	for _, c := range []string{"/web", "/web/deep", "/db"} {
		require.NoError(t, os.Mkdir(dir+c, 0o755))
	}
	label := label(t)
	move := func(v int, container string) {
		t.Helper()
		rig.Eventually(t, func() string { // not in time where a machine is busy
			if err := os.WriteFile(dir+container+"/cgroup.procs", []byte(strconv.Itoa(v)), 0); err != nil {
				return err.Error()
			}
			return ""
		})
	}
	for _, c := range []string{"/web", "/web", "/web/deep"} {
		move(victim.Start(t, "threads", "8").Pid, c)
	}
	for range 3 {
		move(victim.Start(t, "single").Pid, "/db")
	}
	// One in /db has an ipc namespace that is nobody's.
	foreign := exec.Command("sleep", "1000")
	foreign.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWIPC}
	require.NoError(t, foreign.Start())
	t.Cleanup(func() { foreign.Process.Kill(); foreign.Wait() })
	move(foreign.Process.Pid, "/db")

	link := func(container, kind string) string {
		st, err := os.Stat(dir + container + "/" + kind + ".ns")
		require.NoError(t, err)
		return fmt.Sprintf("%s:[%d]", kind, st.Sys().(*syscall.Stat_t).Ino)
	}
	members := func(container string) int {
		text, err := os.ReadFile(dir + container + "/tasks")
		require.NoError(t, err)
		return strings.Count(string(text), "\n")
	}
	for by, args := range psWays() {
		t.Run(by, func(t *testing.T) {
			r := count(t, by, args)
			in := make(map[string][]psProxy)
			for _, p := range r.Proxies {
				if c := p.States[label]; c != "/" {
					in[c] = append(in[c], p)
					assert.Equal(t, link(c, "uts"), p.States["uts"])
					assert.Equal(t, link(c, "net"), p.States["net"])
				}
			}
			require.Len(t, in, 3)
			for _, c := range []string{"/web", "/web/deep"} {
				require.Len(t, in[c], 1, "all of them share one proxy")
				rig.Eventually(t, func() string { // a Go program starts a thread now and then
					want, have := members(c), inContainer(count(t, by, args), label, c)
					return map[bool]string{false: fmt.Sprintf("%s: %d members, %d tasks", c, want, have)}[want == have]
				})
			}
			require.Len(t, in["/db"], 2)
			assert.Equal(t, []int{3, 1}, []int{in["/db"][0].Tasks, in["/db"][1].Tasks})
			assert.NotEqual(t, in["/db"][0].States["ipc"], in["/db"][1].States["ipc"])
			delete(in["/db"][0].States, "ipc")
			delete(in["/db"][1].States, "ipc")
			assert.Equal(t, in["/db"][0].States, in["/db"][1].States, "they differ in nothing else")
		})
	}

	// For people: a column for what differs, and once what does not.
	text := ok(t, "rcfs", "ps")
	table, rest, found := strings.Cut(text, "\nall of them:\n")
	require.True(t, found, text)
	lines := strings.Split(strings.TrimSpace(table), "\n")
	assert.Regexp(t, `^\d+ tasks, \d+ proxies`, lines[0])
	assert.Contains(t, rest, "userns ")
	head := strings.Fields(lines[2])
	assert.Equal(t, "TASKS", head[0])
	assert.Subset(t, head, []string{"uts", "ipc", "net", label})
	web := -1
	for i, line := range lines[3:] {
		if strings.Contains(line, link("/web", "uts")) {
			web = i
			n, err := strconv.Atoi(strings.Fields(line)[0])
			require.NoError(t, err)
			assert.GreaterOrEqual(t, n, 16)
			assert.Contains(t, line, " /web")
		}
	}
	assert.GreaterOrEqual(t, web, 0, text)
}

// The same answer by both ways, for the whole machine: as far as nothing happens on it, which is what two counts by BPF
// agree on. (The program's own threads count too, and are not always as many.)
func TestPsBothWays(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "none,name=both")
	require.NoError(t, os.Mkdir(dir+"/a", 0o755))
	v := victim.Start(t, "threads", "4")
	require.NoError(t, os.WriteFile(dir+"/a/tasks", []byte(strconv.Itoa(v.Pid)), 0))
	by, args := first()
	rig.Eventually(t, func() string {
		before := count(t, by, args)
		proc := count(t, census.ByProc, []string{"ps", "--json", "--proc"})
		after := byStates(count(t, by, args))
		require.NotZero(t, inContainer(before, "name=rcfs.both", "/a"))
		require.False(t, rig.Guest() && proc.Unseen > 0, "nothing is hidden in a guest")
		one, other := byStates(before), byStates(proc)
		for states, n := range one {
			if after[states] != n {
				delete(one, states)
				delete(other, states)
			}
		}
		return difference(one, other, proc.Unseen)
	})
}

func byStates(r psReport) map[string]int {
	m := make(map[string]int)
	for _, p := range r.Proxies {
		m[fmt.Sprint(p.States)] = p.Tasks
	}
	return m
}

// difference says in what two counts differ. Of the tasks that /proc hides BPF may know some.
func difference(bpf, proc map[string]int, unseen int) string {
	for states, n := range proc {
		more := bpf[states] - n
		if more < 0 || more > unseen {
			return fmt.Sprintf("%s: %d tasks by BPF, %d by /proc", states, bpf[states], n)
		}
		unseen -= more
	}
	for states, n := range bpf {
		if proc[states] == 0 {
			return fmt.Sprintf("%s: %d tasks by BPF, none by /proc", states, n)
		}
	}
	return ""
}

// rcfs ps PID is one task's proxy, a line for each subsystem. Nothing but the kernel is asked.
func TestPsOfOneTask(t *testing.T) {
	machine(t)
	v := victim.Start(t, "threads", "2")
	pid := strconv.Itoa(v.Pid)
	slots := func(args ...string) map[string]string {
		t.Helper()
		m := make(map[string]string)
		for line := range strings.Lines(ok(t, "rcfs", args...)) {
			f := strings.Fields(line)
			require.Len(t, f, 2, line)
			m[f[0]] = f[1]
		}
		return m
	}
	before := slots("ps", pid)
	assert.NoFileExists(t, socketPath, "no daemon was started")
	for subsystem, file := range map[string]string{
		"uts": "uts", "ipc": "ipc", "net": "net", "mnt": "mnt", "pid": "pid_for_children", "time": "time_for_children", "cgroupns": "cgroup", "userns": "user",
	} {
		want, err := os.Readlink("/proc/" + pid + "/ns/" + file)
		require.NoError(t, err)
		assert.Equal(t, want, before[subsystem])
		delete(before, subsystem)
	}
	text, err := os.ReadFile("/proc/" + pid + "/cgroup")
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if f[1] == "" {
			f[1] = "cgroup2"
		}
		assert.Equal(t, f[2], before[f[1]], line)
		delete(before, f[1])
	}
	assert.Empty(t, before, "and nothing else")

	dir := place(t)
	mountOn(t, dir, "uts")
	require.NoError(t, os.Mkdir(dir+"/a", 0o755))
	require.NoError(t, os.WriteFile(dir+"/a/tasks", []byte(pid), 0))
	assert.Equal(t, "/a", slots("ps", pid)[label(t)])
	threads, err := os.ReadDir("/proc/" + pid + "/task")
	require.NoError(t, err)
	for _, thread := range threads {
		assert.Equal(t, "/a", slots("ps", thread.Name())[label(t)])
	}
	var one psTask
	require.NoError(t, json.Unmarshal([]byte(ok(t, "rcfs", "ps", "--json", pid)), &one))
	assert.Equal(t, v.Pid, one.Task)
	assert.Equal(t, slots("ps", pid), one.States)
	assert.Equal(t, slots("ps", "2"), slots("ps", "--proc", "2"), "one of the kernel's own")

	// A zombie has no proxy, and does not count.
	require.NoError(t, os.WriteFile(dir+"/tasks", []byte(pid), 0))
	corpse := exec.Command("sleep", "1000")
	require.NoError(t, corpse.Start())
	defer corpse.Wait()
	body := strconv.Itoa(corpse.Process.Pid)
	require.NoError(t, os.WriteFile(dir+"/a/tasks", []byte(body), 0))
	for by, args := range psWays() {
		assert.Equal(t, 1, inContainer(count(t, by, args), label(t), "/a"), by)
	}
	require.NoError(t, corpse.Process.Kill())
	rig.Eventually(t, func() string {
		code, stdout, stderr := call(t, "rcfs", "ps", body)
		if code == exitUsage && stdout == "" && stderr == "rcfs ps: task "+body+": a zombie, which has no namespaces any more\n" {
			return ""
		}
		return fmt.Sprintf("exit status %d: %s%s", code, stdout, stderr)
	})
	for by, args := range psWays() {
		assert.Zero(t, inContainer(count(t, by, args), label(t), "/a"), by)
	}
}

// inContainer is how many tasks a container has.
func inContainer(r psReport, label, container string) (n int) {
	for _, p := range r.Proxies {
		if p.States[label] == container {
			n += p.Tasks
		}
	}
	return n
}

// While tasks start and end by the thousand, those that stay are all counted, and once.
func TestPsOfARestlessMachine(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "pids") // into namespaces who forks all the time may not come in time
	for _, c := range []string{"/calm", "/wild"} {
		require.NoError(t, os.Mkdir(dir+c, 0o755))
	}
	calm := victim.Start(t, "single")
	require.NoError(t, os.WriteFile(dir+"/calm/tasks", []byte(strconv.Itoa(calm.Pid)), 0))
	for _, kind := range []string{"forker", "churn"} {
		v := victim.Start(t, kind)
		defer func() { assert.Empty(t, v.Stop(), kind) }()
		require.NoError(t, os.WriteFile(dir+"/wild/cgroup.procs", []byte(strconv.Itoa(v.Pid)), 0))
	}
	label := label(t)
	for by, args := range psWays() {
		for range victim.Times(20) {
			r := count(t, by, args)
			require.Equal(t, 1, inContainer(r, label, "/calm"), by)
			require.NotZero(t, inContainer(r, label, "/wild"), by)
		}
	}
}

func TestPsArguments(t *testing.T) {
	machine(t)
	for _, test := range []struct {
		args string
		says string
	}{
		{"0", `"0": not a decimal task id`},
		{"-1", "flag provided but not defined: -1"},
		{"+5", `"+5": not a decimal task id`},
		{"0x10", `"0x10": not a decimal task id`},
		{"abc", `"abc": not a decimal task id`},
		{"2147483648", `"2147483648": not a decimal task id`},
		{"2147483647", "task 2147483647: no such task"},
		{"1 2", `argument "2": ps takes one task`},
		{"--bpf", "flag provided but not defined: -bpf"},
	} {
		code, stdout, stderr := call(t, "rcfs", append([]string{"ps"}, strings.Fields(test.args)...)...)
		assert.Equal(t, exitUsage, code, test.args)
		assert.Empty(t, stdout, test.args)
		assert.Equal(t, "rcfs ps: "+test.says+"\n", stderr)
	}
	// Where bpf(2) is not to be had the answer comes from /proc: here because ids are others in a pid namespace.
	var r psReport
	require.NoError(t, decode([]byte(ok(t, "unshare", "--pid", "--fork", "--mount-proc", "rcfs", "ps", "--json")), &r))
	assert.Equal(t, census.ByProc, r.By)
	assert.LessOrEqual(t, r.Tasks, 30, "the program's own threads")
	assert.Len(t, r.Proxies, 1)
}

func FuzzTaskID(f *testing.F) {
	for _, seed := range []string{"1", "0", "-1", "+1", "0x1", "2147483647", "2147483648", " 1", "1_0", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, word string) {
		n, err := taskID(word)
		if err != nil {
			return
		}
		require.Positive(t, n)
		require.LessOrEqual(t, n, 1<<31-1)
		require.Equal(t, strings.TrimLeft(word, "0"), strconv.Itoa(n))
	})
}
