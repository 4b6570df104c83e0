package fs_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// A zombie is no member: it is not listed, does not populate its container and does not keep it.
func TestZombiesDoNotCount(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pids", "uts"))
	a := mkdir(t, dir+"/a")
	// Not waited for before the end of the test.
	cmd := exec.Command("sleep", "1000")
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	move(t, a, fmt.Sprint(cmd.Process.Pid))
	require.Equal(t, fmt.Sprintln(cmd.Process.Pid), read(t, a+"/tasks"))
	require.Equal(t, unix.EBUSY, unix.Rmdir(a))
	require.NoError(t, unix.Kill(cmd.Process.Pid, unix.SIGKILL))
	rig.Eventually(t, func() string {
		if stat := read(t, fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid)); !strings.Contains(stat, ") Z ") {
			return "no zombie: " + stat
		}
		return ""
	})
	rig.Eventually(t, func() string { return read(t, a+"/tasks") })
	require.Empty(t, read(t, a+"/cgroup.procs"))
	require.Equal(t, "populated 0\n", read(t, a+"/rcfs.events"))
	require.Empty(t, read(t, a+"/rcfs.proxies"))
	require.NoError(t, unix.Rmdir(a))
}

// The members are listed in ascending order, however they came.
func TestTasksAreSorted(t *testing.T) {
	a := mkdir(t, mount(t, rig.System(t), rig.Spec("pids"))+"/a")
	victims := []*victim.Victim{victim.Start(t, "threads", "3"), victim.Start(t, "single"), victim.Start(t, "threads", "2")}
	for _, i := range []int{1, 2, 0} {
		move(t, a, fmt.Sprint(victims[i].Pid))
	}
	for file, pattern := range map[string]string{"cgroup.procs": "/proc/%d", "tasks": "/proc/%d/task/*"} {
		var want, got []int
		for _, v := range victims {
			members, err := filepath.Glob(fmt.Sprintf(pattern, v.Pid))
			require.NoError(t, err)
			for _, m := range members {
				want = append(want, atoi(filepath.Base(m)))
			}
		}
		for _, id := range strings.Fields(read(t, a+"/"+file)) {
			got = append(got, atoi(id))
		}
		require.IsIncreasing(t, got, file)
		require.ElementsMatch(t, want, got, file)
	}
	for _, v := range victims {
		require.Empty(t, v.Stop())
	}
}

// What has moved itself and ended is no member any more, however soon one asks: its container can be
// removed.
func TestRmdirRightAfterAMoverHasEnded(t *testing.T) {
	a := mkdir(t, mount(t, rig.System(t), rig.Spec("pids", "uts"))+"/a")
	for i := range victim.Times(500) {
		out, err := exec.Command("sh", "-c", "sh -c 'echo 0 >"+a+"/tasks'; exit $?").CombinedOutput() // a grandchild: see shell
		require.NoError(t, err, "%s", out)
		if err := unix.Rmdir(a); err != nil {
			t.Fatalf("rmdir %d: %v: %s", i, err, read(t, a+"/rcfs.error"))
		}
		mkdir(t, a)
	}
}
