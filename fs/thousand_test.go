package fs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// A thousand containers, three deep below one, are made with a limit in each, filled, emptied and
// removed, in every hierarchy that this machine has for tests. Nothing of them is left, and each of
// v2's groups that is not ours has enabled what it had before.
func TestThousandContainers(t *testing.T) {
	before := subtreeControls(t)
	t.Run("mounted", thousandContainers)
	sameControls(t, before)
	rig.Eventually(t, leftGroups)
	pins, err := filepath.Glob("/run/rcfs/ns/*/*")
	require.NoError(t, err)
	require.Empty(t, pins)
}

func thousandContainers(t *testing.T) {
	sys := rig.System(t)
	names := []string{"uts"}
	for _, info := range sys.Subsystems() {
		if info.Kind == proxy.KindController && info.Backend != "" && rig.Free(info) {
			names = append(names, info.Name)
		}
	}
	dir := mount(t, sys, rig.Spec(names...))

	top := mkdir(t, dir+"/top")
	levels := [][]string{{top}, nil, nil, nil}
	for level, width := range []int{9, 10, 10} {
		for _, parent := range levels[level] {
			for i := range width {
				levels[level+1] = append(levels[level+1], mkdir(t, fmt.Sprintf("%s/%d", parent, i)))
			}
		}
	}
	var all []string
	for level, containers := range levels {
		for _, c := range containers {
			require.NoError(t, write(c+"/pids.max", fmt.Sprint([]int{1100, 120, 20, 8}[level])))
		}
		all = append(all, containers...)
	}
	require.Len(t, all, 1000)

	pids := readers(t, victim.Times(len(all)))
	step := len(all) / len(pids)
	leaves := 0
	for i, pid := range pids { // on a slow machine the last ones, which are leaves
		c := all[len(all)-1-i*step]
		move(t, c, pid)
		require.Equal(t, pid+"\n", read(t, c+"/cgroup.procs"))
		if strings.Count(strings.TrimPrefix(c, top), "/") == 3 {
			leaves++
		}
	}
	require.Greater(t, leaves, len(pids)/2)
	require.Equal(t, fmt.Sprintln(len(pids)), read(t, top+"/pids.current"))

	// Each level's limit is one for a task in the last leaf.
	leaf := all[len(all)-1]
	fork := fmt.Sprintf("sh -c 'echo $$ > %s/tasks; /bin/true; true' 2>&1; true", leaf)
	for c := leaf; c != dir; c = filepath.Dir(c) {
		limit := read(t, c+"/pids.max")
		require.NoError(t, write(c+"/pids.max", fmt.Sprint(atoi(strings.TrimSpace(read(t, c+"/pids.current")))+1)))
		require.Contains(t, shell(t, fork), "annot fork", c)
		require.NoError(t, write(c+"/pids.max", limit))
		require.Empty(t, shell(t, fork))
	}

	require.NoError(t, os.WriteFile(dir+"/cgroup.procs", []byte(strings.Join(pids, "\n")+"\n"), 0))
	require.Equal(t, "0\n", read(t, top+"/pids.current"))
	for i := len(all) - 1; i >= 0; i-- {
		rig.Eventually(t, func() string {
			if err := unix.Rmdir(all[i]); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Sprintf("rmdir %s: %v: %s", all[i], err, read(t, all[i]+"/rcfs.error"))
			}
			return ""
		})
	}
}

// readers starts processes that wait for the end of the test, and returns their ids.
func readers(t *testing.T, n int) []string {
	cmd := exec.Command("sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do (read x; exit 0) <&3 & i=$((i+1)); done; wait", n))
	r, w, err := os.Pipe()
	require.NoError(t, err)
	cmd.ExtraFiles = []*os.File{r}
	require.NoError(t, cmd.Start())
	r.Close()
	t.Cleanup(func() { w.Close(); cmd.Wait() })
	var pids []string
	rig.Eventually(t, func() string {
		out, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
		if pids = strings.Fields(string(out)); len(pids) < n {
			return fmt.Sprint(len(pids), " children")
		}
		return ""
	})
	return pids
}

// leftGroups names the hierarchies in which groups of the tests are left: in those that are mounted
// somewhere the tests' directory, in the others any group.
func leftGroups() string {
	var left []string
	shown := map[string]bool{}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return err.Error()
	}
	for _, m := range mounts {
		for option := range strings.SplitSeq(m.VFSOptions, ",") {
			shown[option] = true
		}
		if _, err := os.Stat(m.Mountpoint + "/" + rig.Base()); !errors.Is(err, fs.ErrNotExist) {
			left = append(left, fmt.Sprint(m.Mountpoint, " ", err))
		}
	}
	table, err := os.ReadFile("/proc/cgroups")
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(table)) {
		// Name, hierarchy, groups, enabled. Hierarchy 0 is v2's.
		if f := strings.Fields(line); f[3] == "1" && f[1] != "0" && !shown[f[0]] && f[2] != "1" {
			left = append(left, line)
		}
	}
	return strings.Join(left, ", ")
}
