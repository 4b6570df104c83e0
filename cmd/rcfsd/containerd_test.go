package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// The library by which containerd uses cgroup v1 finds on a mount of rcfs what it finds in the
// kernel's own hierarchies, step by step.
func TestContainerdLibrary(t *testing.T) {
	machine(t)
	kernel, mounted := t.TempDir(), t.TempDir()
	controllers := v1Controllers(t, kernel)
	for _, name := range []string{"cpu", "freezer", "pids"} {
		if !slices.Contains(controllers, name) {
			t.Skipf("this machine has no %s in cgroup v1, which is all that the library knows", name)
		}
	}
	dir := place(t)
	mountOn(t, dir, strings.Join(controllers, ",")+",uts")
	for _, name := range controllers {
		require.NoError(t, os.Symlink(dir, filepath.Join(mounted, name)))
	}
	want := useLibrary(t, kernel, controllers)
	for _, line := range []string{
		"processes pids: BUSY in ROOT/pids/GROUP-one/, LATE in ROOT/pids/GROUP-one/, SLEEPER in ROOT/pids/GROUP-one/ <nil>",
		"-one: frozen, child: frozen, SLEEPER: D, THREADS: D",
		"delete: <nil>",
	} {
		assert.Contains(t, want, line)
	}
	got := useLibrary(t, mounted, controllers)
	assert.Equal(t, strings.Join(want, "\n"), strings.Join(got, "\n"))
}

// v1Controllers makes a link in root to each hierarchy of cgroup v1 that the library knows, and
// that a shared machine can spare.
func v1Controllers(t *testing.T, root string) []string {
	t.Helper()
	var names []string
	for _, name := range []string{"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "pids"} {
		if dir := v1Mount(t, name); dir != "" {
			require.NoError(t, os.Symlink(dir, filepath.Join(root, name)))
			names = append(names, name)
		}
	}
	return names
}

// v1Mount is where the kernel's own hierarchy of a controller is mounted, "" where it is not.
func v1Mount(t *testing.T, controller string) string {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup"))
	require.NoError(t, err)
	for _, m := range mounts {
		if slices.Contains(strings.Split(m.VFSOptions, ","), controller) && m.Root == "/" {
			return m.Mountpoint
		}
	}
	return ""
}

// librarySession is what is done with the library below a root, and what comes of it.
type librarySession struct {
	*testing.T
	root        string
	controllers []string
	group       string         // how the names of groups begin
	names       map[int]string // of processes and threads
	lines       []string
}

// useLibrary makes groups below root with the library, does with them what it can, and removes
// them. It returns what happened.
func useLibrary(t *testing.T, root string, controllers []string) []string {
	s := &librarySession{T: t, root: root, controllers: controllers, group: rig.Base() + "-library", names: make(map[int]string)}
	t.Cleanup(func() { // what a failure has left
		for _, controller := range controllers {
			for _, group := range []string{"-one/child", "-one", "-two"} {
				os.Remove(filepath.Join(root, controller, s.group+group))
			}
		}
	})
	sleeper := s.process("SLEEPER", "exec sleep 1000")
	busy := s.process("BUSY", "while :; do :; done")
	late := s.process("LATE", "exec sleep 1000")
	threads := victim.Start(t, "threads", "4")
	s.names[threads.Pid] = "THREADS"

	// What is frozen does not die, and its end is waited for.
	t.Cleanup(func() {
		os.WriteFile(filepath.Join(root, "freezer", s.group+"-one", "freezer.state"), []byte("THAWED"), 0)
	})

	one := s.limits()
	s.note("add: %v", one.Add(cgroup1.Process{Pid: sleeper}))
	s.note("add to what it is in: %v", one.Add(cgroup1.Process{Pid: sleeper}))
	s.note("add process: %v", one.AddProc(uint64(busy)))
	s.note("add task: %v", one.AddTask(cgroup1.Process{Pid: late}))
	dead := exec.Command("true")
	require.NoError(t, dead.Run())
	s.note("add no process: %v", one.AddProc(uint64(dead.Process.Pid)))
	s.members(one)
	child := s.threads(one, threads.Pid)
	s.figures(one)
	s.otherLimits(one)
	s.freezer(one, child, sleeper, threads.Pid, late)
	s.end(one, child, sleeper)
	s.note("threads saw: %q", threads.Stop())
	return s.lines
}

