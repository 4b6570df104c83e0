// Package view mounts hierarchies for tests in their own process, as the helper and the daemon do
// together, and has what tests do with a mount all the time.
package view

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/fs"
	"rcfs/proxy"
	_ "rcfs/subsystems" // they register themselves
	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// Mount mounts a hierarchy and returns where. The cleanup removes all containers and unmounts.
func Mount(t testing.TB, sys *proxy.System, spec proxy.Spec) string {
	t.Helper()
	dir, done := Once(t, sys, spec)
	t.Cleanup(func() {
		Empty(t, dir)
		err := unix.Unmount(dir, 0)
		// A child that has been forked, and has not executed its program yet, has our open files.
		for deadline := time.Now().Add(5 * time.Second); err == unix.EBUSY && time.Now().Before(deadline); err = unix.Unmount(dir, 0) {
			time.Sleep(time.Millisecond)
		}
		if err != nil {
			t.Error("umount:", err)
			unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
		}
		<-done
		os.Remove(dir)
	})
	return dir
}

// Once is Mount without the cleanup. The channel is closed when the view has ended.
func Once(t testing.TB, sys *proxy.System, spec proxy.Spec) (string, <-chan struct{}) {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "mnt")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	view := fs.NewView(sys, dir, rig.Log(t))
	view.NoPoll = true
	h, err := sys.Mount(spec, view)
	require.NoError(t, err)
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Mount(h.Source(), dir, "fuse.rcfs", unix.MS_NOSUID|unix.MS_NODEV, fs.MountData(fd)))
	done := make(chan struct{})
	ledger, err := fs.NewLedger()
	require.NoError(t, err)
	require.NoError(t, view.Serve(h, fd, ledger, 0, func() { close(done) }))
	pollOnce(t, dir+"/tasks")
	return dir, done
}

// pollOnce lets the kernel learn that poll(2) is not for this view, before the Go runtime asks by adding an open
// file to its poller: it would hold the poller meanwhile, by which the view, in the same process, waits for requests.
func pollOnce(t testing.TB, file string) {
	fd, err := unix.Open(file, unix.O_RDONLY, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	require.NoError(t, err)
}

// Empty removes the containers of a mount, moving what is left in them to the root.
func Empty(t testing.TB, dir string) { removeAll(t, dir, dir) }

func removeAll(t testing.TB, root, dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		child := dir + "/" + e.Name()
		removeAll(t, root, child)
		procs, _ := os.ReadFile(child + "/cgroup.procs")
		for _, pid := range strings.Fields(string(procs)) {
			os.WriteFile(root+"/tasks", []byte(pid), 0)
		}
		rig.Eventually(t, func() string {
			if err := unix.Rmdir(child); err != nil && err != unix.ENOENT {
				why, _ := os.ReadFile(child + "/rcfs.error")
				return "rmdir " + child + ": " + err.Error() + ": " + string(why)
			}
			return ""
		})
	}
}

// Write writes as a program does, in one write(2).
func Write(file, data string) error {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_TRUNC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(data))
	return err
}

// Read returns a file's contents.
func Read(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	return string(b)
}

// Mkdir makes a container and returns its directory.
func Mkdir(t testing.TB, dir string) string {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		why, _ := os.ReadFile(filepath.Dir(dir) + "/rcfs.error")
		t.Fatalf("%v: %s", err, why)
	}
	return dir
}

// Move writes an id to dir/tasks and fails with the words of rcfs.error. On a slow machine a task
// that does not stop in time, of which nothing has been changed, is asked again.
func Move(t testing.TB, dir, id string) {
	t.Helper()
	err := Write(dir+"/tasks", id)
	for i := 1; err == unix.EAGAIN && i < victim.Slow(); i++ {
		err = Write(dir+"/tasks", id)
	}
	if err != nil {
		t.Fatalf("move %s to %s: %v: %s", id, dir, err, Read(t, dir+"/rcfs.error"))
	}
}
