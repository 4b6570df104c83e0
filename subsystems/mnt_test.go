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

// where returns the names of a task's root and working directory.
func where(t testing.TB, pid int) [2]string {
	t.Helper()
	var names [2]string
	for i, link := range []string{"root", "cwd"} {
		name, err := os.Readlink(fmt.Sprintf("/proc/%d/%s", pid, link))
		require.NoError(t, err)
		names[i] = name
	}
	return names
}

// directory makes a directory whose name is the same in every mount namespace of the test.
func directory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "dir")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestMountKeepsWorkingDirectory(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("mnt"))
	a := mkdir(t, dir+"/a")
	there := directory(t)
	v := victim.Start(t, "single", "+in="+there)
	for _, to := range []string{a, dir, a, dir} {
		move(t, to, fmt.Sprint(v.Pid))
		require.Equal(t, target(t, to+"/mnt.ns", "mnt"), link(t, v.Pid, "mnt"))
		require.Equal(t, [2]string{"/", there}, where(t, v.Pid))
	}
	require.Empty(t, v.Stop())

	// It may be in the tree itself, whose daemon must answer meanwhile.
	s := victim.Start(t, "single", "+in="+a)
	move(t, a, fmt.Sprint(s.Pid))
	require.Equal(t, [2]string{"/", a}, where(t, s.Pid))
	move(t, dir, fmt.Sprint(s.Pid))
	require.Empty(t, s.Stop())
}

// withoutRoster runs f while the kernel's directory of a container in the roster is gone, so that
// the last step of a move fails.
func withoutRoster(t testing.TB, hierarchy, container string, f func()) {
	t.Helper()
	roster := t.TempDir()
	require.NoError(t, unix.Mount("none", roster, "cgroup", 0, "none,name=rcfs."+hierarchy))
	defer func() { require.NoError(t, unix.Unmount(roster, 0)) }()
	require.NoError(t, unix.Rmdir(roster+"/"+container))
	f()
	require.NoError(t, unix.Mkdir(roster+"/"+container, 0o755))
}

// A move that fails after the task has entered brings it back to its directory, also to one that has
// no name any more.
func TestMountUndo(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("mnt", "uts"))
	a := mkdir(t, dir+"/a")
	for name, gone := range map[string]bool{"there": false, "removed": true} {
		t.Run(name, func(t *testing.T) {
			in := directory(t)
			v := victim.Start(t, "single", "+in="+in)
			if gone {
				require.NoError(t, os.Remove(in))
			}
			before, uts, mnt := where(t, v.Pid), link(t, v.Pid, "uts"), link(t, v.Pid, "mnt")
			var was, is unix.Stat_t
			require.NoError(t, unix.Stat(fmt.Sprintf("/proc/%d/cwd", v.Pid), &was))
			withoutRoster(t, "mnt-uts", "a", func() {
				require.Error(t, write(a+"/tasks", fmt.Sprint(v.Pid)))
				require.Contains(t, read(t, a+"/rcfs.error"), "roster")
				require.NotContains(t, read(t, a+"/rcfs.error"), "put back")
			})
			require.Equal(t, before, where(t, v.Pid))
			require.NoError(t, unix.Stat(fmt.Sprintf("/proc/%d/cwd", v.Pid), &is))
			require.Equal(t, was.Ino, is.Ino)
			require.Equal(t, uts, link(t, v.Pid, "uts"))
			require.Equal(t, mnt, link(t, v.Pid, "mnt"))
			require.Empty(t, v.Stop())
		})
	}
}

// With mnt.split_fs processes with threads enter.
func TestMountSplitFS(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("mnt"))
	a, b := mkdir(t, dir+"/a"), mkdir(t, dir+"/b")
	require.Equal(t, "0\n", read(t, a+"/mnt.split_fs"))
	require.Equal(t, unix.EINVAL, write(a+"/mnt.split_fs", "2\n"))
	in := directory(t)
	v := victim.Start(t, "threads", "4", "+in="+in)
	require.Equal(t, unix.EINVAL, write(a+"/tasks", fmt.Sprint(v.Pid)))
	require.NoError(t, write(a+"/mnt.split_fs", "1\n"))
	require.NoError(t, write(a+"/mnt.split_fs", "1\n"), "twice")
	require.Equal(t, "1\n", read(t, a+"/mnt.split_fs"))
	require.Equal(t, "0\n", read(t, b+"/mnt.split_fs"))
	// As long as no thread is born they share nothing, and can go where it is 0.
	require.NoError(t, write(dir+"/mnt.split_fs", "1\n"))
	rig.Eventually(t, func() string {
		move(t, dir, fmt.Sprint(v.Pid))
		move(t, a, fmt.Sprint(v.Pid))
		return words(write(b+"/tasks", fmt.Sprint(v.Pid)))
	})
	for _, to := range []string{a, dir, a, dir} {
		move(t, to, fmt.Sprint(v.Pid))
		for _, tid := range strings.Fields(read(t, to+"/tasks")) {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%s", v.Pid, tid)); err != nil {
				continue // others are in the root, too
			}
			var n int
			fmt.Sscan(tid, &n)
			require.Equal(t, target(t, to+"/mnt.ns", "mnt"), link(t, n, "mnt"))
			require.Equal(t, [2]string{"/", in}, where(t, n))
		}
	}
	require.Empty(t, v.Stop())
	require.NoError(t, write(a+"/mnt.split_fs", "0\n"))
	other := victim.Start(t, "threads", "2")
	require.Equal(t, unix.EINVAL, write(a+"/tasks", fmt.Sprint(other.Pid)))
	require.Empty(t, other.Stop())
}

