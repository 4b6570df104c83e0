package main

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
)

// A remount adds subsystems while there is no container; every view shows their files, and what is
// made from then on has them.
func TestRemountAdds(t *testing.T) {
	machine(t)
	dir, other := place(t), place(t)
	mountOn(t, dir, "uts")
	mountOn(t, other, "uts")
	assert.NoFileExists(t, dir+"/net.devices")
	ok(t, "mount", "-o", "remount,net,"+words("pids"), dir)
	assert.Equal(t, []string{"net", "pids", "uts"}, currentStatus(t).Hierarchies[0].Subsystems)
	for _, view := range []string{dir, other} {
		assert.FileExists(t, view+"/net.devices")
		names, err := os.ReadDir(view)
		require.NoError(t, err)
		var list []string
		for _, e := range names {
			list = append(list, e.Name())
		}
		assert.Contains(t, list, "net.devices")
		assert.Contains(t, list, "net.ns")
	}
	require.NoError(t, os.Mkdir(other+"/a", 0o755))
	devices, err := os.ReadFile(dir + "/a/net.devices")
	require.NoError(t, err)
	assert.Equal(t, "lo\n", string(devices))
	assert.FileExists(t, dir+"/a/pids.max")
	unshare, err := os.ReadFile(dir + "/a/rcfs.unshare")
	require.NoError(t, err)
	assert.Equal(t, "net uts\n", string(unshare))

	// What is there already is no change, and is allowed with containers.
	ok(t, "mount", "-o", "remount,uts,net", dir)
	// The next daemon binds all of it.
	stopDaemon(t)
	mountOn(t, dir, "uts,pids,net")
	devices, err = os.ReadFile(dir + "/a/net.devices")
	require.NoError(t, err)
	assert.Equal(t, "lo\n", string(devices))
	ok(t, "umount", other)
}

// Before Linux 6.5, which refuses to put a mount beneath another, the source is that of the first
// mount.
func TestRemountSource(t *testing.T) {
	machine(t)
	source := "ipc,uts"
	if err := unix.MoveMount(-1, "", -1, "", moveMountBeneath); err == unix.EINVAL {
		source = "uts"
	}
	dir := place(t)
	mountOn(t, dir, "uts")
	ok(t, "mount", "-o", "remount,ipc", dir)
	assert.Equal(t, source, findmnt(t, dir, "SOURCE"))
	assert.Equal(t, []string{dir}, currentStatus(t).Hierarchies[0].Mounts)
	assert.Equal(t, []string{dir}, views(t))

	// Somebody is in it: it stays, and has the new files.
	inside, err := os.Open(dir + "/rcfs.unshare")
	require.NoError(t, err)
	defer inside.Close()
	ok(t, "mount", "-o", "remount,net", dir)
	assert.Equal(t, source, findmnt(t, dir, "SOURCE"))
	assert.FileExists(t, dir+"/net.devices")
	buf := make([]byte, 64)
	n, err := inside.Read(buf)
	require.NoError(t, err)
	assert.Equal(t, "ipc net uts\n", string(buf[:n]))
}

func TestRemountRefused(t *testing.T) {
	machine(t)
	dir, other := place(t), place(t)
	mountOn(t, dir, "uts")
	mountOn(t, other, "net")
	for _, c := range []struct {
		options string
		exit    int
		says    string
	}{
		{"ipc,net", exitMount, `"net": in use by hierarchy "net" mounted on ` + other},
		{"nonsense", exitUsage, `option "nonsense": unknown subsystem or option`},
		{"name=other", exitUsage, `name "other" of hierarchy "uts"`},
		{"base=elsewhere", exitUsage, `base "elsewhere" where it is "` + rig.Base() + `"`},
		{"none,name=uts", exitUsage, `option "none"`},
	} {
		code, _, stderr := call(t, "mount", "-o", "remount,"+c.options, dir)
		assert.Equal(t, c.exit, code, c.options)
		assert.Contains(t, stderr, c.says)
		assert.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
		assert.Equal(t, "uts", findmnt(t, dir, "SOURCE"))
		assert.NoFileExists(t, dir+"/net.devices")
		assert.NoFileExists(t, dir+"/ipc.shmmax")
	}
	require.NoError(t, os.Mkdir(dir+"/a", 0o755))
	code, _, stderr := call(t, "mount", "-o", "remount,ipc", dir)
	assert.Equal(t, exitMount, code)
	assert.Contains(t, stderr, unix.EBUSY.Error())
	assert.NoFileExists(t, dir+"/ipc.shmmax")
	require.NoError(t, os.Remove(dir+"/a"))
	ok(t, "mount", "-o", "remount,ipc", dir)
	assert.FileExists(t, dir+"/ipc.shmmax")
}

// A remount that adds nothing changes flags only.
func TestRemountFlags(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "uts")
	require.NoError(t, os.Mkdir(dir+"/a", 0o755))
	ok(t, "mount", "-o", "remount,ro", dir)
	assert.ErrorIs(t, os.Mkdir(dir+"/b", 0o755), unix.EROFS)
	ok(t, "mount", "-o", "remount,rw", dir)
	require.NoError(t, os.Mkdir(dir+"/b", 0o755))
}
