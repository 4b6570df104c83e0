package fs_test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
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
