package subsystems_test

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// A limit is set in the container's namespace and nowhere else, and its tasks see it.
func TestIPCLimits(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("ipc"))
	a := mkdir(t, dir+"/a")
	for file, path := range map[string]string{
		"ipc.shmmax":         "/proc/sys/kernel/shmmax",
		"ipc.msgmni":         "/proc/sys/kernel/msgmni",
		"ipc.mqueue.msg_max": "/proc/sys/fs/mqueue/msg_max",
	} {
		host := read(t, path)
		require.Equal(t, host, read(t, dir+"/"+file), "the root's is the machine's")
		require.NoError(t, write(a+"/"+file, "23\n"))
		require.Equal(t, "23\n", read(t, a+"/"+file))
		require.Equal(t, host, read(t, path))
		out, err := exec.Command("nsenter", "--ipc="+a+"/ipc.ns", "cat", path).CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Equal(t, "23\n", string(out))
	}
	require.NoError(t, write(a+"/ipc.sem", "250\t32000 32 128"))
	require.Equal(t, "250\t32000\t32\t128\n", read(t, a+"/ipc.sem"))

	require.Equal(t, unix.EINVAL, write(a+"/ipc.shmmax", "many\n"))
	require.Equal(t, unix.EINVAL, write(a+"/ipc.shmmax", "\n"))
	require.Contains(t, read(t, a+"/rcfs.error"), "ipc.shmmax")
}

// The writer's capabilities count, not ours.
func TestIPCLimitsNeedCapability(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("ipc"))
	a := mkdir(t, dir+"/a")
	before := read(t, a+"/ipc.shmmax")
	v := victim.Start(t, "mover", a+"/ipc.shmmax", "+nocap")
	v.Say("4096")
	require.Equal(t, "wrote -1 EPERM", v.Hear())
	require.Equal(t, before, read(t, a+"/ipc.shmmax"))
}
