package subsystems_test

import (
	"fmt"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"rcfs/proxy"
	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// backends returns where the kernel has each subsystem.
func backends(sys *proxy.System) map[string]string {
	list := make(map[string]string)
	for _, info := range sys.Subsystems() {
		list[info.Name] = info.Backend
	}
	return list
}

// The groups of the container are the roots that its tasks see, whichever of the two is bound first.
func TestCgroupNamespaceRoots(t *testing.T) {
	sys := rig.System(t)
	backend := backends(sys)
	block := "blkio"
	if backend["io"] != "" {
		block = "io"
	}
	dir := mount(t, sys, rig.Spec(block, "cgroupns", "pids"))
	a := mkdir(t, dir+"/a")
	v := victim.Start(t, "threads", "3")
	move(t, a, fmt.Sprint(v.Pid))
	require.Equal(t, target(t, a+"/cgroupns.ns", "cgroup"), link(t, v.Pid, "cgroup"))
	group := map[string]string{"v1": ":pids:/" + rig.Base() + "/a\n", "v2": "0::/" + rig.Base() + "/a/.rcfs\n"}
	require.Contains(t, read(t, fmt.Sprintf("/proc/%d/cgroup", v.Pid)), group[backend["pids"]])
	out, err := exec.Command("nsenter", "--cgroup="+a+"/cgroupns.ns", "cat", fmt.Sprintf("/proc/%d/cgroup", v.Pid)).CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, name := range []string{"pids", block} {
		line := map[string]string{"v1": ":" + name + ":/\n", "v2": "0::/\n"}
		require.Contains(t, string(out), line[backend[name]])
	}
	require.Contains(t, string(out), ":/a\n", "the roster shows the container")
	move(t, dir, fmt.Sprint(v.Pid))
	require.Empty(t, v.Stop())
}