// note adds a line, without what differs from session to session.
func (s *librarySession) note(format string, args ...any) {
	names := strings.NewReplacer(s.root, "ROOT", s.group, "GROUP")
	s.lines = append(s.lines, names.Replace(fmt.Sprintf(format, args...)))
}

// process starts a shell.
func (s *librarySession) process(name, script string) int {
	cmd := exec.Command("sh", "-c", script)
	require.NoError(s, cmd.Start())
	s.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	s.names[cmd.Process.Pid] = name
	return cmd.Process.Pid
}

func (s *librarySession) hierarchy() ([]cgroup1.Subsystem, error) {
	all := []cgroup1.Subsystem{
		cgroup1.NewBlkio(s.root), cgroup1.NewCpu(s.root), cgroup1.NewCpuacct(s.root), cgroup1.NewCpuset(s.root),
		cgroup1.NewDevices(s.root), cgroup1.NewFreezer(s.root), cgroup1.NewPids(s.root),
	}
	return slices.DeleteFunc(all, func(sub cgroup1.Subsystem) bool {
		return !slices.Contains(s.controllers, string(sub.Name()))
	}), nil
}

func (s *librarySession) path(group string) cgroup1.Path {
	return cgroup1.StaticPath("/" + s.group + group)
}

func (s *librarySession) create(group string, limits *specs.LinuxResources) cgroup1.Cgroup {
	c, err := cgroup1.New(s.path(group), limits, cgroup1.WithHierarchy(s.hierarchy))
	require.NoError(s, err)
	return c
}

func (s *librarySession) load(group string) {
	c, err := cgroup1.Load(s.path(group), cgroup1.WithHierarchy(s.hierarchy))
	if err != nil {
		s.note("load %s: %v", group, err)
		return
	}
	s.note("load %s: %d subsystems, %s", group, len(c.Subsystems()), c.State())
}

// limits makes a group with limits.
func (s *librarySession) limits() cgroup1.Cgroup {
	one := s.create("-one", &specs.LinuxResources{
		CPU:  &specs.LinuxCPU{Shares: new(uint64(512)), Period: new(uint64(100000)), Quota: new(int64(20000)), Cpus: "0", Mems: "0"},
		Pids: &specs.LinuxPids{Limit: new(int64(30))},
		Devices: []specs.LinuxDeviceCgroup{
			{Access: "rwm"},
			{Allow: true, Type: "c", Major: new(int64(1)), Minor: new(int64(3)), Access: "rw"},
			{Allow: true, Type: "c", Major: new(int64(1)), Minor: new(int64(5)), Access: "r"},
		},
	})
	s.values()
	s.load("-one")
	s.load("-two")
	return one
}

// values notes what limits have become.
func (s *librarySession) values() {
	for _, file := range []string{
		"cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpuset.cpus", "cpuset.mems", "devices.list", "pids.max",
	} {
		controller, _, _ := strings.Cut(file, ".")
		if slices.Contains(s.controllers, controller) {
			b, err := os.ReadFile(filepath.Join(s.root, controller, s.group+"-one", file))
			s.note("%s %q %v", file, b, err)
		}
	}
}

func (s *librarySession) otherLimits(one cgroup1.Cgroup) {
	s.note("update: %v", one.Update(&specs.LinuxResources{
		CPU:  &specs.LinuxCPU{Shares: new(uint64(300)), Quota: new(int64(-1))},
		Pids: &specs.LinuxPids{Limit: new(int64(25))},
	}))
	s.note("update to too little: %v", one.Update(&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: new(int64(1))}}))
	s.note("update to no processor: %v", one.Update(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "9999"}}))
	s.values()
}

// threads adds a process with threads, and one of the threads to a child of the group.
func (s *librarySession) threads(one cgroup1.Cgroup, pid int) (child cgroup1.Cgroup) {
	ids, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	require.NoError(s, err)
	thread, err := strconv.Atoi(ids[len(ids)-1].Name())
	require.NoError(s, err)
	require.NotEqual(s, pid, thread)
	s.names[thread] = "THREAD"
	child, err = one.New("child", &specs.LinuxResources{})
	require.NoError(s, err)
	s.note("add threads: %v", one.AddProc(uint64(pid)))
	s.note("add a thread to the child: %v", child.AddTask(cgroup1.Process{Pid: thread}))
	s.members(child)
	s.members(one)
	s.note("add all threads to the child: %v", child.AddProc(uint64(pid)))
	s.members(one)
	return child
}

