package subsystems_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
)

// The processes by which rcfs keeps containers are not moved, neither by one that has bound their
// subsystem nor by another. A program that is only called like them is.
func TestKeepersAreNotMoved(t *testing.T) {
	sys := rig.System(t)
	kept := mount(t, sys, rig.Spec("pid", "time", "userns"))
	mkdir(t, kept+"/a")
	b := mkdir(t, kept+"/b")
	other := mkdir(t, mount(t, sys, rig.Spec("pids", "uts"))+"/c")
	pids := keepers(t)
	require.Len(t, pids, 6)
	for _, pid := range pids {
		before := read(t, fmt.Sprintf("/proc/%d/cgroup", pid)) + link(t, pid, "uts") + link(t, pid, "user")
		for _, dir := range []string{kept, b, other} {
			require.Equal(t, unix.EBUSY, write(dir+"/cgroup.procs", fmt.Sprint(pid)))
			require.Contains(t, read(t, dir+"/rcfs.error"), ": rcfs keeps a container by this process: busy (EBUSY)")
		}
		require.Equal(t, before, read(t, fmt.Sprintf("/proc/%d/cgroup", pid))+link(t, pid, "uts")+link(t, pid, "user"))
	}
	sleep, err := exec.LookPath("sleep")
	require.NoError(t, err)
	namesake := t.TempDir() + "/rcfs-keeper"
	require.NoError(t, os.Symlink(sleep, namesake))
	cmd := exec.Command(namesake, "1000")
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	require.Equal(t, "rcfs-keeper\n", read(t, fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid)))
	move(t, other, fmt.Sprint(cmd.Process.Pid))
}
