package fs_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
	"rcfs/testdata/view"
)

// A daemon that ends and one that starts: containers, members, pins, owners, modes, notes and
// values are all there.
func TestRestart(t *testing.T) {
	const run = "/run/rcfs"
	require.NoError(t, os.MkdirAll(run, 0o755))
	open := func() *proxy.System {
		sys, err := proxy.Open(proxy.Host{Run: run}, rig.Log(t))
		require.NoError(t, err)
		return sys
	}
	spec := rig.Spec("cpu", "pids", "uts", "net")
	first := open()
	dir, done := view.Once(t, first, spec)

	a := mkdir(t, dir+"/a")
	require.NoError(t, write(a+"/rcfs.unshare", "uts"))
	b := mkdir(t, a+"/b")
	require.NoError(t, os.Chown(a, 1000, 1001))
	require.NoError(t, os.Chmod(a, 0o750))
	require.NoError(t, os.Chmod(a+"/tasks", 0o666))
	require.NoError(t, write(b+"/uts.hostname", "kept"))
	require.NoError(t, write(b+"/pids.max", "77"))
	require.NoError(t, write(b+"/notify_on_release", "1"))
	v := victim.Start(t, "threads", "4")
	move(t, b, fmt.Sprint(v.Pid))
	ids := []string{linkTarget(t, a+"/net.ns"), linkTarget(t, b+"/net.ns"), linkTarget(t, b+"/uts.ns"), linkTarget(t, a), linkTarget(t, b)}

	require.NoError(t, unix.Unmount(dir, 0))
	<-done
	require.NoError(t, os.Remove(dir))
	require.NoError(t, first.Close())
	second := open()
	t.Cleanup(func() { require.NoError(t, second.Close()) })
	dir = mount(t, second, spec)
	a, b = dir+"/a", dir+"/a/b"

	require.Equal(t, ids, []string{linkTarget(t, a+"/net.ns"), linkTarget(t, b+"/net.ns"), linkTarget(t, b+"/uts.ns"), linkTarget(t, a), linkTarget(t, b)})
	require.Equal(t, fmt.Sprintln(v.Pid), read(t, b+"/cgroup.procs"))
	require.Equal(t, "kept\n", read(t, b+"/uts.hostname"))
	require.Equal(t, "77\n", read(t, b+"/pids.max"))
	require.Equal(t, "1\n", read(t, b+"/notify_on_release"))
	require.Equal(t, "uts\n", read(t, b+"/rcfs.unshare"))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(a, &st))
	require.Equal(t, []uint32{1000, 1001, unix.S_IFDIR | 0o750}, []uint32{st.Uid, st.Gid, st.Mode})
	require.NoError(t, unix.Stat(a+"/tasks", &st))
	require.Equal(t, []uint32{1000, 1001, unix.S_IFREG | 0o666}, []uint32{st.Uid, st.Gid, st.Mode})

	move(t, a, fmt.Sprint(v.Pid))
	require.Equal(t, []string{"uts:[" + linkTarget(t, a+"/uts.ns") + "]"}, namespacesOf(t, v.Pid, "uts"))
	move(t, dir, fmt.Sprint(v.Pid))
	require.Empty(t, v.Stop())
}

// A daemon that ends lets the moves that are under way end first, and begins none: nobody is left half
// in a container.
func TestCloseWaitsForMoves(t *testing.T) {
	const run = "/run/rcfs"
	require.NoError(t, os.MkdirAll(run, 0o755))
	spec := rig.Spec("cpu", "pids", "uts", "ipc")
	v := victim.Start(t, "threads", "8")
	for range victim.Times(20) {
		sys, err := proxy.Open(proxy.Host{Run: run}, rig.Log(t))
		require.NoError(t, err)
		dir, done := view.Once(t, sys, spec)
		for _, name := range []string{"/a", "/b"} {
			if err := os.Mkdir(dir+name, 0o755); err != nil {
				require.ErrorIs(t, err, os.ErrExist)
			}
		}
		moved := make(chan bool, 1)
		refused := make(chan error)
		go func() {
			for i := 0; ; i++ {
				if err := write(dir+[]string{"/a", "/b"}[i%2]+"/tasks", fmt.Sprint(v.Pid)); err != nil {
					refused <- err
					return
				}
				select {
				case moved <- true:
				default:
				}
			}
		}()
		<-moved
		require.NoError(t, sys.Close())
		t.Log("the mover heard", <-refused)
		for _, kind := range []string{"uts", "ipc"} {
			require.Len(t, namespacesOf(t, v.Pid, kind), 1, kind)
		}
		at := groupsOf(t, v.Pid, "pids")
		require.Len(t, at, 1)
		require.Equal(t, at, groupsOf(t, v.Pid, "cpu"))
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", v.Pid))
		require.NoError(t, err)
		require.Contains(t, string(text), ":name=rcfs.cpu-ipc-pids-uts:"+strings.TrimPrefix(at[0], "/"+rig.Base())+"\n")
		require.NoError(t, unix.Unmount(dir, 0))
		<-done
		require.NoError(t, os.Remove(dir))
	}
	dir := mount(t, rig.System(t), spec) // its cleanup takes the containers away
	move(t, dir, fmt.Sprint(v.Pid))
	require.Empty(t, v.Stop())
}
