package fs_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// The release agent is run with the container's path, once each time it becomes empty: when the
// last task leaves, when it ends, and when the last child goes.
func TestReleaseAgent(t *testing.T) {
	// The kernel starts it outside of our mount namespace.
	work := t.TempDir()
	agent, log := work+"/agent", work+"/log"
	require.NoError(t, os.WriteFile(agent, fmt.Appendf(nil, "#!/bin/sh\necho \"$# $1 $(pwd) $HOME\" >> %s\n", log), 0o755))
	spec := rig.Spec("pids", "uts")
	spec.ReleaseAgent = agent
	dir := mount(t, rig.System(t), spec)
	require.Equal(t, agent+"\n", read(t, dir+"/release_agent"))
	a := mkdir(t, dir+"/a")
	require.NoError(t, write(a+"/notify_on_release", "1"))
	b := mkdir(t, a+"/b")
	require.Equal(t, "1\n", read(t, b+"/notify_on_release"), "inherited")
	heard := func(want ...string) {
		t.Helper()
		rig.Eventually(t, func() string {
			text, _ := os.ReadFile(log)
			if got := strings.Fields(strings.ReplaceAll(string(text), " / /", "")); strings.Join(got, " ") != strings.Join(want, " ") {
				return fmt.Sprintf("%q instead of %q", got, want)
			}
			return ""
		})
	}
	v := victim.Start(t, "idle")
	move(t, b, fmt.Sprint(v.Pid))
	require.Equal(t, "populated 1\n", read(t, a+"/rcfs.events"))
	move(t, dir, fmt.Sprint(v.Pid))
	require.Equal(t, "populated 0\n", read(t, a+"/rcfs.events"))
	heard("1", "/a/b")
	move(t, b, fmt.Sprint(v.Pid))
	require.Empty(t, v.Stop())
	heard("1", "/a/b", "1", "/a/b")
	require.NoError(t, unix.Rmdir(b))
	heard("1", "/a/b", "1", "/a/b", "1", "/a")

	// Who could not start it as root may not name it.
	require.NoError(t, os.Chmod(dir+"/release_agent", 0o666))
	err := as(1000, "echo /bin/true > "+dir+"/release_agent")
	require.ErrorContains(t, err, "Operation not permitted")
	require.Equal(t, unix.EINVAL, write(dir+"/release_agent", "relative"))
	require.NoError(t, write(dir+"/release_agent", "\n"))
	require.Equal(t, "\n", read(t, dir+"/release_agent"))
}

// rcfs.kill ends a fork bomb, and whatever else is in the container and below, and nothing more.
func TestKill(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pids"))
	a := mkdir(t, dir+"/a")
	b := mkdir(t, a+"/b")
	mkdir(t, dir+"/ab")
	require.NoError(t, write(a+"/pids.max", "300"))
	bystander := victim.Start(t, "idle")
	move(t, dir+"/ab", fmt.Sprint(bystander.Pid))
	bomb := exec.Command("bash", "-c", "read; bomb() { bomb & bomb; }; bomb 2>/dev/null")
	stdin, err := bomb.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, bomb.Start())
	move(t, b, fmt.Sprint(bomb.Process.Pid))
	_, err = fmt.Fprintln(stdin)
	require.NoError(t, err)
	rig.Eventually(t, func() string {
		if n := strings.Count(read(t, b+"/cgroup.procs"), "\n"); n < 100 {
			return fmt.Sprint(n, " processes")
		}
		return ""
	})
	require.Equal(t, unix.EINVAL, write(a+"/rcfs.kill", "2"))
	require.NoError(t, write(a+"/rcfs.kill", "1\n"))
	bomb.Wait()
	rig.Eventually(t, func() string {
		for { // the orphans are ours, and the controller counts them until they are reaped
			if pid, _ := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 {
				break
			}
		}
		if n := read(t, a+"/pids.current"); n != "0\n" {
			return "processes left: " + n
		}
		return read(t, b+"/cgroup.procs")
	})
	require.Equal(t, unix.ENOENT, write(dir+"/rcfs.kill", "1"), "not in the root")
	require.Empty(t, bystander.Stop())
}

// Ids are those of the writer's and the reader's pid namespace.
func TestIdsOfAnotherPidNamespace(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pids", "pid"))
	a := mkdir(t, dir+"/a")
	require.NoError(t, write(dir+"/rcfs.unshare", "-pid"))
	b := mkdir(t, dir+"/b") // in which our namespace remains
	outside := victim.Start(t, "idle")
	move(t, b, fmt.Sprint(outside.Pid))
	script := fmt.Sprintf(`sleep 1000 &
echo $! >%[1]s/tasks && echo 1 >%[1]s/tasks
echo $!
echo $(head -2 %[1]s/cgroup.procs)
cat %[1]s/pid.init
cat %[3]s/pid.init
echo $! >%[3]s/tasks
cat %[3]s/rcfs.error
echo %[2]d >%[1]s/tasks
cat %[1]s/rcfs.error
kill $!`, b, outside.Pid, a)
	out, err := exec.Command("sh", "-c", `unshare --pid --fork --mount-proc bash -c "$1" 2>/run/said; exit 0`, "sh", script).Output()
	require.NoError(t, err)
	said := read(t, "/run/said")
	require.NoError(t, os.Remove("/run/said"))
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	require.Len(t, lines, 6, "%s", said)
	require.Equal(t, "2", lines[0], "the second process of its namespace")
	require.Equal(t, "1 2", lines[1], "without the task outside")
	require.Equal(t, []string{"0", "0"}, lines[2:4], "init, and the keeper of a container that is not below")
	require.Contains(t, lines[4], `attach 2 "/a": pid: `)
	require.NotContains(t, read(t, a+"/rcfs.error"), "attach 2 ", "not our number")
	require.Contains(t, lines[5], "no such task (ESRCH)")
	require.Equal(t, fmt.Sprintln(outside.Pid), read(t, b+"/cgroup.procs"))
	require.Empty(t, outside.Stop())
}