// members notes who is in a group, and in the group and below.
func (s *librarySession) members(c cgroup1.Cgroup) {
	for _, controller := range s.controllers {
		for _, scope := range []string{"", " and below"} {
			list, err := c.Processes(cgroup1.Name(controller), scope != "")
			s.note("processes %s%s: %s %v", controller, scope, s.sorted(list), err)
			list, err = c.Tasks(cgroup1.Name(controller), scope != "")
			s.note("tasks %s%s: %s %v", controller, scope, s.sorted(list), err)
		}
	}
}

// sorted tells who is where. How many threads a Go program has is not ours to say.
func (s *librarySession) sorted(list []cgroup1.Process) string {
	var words []string
	for _, p := range list {
		name := s.names[p.Pid]
		if name == "" {
			name = "other threads"
		}
		words = append(words, name+" in "+p.Path)
	}
	slices.Sort(words)
	return strings.Join(slices.Compact(words), ", ")
}

// figures waits until the group has used more time than it may, and its members are counted.
func (s *librarySession) figures(one cgroup1.Cgroup) {
	rig.Eventually(s, func() string {
		// blkio has fewer files where no disk's scheduler keeps account.
		m, err := one.Stat(cgroup1.IgnoreNotExist)
		require.NoError(s, err)
		tasks, err := one.Tasks(cgroup1.Pids, true)
		require.NoError(s, err)
		switch {
		case slices.Contains(s.controllers, "cpuacct") && m.CPU.Usage.Total == 0:
			return "no time used"
		case m.CPU.Throttling.ThrottledPeriods == 0 || m.CPU.Throttling.ThrottledTime == 0:
			return "never throttled"
		case m.Pids.Current != uint64(len(tasks)):
			return fmt.Sprintf("%d tasks, pids counts %d", len(tasks), m.Pids.Current)
		}
		return ""
	})
	m, err := one.Stat(cgroup1.IgnoreNotExist)
	require.NoError(s, err)
	s.note("limit of %d, usage of %d processors", m.Pids.Limit, len(m.CPU.Usage.PerCPU))
}

// freezer freezes the group, adds another process, and thaws it.
func (s *librarySession) freezer(one, child cgroup1.Cgroup, sleeper, threads, late int) {
	s.note("move out: %v", s.create("-two", &specs.LinuxResources{}).AddProc(uint64(late)))
	s.note("freeze: %v", one.Freeze())
	s.note("-one: %s, child: %s, SLEEPER: %s, THREADS: %s", one.State(), child.State(), s.state(sleeper), s.state(threads))
	s.note("add to frozen: %v", one.AddProc(uint64(late)))
	s.until(late, "D")
	s.note("thaw: %v", one.Thaw())
	s.note("-one: %s, child: %s", one.State(), child.State())
	for _, pid := range []int{sleeper, threads, late} {
		s.until(pid, "S")
	}
}

// state is the letter of a process in proc_pid_stat(5).
func (s *librarySession) state(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(s, err)
	_, rest, found := strings.Cut(string(b), ") ")
	require.True(s, found, "%s", b)
	return rest[:1]
}

func (s *librarySession) until(pid int, state string) {
	s.Helper()
	rig.Eventually(s, func() string {
		if is := s.state(pid); is != state {
			return fmt.Sprintf("%s is %s, not %s", s.names[pid], is, state)
		}
		return ""
	})
}

// end removes everything.
func (s *librarySession) end(one, child cgroup1.Cgroup, sleeper int) {
	s.note("delete with members: %v", one.Delete())
	two := s.create("-two", &specs.LinuxResources{})
	s.note("move: %v", one.MoveTo(two))
	s.members(one)
	s.members(two)
	s.note("delete with a child: %v", one.Delete())
	s.note("-one: %s, child: %s", one.State(), child.State())
	s.note("add to deleted: %v", one.AddProc(uint64(sleeper)))
	s.load("-one")
	top, err := cgroup1.Load(cgroup1.RootPath, cgroup1.WithHierarchy(s.hierarchy))
	require.NoError(s, err)
	s.note("move to the root: %v", two.MoveTo(top))
	s.members(two)
	s.note("delete: %v", two.Delete())
}
