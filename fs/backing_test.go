package fs_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/fs"
	"rcfs/testdata/rig"
)

// passesThrough says whether this kernel can: FUSE_PASSTHROUGH is of Linux 6.9.
func passesThrough() bool { return rig.KernelIsAtLeast(6, 9) }

// A controller's files are passed through, those of everything else are not; one number for each file, until the
// container is removed.
func TestFilesArePassedThrough(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("pids", "devices", "uts"))
	other := mount(t, sys, rig.Spec("pids", "devices", "uts"))
	a := mkdir(t, dir+"/a")
	var open []*os.File
	want := 0
	check := func() {
		t.Helper()
		if passesThrough() {
			require.Equal(t, want, fs.PassedThrough(dir))
		} else {
			require.Zero(t, fs.PassedThrough(dir))
		}
	}
	for _, name := range []string{"tasks", "rcfs.unshare", "uts.hostname"} {
		read(t, a+"/"+name)
	}
	read(t, dir+"/tasks")
	check()
	for range 3 {
		f, err := os.OpenFile(a+"/pids.max", os.O_RDWR, 0)
		require.NoError(t, err)
		defer f.Close()
		open = append(open, f)
		read(t, a+"/pids.current")
		want = 2
		check()
	}
	read(t, other+"/a/pids.max")
	check()
	require.Equal(t, unix.EINVAL, write(a+"/pids.max", "-1"))
	for i, f := range open {
		value := strings.Repeat("7", i+1) + "\n"
		_, err := f.WriteAt([]byte(value), 0)
		require.NoError(t, err)
		require.Equal(t, value, read(t, other+"/a/pids.max"))
	}
	require.NoError(t, os.Remove(a))
	want = 0
	check()
	require.Zero(t, fs.PassedThrough(other))
	for _, f := range open {
		_, err := f.ReadAt(make([]byte, 10), 0)
		require.ErrorIs(t, err, unix.ENODEV)
	}
}

// Only the container's owner, and whoever the file's mode says, gets at what is passed through.
func TestPassedThroughFilesHaveModes(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pids"))
	a := mkdir(t, dir+"/a")
	require.Error(t, as(1000, "echo 5 > "+a+"/pids.max"))
	require.NoError(t, as(1000, "cat "+a+"/pids.max"))
	require.NoError(t, os.Chmod(a+"/pids.max", 0o660))
	require.Error(t, as(1000, "cat "+a+"/pids.max"))
	require.NoError(t, os.Chown(a+"/pids.max", 0, 1000))
	require.NoError(t, as(1000, "echo 5 > "+a+"/pids.max"))
	require.Equal(t, "5\n", read(t, a+"/pids.max"))
	require.Error(t, as(1001, "echo 6 > "+a+"/pids.max"))
}

// What the kernel has been told to open, and nobody has written down, does not stay open; what is written down does.
func TestLostBackingsAreClosed(t *testing.T) {
	if !passesThrough() {
		t.Skip("files are passed through since Linux 6.9")
	}
	dir := mount(t, rig.System(t), rig.Spec("pids"))
	a := mkdir(t, dir+"/a")
	fd, err := unix.MemfdCreate("lost", unix.MFD_CLOEXEC)
	require.NoError(t, err)
	file := os.NewFile(uintptr(fd), "lost")
	defer file.Close()
	lose := func() int32 {
		id, err := fs.Lose(dir, file)
		require.NoError(t, err)
		return id
	}
	first := lose()
	fs.Resume(dir)
	require.False(t, fs.Close(dir, first))

	held, err := os.OpenFile(a+"/pids.max", os.O_RDWR, 0)
	require.NoError(t, err)
	defer held.Close()
	lost := lose()
	fs.Resume(dir)
	require.False(t, fs.Close(dir, lost))
	require.Equal(t, 1, fs.PassedThrough(dir))
	require.NoError(t, write(a+"/pids.max", "9"), "the kernel would take no other number for the file")
	b := make([]byte, 10)
	n, err := held.ReadAt(b, 0)
	require.Equal(t, "9\n", string(b[:n]), err)
}