// A container gets a root file system of its own, for who is in it and who will come.
func TestMountRoot(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("mnt"))
	a := mkdir(t, dir+"/a")
	require.Equal(t, "/\n", read(t, a+"/mnt.root"))
	img := directory(t)
	for _, name := range []string{"/work", "/proc"} {
		require.NoError(t, os.Mkdir(img+name, 0o755))
	}
	require.NoError(t, os.WriteFile(img+"/mark", []byte("mine\n"), 0o644))
	member := victim.Start(t, "single", "+in=/")
	move(t, a, fmt.Sprint(member.Pid))
	if err := write(a+"/mnt.root", img+"\n"); onRamdisk(t) {
		require.Equal(t, unix.EINVAL, err, "the initial ramdisk cannot be left")
		require.Contains(t, read(t, a+"/rcfs.error"), "initial ramdisk")
		require.Equal(t, "/\n", read(t, a+"/mnt.root"))
		require.Empty(t, member.Stop())
		return
	} else if err != nil {
		t.Fatal(err, read(t, a+"/rcfs.error"))
	}
	root := strings.TrimSpace(read(t, a+"/mnt.root"))
	require.NotEqual(t, "/", root)
	require.True(t, strings.HasSuffix(img, root), "%s in its own file system is %s", img, root)

	work := victim.Start(t, "single", "+in="+dir)
	move(t, a, fmt.Sprint(work.Pid))
	for _, v := range []*victim.Victim{member, work} {
		require.Equal(t, [2]string{"/", "/"}, where(t, v.Pid))
		require.Equal(t, "mine\n", read(t, fmt.Sprintf("/proc/%d/root/mark", v.Pid)))
		require.Equal(t, 1, strings.Count(read(t, fmt.Sprintf("/proc/%d/mountinfo", v.Pid)), "\n"), "the old root is gone")
	}
	require.NoError(t, os.WriteFile(img+"/work/more", nil, 0o644))
	require.NoError(t, write(a+"/mnt.root", "/work\n"), "named as it is named in there")
	require.FileExists(t, fmt.Sprintf("/proc/%d/root/more", member.Pid))
	for _, v := range []*victim.Victim{member, work} {
		move(t, dir, fmt.Sprint(v.Pid))
		require.Equal(t, [2]string{"/", "/"}, where(t, v.Pid))
		require.FileExists(t, fmt.Sprintf("/proc/%d/root/proc/self/stat", v.Pid))
		require.Empty(t, v.Stop())
	}
}

// onRamdisk reports whether the root is the first file system of all, below which there is none.
func onRamdisk(t testing.TB) bool {
	for line := range strings.Lines(read(t, "/proc/self/mountinfo")) {
		if f := strings.Fields(line); f[4] == "/" && f[0] == f[1] {
			return true
		}
	}
	return false
}

// Who may not, or names what cannot be a root, changes nothing.
func TestMountRootRefusals(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("mnt"))
	a := mkdir(t, dir+"/a")
	v := victim.Start(t, "single")
	move(t, a, fmt.Sprint(v.Pid))
	img := directory(t)
	before := read(t, fmt.Sprintf("/proc/%d/mountinfo", v.Pid))
	for path, want := range map[string]unix.Errno{
		"work":         unix.EINVAL,
		"":             unix.EINVAL,
		img + "/none":  unix.ENOENT,
		"/proc/uptime": unix.ENOTDIR,
	} {
		require.Equal(t, want, write(a+"/mnt.root", path+"\n"), path)
		require.Contains(t, read(t, a+"/rcfs.error"), "mnt.root")
	}
	require.Equal(t, unix.EPERM, write(dir+"/mnt.root", img+"\n"))
	require.Contains(t, read(t, dir+"/rcfs.error"), "the machine's own")

	nobody := victim.Start(t, "mover", a+"/mnt.root", "+nocap")
	nobody.Say(img)
	require.Equal(t, "wrote -1 EPERM", nobody.Hear())
	require.Equal(t, before, read(t, fmt.Sprintf("/proc/%d/mountinfo", v.Pid)))

	out, err := exec.Command("nsenter", "--mount="+a+"/mnt.ns", "mount", "--make-rshared", "/").CombinedOutput()
	require.NoError(t, err, "%s", out)
	before = read(t, fmt.Sprintf("/proc/%d/mountinfo", v.Pid))
	require.Equal(t, unix.EINVAL, write(a+"/mnt.root", img+"\n"))
	require.Contains(t, read(t, a+"/rcfs.error"), "pivot_root")
	require.Equal(t, before, read(t, fmt.Sprintf("/proc/%d/mountinfo", v.Pid)))
	require.Equal(t, "/\n", read(t, a+"/mnt.root"))
	move(t, dir, fmt.Sprint(v.Pid))
	require.Empty(t, v.Stop())
}
