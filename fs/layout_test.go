package fs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// A container and its child have tasks at once, on v2 too, and the outer one's limit limits both.
func TestInnerContainerHasTasks(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pids", "cpu", "uts"))
	a := mkdir(t, dir+"/a")
	b := mkdir(t, a+"/b")
	outer, inner := victim.Start(t, "single"), victim.Start(t, "single")
	move(t, a, fmt.Sprint(outer.Pid))
	move(t, b, fmt.Sprint(inner.Pid))
	require.Equal(t, fmt.Sprintln(outer.Pid), read(t, a+"/tasks"))
	require.Equal(t, fmt.Sprintln(inner.Pid), read(t, b+"/tasks"))
	for _, controller := range []string{"pids", "cpu"} {
		require.Equal(t, []string{"/" + rig.Base() + "/a"}, groupsOf(t, outer.Pid, controller))
		require.Equal(t, []string{"/" + rig.Base() + "/a/b"}, groupsOf(t, inner.Pid, controller))
	}
	require.Equal(t, "2\n", read(t, a+"/pids.current"))
	require.Equal(t, "1\n", read(t, b+"/pids.current"))

	require.NoError(t, write(a+"/pids.max", "3"))
	for _, c := range []string{a, b} { // a shell that can fork no child
		out := shell(t, fmt.Sprintf("sh -c 'echo $$ > %s/tasks; /bin/true; true' 2>&1; true", c))
		require.Contains(t, out, "annot fork", c)
	}
	require.NoError(t, write(a+"/pids.max", "4"))
	require.Empty(t, shell(t, fmt.Sprintf("sh -c 'echo $$ > %s/tasks; /bin/true; true' 2>&1", b)))

	require.Equal(t, unix.EBUSY, unix.Rmdir(a), "b is in it")
	move(t, dir, fmt.Sprint(inner.Pid))
	require.NoError(t, unix.Rmdir(b))
	require.Equal(t, unix.EBUSY, unix.Rmdir(a), "a task is in it")
	move(t, dir, fmt.Sprint(outer.Pid))
	require.NoError(t, unix.Rmdir(a))
	require.Empty(t, outer.Stop())
	require.Empty(t, inner.Stop())
}

// Everything that this kernel has, in one hierarchy: each file can be read, and each of v2's
// groups that is not ours has what it had before, once it is unmounted.
func TestEverythingAtOnce(t *testing.T) {
	before := subtreeControls(t)
	t.Run("mounted", func(t *testing.T) {
		sys := rig.System(t)
		var names []string
		for _, info := range sys.Subsystems() {
			if info.Backend != "" && rig.Free(info) {
				names = append(names, info.Name)
			}
		}
		t.Log(names)
		dir := mount(t, sys, rig.Spec(names...))
		// Processes with threads cannot enter the other kinds of namespaces.
		require.NoError(t, write(dir+"/rcfs.unshare", "cgroupns ipc net uts\n"))
		a := mkdir(t, dir+"/a")
		b := mkdir(t, a+"/b")
		v, w := victim.Start(t, "threads", "3"), victim.Start(t, "threads", "3")
		move(t, a, fmt.Sprint(v.Pid))
		move(t, b, fmt.Sprint(w.Pid))
		for _, d := range []string{dir, a, b} {
			entries, err := os.ReadDir(d)
			require.NoError(t, err)
			seen := map[string]bool{}
			for _, e := range entries {
				require.False(t, seen[e.Name()], "%s twice", e.Name())
				seen[e.Name()] = true
			}
		}
		for _, name := range names {
			pattern := name + ".*"
			if core := map[string]string{"freezer": "cgroup.freeze", "cpuacct": "cpu.stat"}[name]; core != "" && onV2(t, sys, name) {
				pattern = core
			}
			files, err := filepath.Glob(b + "/" + pattern)
			require.NoError(t, err)
			if name != "perf_event" { // it has none
				require.NotEmpty(t, files, name)
			}
			if controller(sys, name) {
				require.Equal(t, []string{"/" + rig.Base() + "/a"}, groupsOf(t, v.Pid, name), name)
				require.Equal(t, []string{"/" + rig.Base() + "/a/b"}, groupsOf(t, w.Pid, name), name)
			}
		}
		move(t, dir, fmt.Sprint(v.Pid))
		move(t, dir, fmt.Sprint(w.Pid))
		require.Empty(t, v.Stop())
		require.Empty(t, w.Stop())
	})
	sameControls(t, before)
}

// freezerOf returns what sets the state of a container's freezer, by the files of either layout, and
// waits until it has it.
func freezerOf(t *testing.T, sys *proxy.System, container string) (set func(frozen bool)) {
	file, words := container+"/freezer.state", map[bool]string{true: "FROZEN", false: "THAWED"}
	state := func() string { return strings.TrimSpace(read(t, file)) }
	if onV2(t, sys, "freezer") {
		file, words = container+"/cgroup.freeze", map[bool]string{true: "1", false: "0"}
		state = func() string {
			return strings.TrimPrefix(strings.Split(strings.TrimSpace(read(t, container+"/cgroup.events")), "\n")[1], "frozen ")
		}
	}
	return func(frozen bool) {
		t.Helper()
		require.NoError(t, write(file, words[frozen]))
		rig.Eventually(t, func() string {
			if s := state(); s != words[frozen] {
				return "is " + s
			}
			return ""
		})
	}
}

// A frozen container does not run, and runs again, by the files of either layout.
func TestFreezer(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("freezer"))
	a := mkdir(t, dir+"/a")
	v := victim.Start(t, "writer", "/dev/null", "3")
	v.Hear()
	move(t, a, fmt.Sprint(v.Pid))
	freeze := freezerOf(t, sys, a)
	freeze(true)
	freeze(false)
	v.Say("go")
	require.Equal(t, "wrote 3", v.Hear())
	require.Empty(t, v.Stop())
}

// What is moved into a frozen container is in its namespaces first, and frozen then.
func TestMoveIntoFrozen(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("freezer", "uts", "ipc"))
	a := mkdir(t, dir+"/a")
	for _, victims := range [][]string{{"single"}, {"threads", "8"}} {
		v := victim.Start(t, victims[0], victims[1:]...)
		freeze := freezerOf(t, sys, a)
		freeze(true)
		move(t, a, fmt.Sprint(v.Pid))
		freeze(true)
		require.Equal(t, []string{"uts:[" + linkTarget(t, a+"/uts.ns") + "]"}, namespacesOf(t, v.Pid, "uts"))
		freeze(false)
		move(t, dir, fmt.Sprint(v.Pid))
		require.Empty(t, v.Stop())
	}
}

func controller(sys *proxy.System, name string) bool {
	return slices.ContainsFunc(sys.Subsystems(), func(i proxy.SubsystemInfo) bool {
		return i.Name == name && i.Kind == proxy.KindController
	})
}

// subtreeControls returns what every group of v2 has enabled; nothing where v2 is not mounted.
func subtreeControls(t *testing.T) map[string]string {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	require.NoError(t, err)
	controls := map[string]string{}
	for _, m := range mounts {
		require.NoError(t, filepath.WalkDir(m.Mountpoint, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // somebody else's
			}
			if err == nil && d.Name() == "cgroup.subtree_control" {
				controls[filepath.Dir(path)] = read(t, path)
			}
			return err
		}))
	}
	return controls
}

// sameControls fails where a group of v2 that was there before has enabled something else now.
func sameControls(t *testing.T, before map[string]string) {
	for path, enabled := range subtreeControls(t) {
		if had, ok := before[path]; ok {
			require.Equal(t, had, enabled, path)
		}
	}
}
