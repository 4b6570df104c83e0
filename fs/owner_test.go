package fs_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"rcfs/testdata/rig"
)

// A set-user-id program belongs to who started it as far as groups go, as on cgroup v1. Into
// namespaces, which change what it finds, only its own user may move it: all its uids have to be
// the writer's.
func TestSetuidTarget(t *testing.T) {
	sys := rig.System(t)
	groups, namespaces := mount(t, sys, rig.Spec("pids")), mount(t, sys, rig.Spec("uts"))
	g, n := mkdir(t, groups+"/g"), mkdir(t, namespaces+"/n")
	require.NoError(t, os.Chown(g, 1000, 1000))
	require.NoError(t, os.Chown(n, 1000, 1000))
	cmd := exec.Command("setpriv", "--ruid", "1000", "sleep", "1000")
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	pid := fmt.Sprint(cmd.Process.Pid)
	rig.Eventually(t, func() string {
		if status := read(t, "/proc/"+pid+"/status"); !strings.Contains(status, "Uid:\t1000\t0\t0\t0\n") {
			return "it is not yet what it shall be"
		}
		return ""
	})
	before := world(t, namespaces, namespaces, cmd.Process.Pid)
	require.ErrorContains(t, as(1000, "echo "+pid+" > "+n+"/tasks"), "Permission denied")
	require.Contains(t, read(t, n+"/rcfs.error"), "neither root nor the owner of the task (EACCES)")
	require.Equal(t, before, world(t, namespaces, namespaces, cmd.Process.Pid))
	require.ErrorContains(t, as(1001, "echo "+pid+" > "+g+"/tasks"), "Permission denied")
	require.NoError(t, as(1000, "echo "+pid+" > "+g+"/tasks"))
	require.Equal(t, pid+"\n", read(t, g+"/tasks"))
}
