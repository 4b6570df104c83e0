package subsystems_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

func TestUserNamespace(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("userns", "pids", "uts"))
	a, b := mkdir(t, dir+"/a"), mkdir(t, dir+"/b")
	require.Regexp(t, `^ +0 +0 +4294967295\n$`, read(t, dir+"/userns.uid_map"))
	require.Empty(t, read(t, a+"/userns.uid_map"))
	require.Equal(t, unix.EINVAL, write(a+"/userns.uid_map", "x\n"))
	require.NoError(t, write(a+"/userns.uid_map", "0 100000 65536\n"))
	require.NoError(t, write(a+"/userns.gid_map", "0 100000 65536\n"))
	require.Regexp(t, `^ +0 +100000 +65536\n$`, read(t, a+"/userns.uid_map"))
	require.Equal(t, unix.EPERM, write(a+"/userns.uid_map", "0 0 1\n"), "once")

	threads := victim.Start(t, "threads", "2")
	require.Equal(t, unix.EINVAL, write(a+"/tasks", fmt.Sprint(threads.Pid)))
	require.Contains(t, read(t, a+"/rcfs.error"), "threads share their user namespace")
	require.Empty(t, threads.Stop())

	v := victim.Start(t, "single")
	move(t, a, fmt.Sprint(v.Pid))
	require.Equal(t, target(t, a+"/userns.ns", "user"), link(t, v.Pid, "user"))
	require.Equal(t, target(t, a+"/uts.ns", "uts"), link(t, v.Pid, "uts"))
	require.Equal(t, fmt.Sprintln(v.Pid), read(t, a+"/tasks"))

	// There is no way out, and trying to go changes nothing.
	for _, to := range []string{b, dir} {
		require.Equal(t, unix.EPERM, write(to+"/tasks", fmt.Sprint(v.Pid)))
		require.Equal(t, fmt.Sprintln(v.Pid), read(t, a+"/tasks"))
		require.Equal(t, target(t, a+"/uts.ns", "uts"), link(t, v.Pid, "uts"))
	}
	require.Equal(t, link(t, os.Getpid(), "user"), target(t, dir+"/userns.ns", "user"))
	require.Empty(t, v.Stop())
}

// Its groups change as before.
func TestUserNamespaceLeavesGroupsMovable(t *testing.T) {
	sys := rig.System(t)
	users := mkdir(t, mount(t, sys, rig.Spec("userns"))+"/a")
	groups := mount(t, sys, rig.Spec("pids"))
	mkdir(t, groups+"/g")
	v := victim.Start(t, "single")
	move(t, users, fmt.Sprint(v.Pid))
	move(t, groups+"/g", fmt.Sprint(v.Pid))
	require.Equal(t, fmt.Sprintln(v.Pid), read(t, groups+"/g/tasks"))
	move(t, groups, fmt.Sprint(v.Pid))
	require.Empty(t, v.Stop())
}

// The keeper's user is the machine's root, so its namespace's root must get no hold on it.
func TestKeeperIsOutOfReach(t *testing.T) {
	a := mkdir(t, mount(t, rig.System(t), rig.Spec("userns"))+"/a")
	require.NoError(t, write(a+"/userns.uid_map", "0 100000 65536\n"))
	require.NoError(t, write(a+"/userns.gid_map", "0 100000 65536\n"))
	pids := keepers(t)
	require.Len(t, pids, 1)
	out, err := exec.Command("nsenter", "--user="+a+"/userns.ns", "sh", "-c",
		fmt.Sprintf("id -u; readlink /proc/%d/root || echo no; readlink /proc/self/root", pids[0])).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, "0\nno\n/\n", string(out))
}

// A container's is below its parent's: a task goes down, and not back.
func TestUserNamespacesNest(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("userns", "uts", "pid", "mnt"))
	a := mkdir(t, dir+"/a")
	b := mkdir(t, a+"/b")
	require.Regexp(t, `^ +0 +0 +4294967295\n$`, read(t, a+"/userns.uid_map"), "somebody there owns the one below")
	require.Empty(t, read(t, b+"/userns.uid_map"))
	require.Equal(t, target(t, a+"/userns.ns", ""), above(t, b+"/userns.ns", unix.NS_GET_PARENT))
	require.Equal(t, target(t, a+"/pid.ns", ""), above(t, b+"/pid.ns", unix.NS_GET_PARENT))
	for _, name := range []string{"uts", "pid", "mnt"} {
		require.Equal(t, target(t, b+"/userns.ns", ""), above(t, b+"/"+name+".ns", unix.NS_GET_USERNS), name)
	}
	require.NoError(t, write(b+"/uts.hostname", "deep\n"))

	p := start(t, 0, 0)
	for _, to := range []string{a, b} {
		move(t, to, fmt.Sprint(p.pid))
		requireIn(t, p.pid, to, "userns", "uts", "pid", "mnt")
		require.Equal(t, "0 0 0", p.does("id -u; id -g"))
	}
	require.Equal(t, "0 deep", p.does("uname -n"))
	require.Equal(t, "0 mine", p.does("hostname mine; uname -n"), "it has power over what its namespace owns")
	require.Equal(t, unix.EPERM, write(a+"/tasks", fmt.Sprint(p.pid)))
	requireIn(t, p.pid, b, "userns", "uts", "pid", "mnt")

	// Where root is somebody else, it is who comes first there that owns what is below.
	c := mkdir(t, dir+"/c")
	require.NoError(t, write(c+"/userns.uid_map", "5 100000 10\n"))
	require.NoError(t, write(c+"/userns.gid_map", "5 100000 10\n"))
	mkdir(t, c+"/d")
}

// above returns the inode of a namespace's owner or parent.
func above(t testing.TB, file string, request uint) string {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), request)
	require.NoError(t, err)
	defer unix.Close(fd)
	return target(t, fmt.Sprintf("/proc/self/fd/%d", fd), "")
}
