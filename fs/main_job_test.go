package fs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// namespacesOf returns what every thread of a process has as its namespace of a type: one entry
// for each distinct one.
func namespacesOf(t testing.TB, pid int, kind string) []string {
	return distinct(t, fmt.Sprintf("/proc/%d/task/*/ns/%s", pid, kind), os.Readlink)
}

// groupsOf returns in which group of a hierarchy the threads of a process are.
func groupsOf(t testing.TB, pid int, label string) []string {
	return distinct(t, fmt.Sprintf("/proc/%d/task/*/cgroup", pid), func(file string) (string, error) {
		b, err := os.ReadFile(file)
		for line := range strings.Lines(string(b)) {
			if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && f[1] == label {
				return f[2], nil
			}
		}
		return "", err
	})
}

func distinct(t testing.TB, pattern string, get func(string) (string, error)) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	require.NoError(t, err)
	var list []string
	for _, file := range files {
		value, err := get(file)
		if os.IsNotExist(err) {
			continue // a thread that has ended
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
