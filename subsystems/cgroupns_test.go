package subsystems_test

import (
	"fmt"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// The groups of the container are the roots that its tasks see, whichever of the two is bound first.
func TestCgroupNamespaceRoots(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("blkio", "cgroupns", "pids"))
	a := mkdir(t, dir+"/a")
	v := victim.Start(t, "threads", "3")
	move(t, a, fmt.Sprint(v.Pid))
	require.Equal(t, target(t, a+"/cgroupns.ns", "cgroup"), link(t, v.Pid, "cgroup"))
	require.Contains(t, read(t, fmt.Sprintf("/proc/%d/cgroup", v.Pid)), fmt.Sprintf(":pids:/%s/a\n", rig.Base()))
	out, err := exec.Command("nsenter", "--cgroup="+a+"/cgroupns.ns", "cat", fmt.Sprintf("/proc/%d/cgroup", v.Pid)).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), ":pids:/\n")
	require.Contains(t, string(out), ":blkio:/\n")
	require.Contains(t, string(out), ":cpu:/\n")
	require.Contains(t, string(out), ":/a\n", "the roster shows the container")
	move(t, dir, fmt.Sprint(v.Pid))
	require.Empty(t, v.Stop())
}
