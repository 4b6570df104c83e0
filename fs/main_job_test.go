package fs_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// namespacesOf returns what every thread of a process has as its namespace of a type: one entry
// for each distinct one.
func namespacesOf(t testing.TB, pid int, kind string) []string {
	return distinct(t, fmt.Sprintf("/proc/%d/task/*/ns/%s", pid, kind), os.Readlink)
}

// groupsOf returns in which group of a controller's hierarchy the threads of a process are.
func groupsOf(t testing.TB, pid int, controller string) []string {
	return distinct(t, fmt.Sprintf("/proc/%d/task/*/cgroup", pid), func(file string) (string, error) {
		b, err := os.ReadFile(file)
		if err == nil && exiting(filepath.Dir(file)) {
			err = os.ErrNotExist // its group is shown as / (proc_cgroup_show)
		}
		return groupIn(string(b), controller), err
	})
}

// exiting reports whether the thread with a directory in /proc is about to end, or has ended.
func exiting(dir string) bool {
	const pfExiting = 4 // PF_EXITING
	b, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return true
	}
	_, fields, _ := strings.Cut(string(b[bytes.LastIndexByte(b, ')')+1:]), " ")
	flags, err := strconv.ParseUint(strings.Fields(fields)[6], 10, 64) // field 9 of proc_pid_stat(5)
	return err != nil || flags&pfExiting != 0
}

// groupIn finds a controller's group in a /proc/PID/cgroup: in the line of its v1 hierarchy, or
// in that of v2, where the tasks of a container are in a leaf of its group.
func groupIn(text, controller string) string {
	group := ""
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(f) != 3:
		case slices.Contains(strings.Split(f[1], ","), controller):
			return f[2]
		case f[1] == "":
			group = strings.TrimSuffix(f[2], "/.rcfs")
		}
	}
	return group
}

// onV2 reports whether this kernel has a controller on cgroup v2.
func onV2(t testing.TB, sys *proxy.System, controller string) bool {
	for _, info := range sys.Subsystems() {
		if info.Name == controller {
			return info.Backend == "v2"
		}
	}
	t.Fatal("no subsystem ", controller)
	return false
}

// baseDir returns the tests' directory in the hierarchy that has a controller, "" where that is
// mounted nowhere, and where below a container's group its tasks are.
func baseDir(t testing.TB, sys *proxy.System, controller string) (dir, leaf string) {
	fstype := "cgroup"
	if onV2(t, sys, controller) {
		fstype, leaf = "cgroup2", "/.rcfs"
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter(fstype))
	require.NoError(t, err)
	for _, m := range mounts {
		if fstype == "cgroup2" || slices.Contains(strings.Split(m.VFSOptions, ","), controller) {
			return m.Mountpoint + "/" + rig.Base(), leaf
		}
	}
	return "", leaf
}

// groupMembers counts the tasks in the groups that a controller's hierarchy has of the containers
// directly below the root; false where that hierarchy is mounted nowhere.
func groupMembers(t testing.TB, sys *proxy.System, controller string) (int, bool) {
	dir, leaf := baseDir(t, sys, controller)
	if dir == "" {
		return 0, false
	}
	file := "tasks"
	if leaf != "" {
		file = "cgroup.threads"
	}
	files, err := filepath.Glob(dir + "/*" + leaf + "/" + file)
	require.NoError(t, err)
	members := 0
	for _, file := range files {
		members += strings.Count(read(t, file), "\n")
	}
	return members, true
}

func distinct(t testing.TB, pattern string, get func(string) (string, error)) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	require.NoError(t, err)
	var list []string
	for _, file := range files {
		value, err := get(file)
		if os.IsNotExist(err) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EACCES) {
			continue // a thread that has ended; root is refused nothing else (proc_ns_readlink)
		}
		require.NoError(t, err)
		if len(list) == 0 || list[len(list)-1] != value {
			list = append(list, value)
		}
	}
	return list
}

func linkTarget(t testing.TB, file string) string {
	t.Helper()
	info, err := os.Stat(file)
	require.NoError(t, err)
	return fmt.Sprint(info.Sys().(*syscall.Stat_t).Ino)
}

// After echo PID > a/tasks every thread has the container's namespaces and groups, and moving it
// back to the root restores the initial ones.
func TestLiveProcessMovesWhole(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("cpu", "pids", "uts", "net", "ipc"))
	a := mkdir(t, dir+"/a")
	v := victim.Start(t, "threads", "8")
	before := map[string][]string{}
	for _, kind := range []string{"uts", "net", "ipc"} {
		before[kind] = namespacesOf(t, v.Pid, kind)
		require.Len(t, before[kind], 1)
	}

	move(t, a, fmt.Sprint(v.Pid))
	for _, kind := range []string{"uts", "net", "ipc"} {
		want := fmt.Sprintf("%s:[%s]", kind, linkTarget(t, a+"/"+kind+".ns"))
		require.Equal(t, []string{want}, namespacesOf(t, v.Pid, kind))
		require.NotEqual(t, before[kind][0], want)
	}
	for _, label := range []string{"cpu", "pids"} {
		require.Equal(t, []string{"/" + rig.Base() + "/a"}, groupsOf(t, v.Pid, label))
	}
	require.Contains(t, strings.Fields(read(t, a+"/cgroup.procs")), fmt.Sprint(v.Pid))
	require.Contains(t, strings.Fields(read(t, a+"/tasks")), fmt.Sprint(v.Pid))

	move(t, dir, fmt.Sprint(v.Pid))
	for kind, was := range before {
		require.Equal(t, was, namespacesOf(t, v.Pid, kind))
	}
	for _, label := range []string{"cpu", "pids"} {
		require.Equal(t, []string{"/"}, groupsOf(t, v.Pid, label))
	}
	require.Empty(t, read(t, a+"/tasks"))
	require.Empty(t, v.Stop())
}
