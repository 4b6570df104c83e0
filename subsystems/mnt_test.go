package subsystems_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// link returns the namespace of a task as /proc names it.
func link(t testing.TB, pid int, name string) string {
	t.Helper()
	s, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
	require.NoError(t, err)
	return s
}

// target returns the namespace that a container's link leads to, as /proc names it.
func target(t testing.TB, file, name string) string {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(file, &st))
	return fmt.Sprintf("%s:[%d]", name, st.Ino)
}

func TestMountNamespace(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("mnt"))
	home := link(t, os.Getpid(), "mnt")
	require.Equal(t, home, target(t, dir+"/mnt.ns", "mnt"))
	a, b := mkdir(t, dir+"/a"), mkdir(t, dir+"/b")
	require.NotEqual(t, target(t, a+"/mnt.ns", "mnt"), target(t, b+"/mnt.ns", "mnt"))

	v := victim.Start(t, "single")
	move(t, a, fmt.Sprint(v.Pid))
	require.Equal(t, target(t, a+"/mnt.ns", "mnt"), link(t, v.Pid, "mnt"))

	// A mount in it is seen by its tasks and nobody else.
	out, err := exec.Command("nsenter", "--mount="+a+"/mnt.ns", "sh", "-c", "mkdir -p /run/there && mount -t tmpfs t /run/there && echo yes >/run/there/file").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, "yes\n", read(t, fmt.Sprintf("/proc/%d/root/run/there/file", v.Pid)))
	_, err = os.Stat("/run/there/file")
	require.ErrorIs(t, err, os.ErrNotExist)
	os.Remove("/run/there")

	move(t, b, fmt.Sprint(v.Pid))
	move(t, dir, fmt.Sprint(v.Pid))
	require.Equal(t, home, link(t, v.Pid, "mnt"))
	require.Empty(t, v.Stop())
}

func TestMountNamespaceRefusals(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("mnt"))
	a := mkdir(t, dir+"/a")
	v := victim.Start(t, "threads", "4")
	require.Equal(t, unix.EINVAL, write(a+"/tasks", fmt.Sprint(v.Pid)))
	require.Contains(t, read(t, a+"/rcfs.error"), "threads share their root and working directory")
	require.Empty(t, v.Stop())

	s := victim.Start(t, "single", "+chroot")
	require.Equal(t, unix.EPERM, write(a+"/tasks", fmt.Sprint(s.Pid)))
	require.Contains(t, read(t, a+"/rcfs.error"), "root directory")
	require.Empty(t, read(t, a+"/tasks"))
	require.Empty(t, s.Stop())
}

// What rcfs keeps for one container is not kept alive by another's copy of the mounts.
func TestMountNamespacesHoldNoOthers(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("mnt", "net"))
	mkdir(t, dir+"/a")
	mkdir(t, dir+"/b") // copies the mounts that pin the root's network and a's
	v := victim.Start(t, "single")
	move(t, dir+"/b", fmt.Sprint(v.Pid))
	require.NoError(t, unix.Rmdir(dir+"/a"))
	mounts := read(t, fmt.Sprintf("/proc/%d/mountinfo", v.Pid))
	require.NotContains(t, mounts, "deleted")
	require.Equal(t, 1, countNetPins(mounts), "the root's is left:\n%s", mounts)
	move(t, dir, fmt.Sprint(v.Pid))
	require.Empty(t, v.Stop())
}

func countNetPins(mountinfo string) int { return strings.Count(mountinfo, " net:[") }

// A container's copy of the mounts keeps a view of the hierarchy that nobody else sees, and no longer
// than the container is there.
func TestMountNamespaceKeepsItsView(t *testing.T) {
	sys := rig.System(t)
	first, done := mountOnce(t, sys, rig.Spec("mnt"))
	mkdir(t, first+"/a")
	require.NoError(t, unix.Unmount(first, 0))
	require.NoError(t, os.Remove(first))
	second := mount(t, sys, rig.Spec("mnt"))
	a := second + "/a"
	v := victim.Start(t, "single")
	move(t, a, fmt.Sprint(v.Pid))
	require.Equal(t, target(t, a+"/mnt.ns", "mnt"), link(t, v.Pid, "mnt"))
	move(t, second, fmt.Sprint(v.Pid))
	require.Empty(t, v.Stop())
	require.NoError(t, unix.Rmdir(a))
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the first view has not ended")
	}
}
