package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"rcfs/testdata/rig"
)

// Debian's cgroup-tools work on a mount of rcfs that looks to them like one of cgroup v1, and what
// they move goes into the namespaces too.
func TestCgroupTools(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "cpu,pids,cpuset,uts")
	mounts := dir + ".mounts"
	require.NoError(t, os.WriteFile(mounts, fmt.Appendf(nil, "none %s cgroup rw,cpu,pids,cpuset 0 0\n", dir), 0o644))
	// In a mount namespace of its own a tool sees no other mounts than this one.
	tool := func(args ...string) string {
		t.Helper()
		const script = `mount --bind "$0" /proc/$$/mounts && exec "$@"`
		return ok(t, "unshare", append([]string{"--mount", "sh", "-c", script, mounts}, args...)...)
	}
	const group = "cpu,pids,cpuset:web"
	tool("cgcreate", "-g", group)
	require.NoError(t, os.WriteFile(dir+"/web/uts.hostname", []byte("web\n"), 0))
	assert.Equal(t, "cpuset,cpu,pids:/\ncpuset,cpu,pids:/web\n", tool("lscgroup"))
	tool("cgset", "-r", "pids.max=50", "web")
	assert.Equal(t, "web:\npids.max: 50\ncpu.shares: 1024\n\n", tool("cgget", "-r", "pids.max", "-r", "cpu.shares", "web"))

	sleeper := exec.Command("sleep", "1000")
	require.NoError(t, sleeper.Start())
	t.Cleanup(func() { sleeper.Process.Kill(); sleeper.Wait() })
	pid := fmt.Sprint(sleeper.Process.Pid)
	tool("cgclassify", "-g", group, pid)
	tasks, err := os.ReadFile(dir + "/web/tasks")
	require.NoError(t, err)
	assert.Equal(t, pid+"\n", string(tasks))
	assert.Equal(t, "web\n", ok(t, "nsenter", "--target", pid, "--uts", "uname", "-n"))

	out := tool("cgexec", "-g", group, "sh", "-c", "uname -n; cat /proc/self/cgroup")
	assert.True(t, strings.HasPrefix(out, "web\n"), out)
	assert.Contains(t, out, fmt.Sprintf(":pids:/%s/web\n", rig.Base()))
	tool("cgdelete", "-r", group)
	assert.NoDirExists(t, dir+"/web")
	tasks, err = os.ReadFile(dir + "/tasks")
	require.NoError(t, err)
	assert.Contains(t, strings.Fields(string(tasks)), pid, "what was in it is in the root")
}
