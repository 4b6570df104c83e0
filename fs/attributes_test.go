package fs_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
)

// Directories and files look as the kernel's own do: no sizes, the kernel's modes, at least one
// link. A directory has two, and one more for each child.
func TestAttributes(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("pids", "uts"))
	a := mkdir(t, dir+"/a")
	mkdir(t, a+"/b")
	mkdir(t, a+"/c")
	for _, c := range []struct {
		name  string
		mode  uint32
		links int
	}{
		{"", unix.S_IFDIR | 0o555, 3},
		{"/a", unix.S_IFDIR | 0o755, 4},
		{"/a/b", unix.S_IFDIR | 0o755, 2},
		{"/a/tasks", unix.S_IFREG | 0o644, 1},
		{"/a/cgroup.procs", unix.S_IFREG | 0o644, 1},
		{"/a/notify_on_release", unix.S_IFREG | 0o644, 1},
		{"/a/rcfs.events", unix.S_IFREG | 0o444, 1},
		{"/a/rcfs.kill", unix.S_IFREG | 0o200, 1},
		{"/a/rcfs.unshare", unix.S_IFREG | 0o644, 1},
		{"/a/rcfs.proxies", unix.S_IFREG | 0o444, 1},
		{"/a/rcfs.error", unix.S_IFREG | 0o444, 1},
		{"/release_agent", unix.S_IFREG | 0o644, 1},
		{"/rcfs.subsystems", unix.S_IFREG | 0o444, 1},
		{"/a/pids.max", unix.S_IFREG | 0o644, 1},
		{"/a/pids.current", unix.S_IFREG | 0o444, 1},
		{"/a/uts.hostname", unix.S_IFREG | 0o644, 1},
		{"/a/uts.ns", unix.S_IFLNK | 0o777, 1},
	} {
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(dir+c.name, &st), c.name)
		require.Equal(t, fmt.Sprintf("%o", c.mode), fmt.Sprintf("%o", st.Mode), c.name)
		require.EqualValues(t, c.links, st.Nlink, c.name)
		require.Zero(t, st.Size, c.name)
		require.Zero(t, st.Uid, c.name)
		require.Positive(t, st.Blksize, c.name)
	}
	for _, name := range []string{"release_agent", "rcfs.subsystems"} {
		require.NoFileExists(t, a+"/"+name, "it is the root's alone")
	}
	require.NoFileExists(t, dir+"/rcfs.kill")
	require.NoFileExists(t, dir+"/pids.max", "the kernel has it in children only")
}

// statfs(2), as df(1) and stat -f ask, is answered.
func TestStatfs(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("uts"))
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &fs))
	require.EqualValues(t, 0x65735546, fs.Type, "FUSE_SUPER_MAGIC")
	require.Positive(t, fs.Bsize)
	require.EqualValues(t, 255, fs.Namelen)
	require.Zero(t, fs.Blocks)
}

// What programs do to any file that they write, truncating and syncing it, does not stand in
// their way and changes nothing.
func TestTruncateAndSync(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pids"))
	a := mkdir(t, dir+"/a")
	require.NoError(t, write(a+"/pids.max", "7"))
	f, err := os.OpenFile(a+"/pids.max", os.O_WRONLY|os.O_TRUNC, 0)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Truncate(0))
	require.NoError(t, f.Sync())
	require.NoError(t, unix.Truncate(a+"/tasks", 0))
	require.NoError(t, unix.Utimes(a+"/tasks", make([]unix.Timeval, 2)))
	require.Equal(t, "7\n", read(t, a+"/pids.max"))
	d, err := os.Open(a)
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, d.Sync())
}
