package subsystems_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/fs"
	"rcfs/proxy"
	"rcfs/testdata/rig"
)

// mount mounts a hierarchy as the helper and the daemon do together. The cleanup removes all
// containers and unmounts.
func mount(t testing.TB, sys *proxy.System, spec proxy.Spec) string {
	t.Helper()
	dir, done := mountOnce(t, sys, spec)
	t.Cleanup(func() {
		removeAll(t, dir, dir)
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error("umount:", err)
			unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
		}
		<-done
		os.Remove(dir)
	})
	return dir
}

// mountOnce is mount without the cleanup. The channel is closed when the view has ended.
func mountOnce(t testing.TB, sys *proxy.System, spec proxy.Spec) (string, <-chan struct{}) {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "mnt")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755))
	view := fs.NewView(sys, dir, rig.Log(t))
	h, err := sys.Mount(spec, view)
	require.NoError(t, err)
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Mount(h.Source(), dir, "fuse.rcfs", unix.MS_NOSUID|unix.MS_NODEV, fs.MountData(fd)))
	done := make(chan struct{})
	require.NoError(t, view.Serve(h, fd, func() { close(done) }))
	pollOnce(t, dir+"/tasks")
	return dir, done
}

// pollOnce lets the kernel learn that poll(2) is not for the daemon, before the Go runtime asks by
// adding an open file to its poller: it would do that while no other goroutine can run.
func pollOnce(t testing.TB, file string) {
	fd, err := unix.Open(file, unix.O_RDONLY, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	require.NoError(t, err)
}

// removeAll removes the containers below dir, moving what is left in them to the root.
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

// write writes as a program does, in one write(2).
func write(file, data string) error {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_TRUNC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(data))
	return err
}

func read(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	return string(b)
}

func mkdir(t testing.TB, dir string) string {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		why, _ := os.ReadFile(filepath.Dir(dir) + "/rcfs.error")
		t.Fatalf("%v: %s", err, why)
	}
	return dir
}

// move writes an id to dir/tasks and fails with the words of rcfs.error.
func move(t testing.TB, dir, id string) {
	t.Helper()
	if err := write(dir+"/tasks", id); err != nil {
		t.Fatalf("move %s to %s: %v: %s", id, dir, err, read(t, dir+"/rcfs.error"))
	}
}

// gone is a view that nobody looks at and that never ends by itself.
type gone struct{}

func (gone) Where() string { return "nowhere" }
func (gone) Alive() bool   { return true }

var owner = proxy.Owner{}

func none(string) bool { return false }

// readFile reads a container's control file to its end.
func readFile(h *proxy.Hierarchy, c *proxy.Container, name string) (string, error) {
	for _, f := range h.Files() {
		if f.Name != name {
			continue
		}
		return readBound(c, f)
	}
	return "", os.ErrNotExist
}

func readBound(c *proxy.Container, f proxy.BoundFile) (string, error) {
	var text []byte
	buf := make([]byte, 4096)
	for {
		n, err := f.Read(c.Object(f.Slot), buf, int64(len(text)))
		if n == 0 || err != nil {
			return string(text), err
		}
		text = append(text, buf[:n]...)
	}
}
