package proxy_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
	"rcfs/testdata/view"
)

// daemons is one mount after the other of the same hierarchy, as by daemons that follow each other.
type daemons struct {
	sys  *proxy.System
	dir  string
	done <-chan struct{}
}

func (d *daemons) open(t *testing.T) {
	const run = "/run/rcfs"
	require.NoError(t, os.MkdirAll(run, 0o755))
	var err error
	d.sys, err = proxy.Open(proxy.Host{Run: run}, rig.Log(t))
	require.NoError(t, err)
	d.dir, d.done = view.Once(t, d.sys, rig.Spec("uts"))
}

func (d *daemons) close(t *testing.T) {
	require.NoError(t, unix.Unmount(d.dir, 0))
	<-d.done
	require.NoError(t, os.Remove(d.dir))
	require.NoError(t, d.sys.Close())
}

// next ends a daemon and starts another.
func (d *daemons) next(t *testing.T) {
	d.close(t)
	d.open(t)
}

// writeDown leaves a move into a container half done.
func (d *daemons) writeDown(t *testing.T, container string, pid int) {
	h, err := d.sys.Mount(rig.Spec("uts"), forever{})
	require.NoError(t, err)
	defer d.sys.Unmount(h, forever{})
	require.NoError(t, d.sys.WriteDown(h, container, pid))
}

// forever is a view that stays.
type forever struct{}

func (forever) Alive() bool   { return true }
func (forever) Where() string { return "nowhere" }

// finish waits until so many moves are left in the journal.
func (d *daemons) finish(t *testing.T, left int) {
	t.Helper()
	rig.Eventually(t, func() string {
		if n := d.sys.WrittenDown(); n != left {
			return fmt.Sprint(n, " moves written down")
		}
		return ""
	})
}

// childrenOf lists the children of a process.
func childrenOf(t *testing.T, pid int) string {
	t.Helper()
	var list string
	for _, tid := range threadsOf(t, pid) {
		list += view.Read(t, fmt.Sprintf("/proc/%d/task/%s/children", pid, tid))
	}
	return strings.TrimSpace(list)
}

// A target that does not stop when the daemon starts which is to finish its move is moved later, unless
// somebody has moved it meanwhile, or it ends.
func TestHalfMovedTaskDoesNotStop(t *testing.T) {
	d := &daemons{}
	d.open(t)
	view.Mkdir(t, d.dir+"/a")
	view.Mkdir(t, d.dir+"/b")
	in := func(v *victim.Victim, container string) {
		t.Helper()
		require.Contains(t, view.Read(t, d.dir+container+"/cgroup.procs"), fmt.Sprintln(v.Pid))
	}
	free := func(v *victim.Victim) {
		t.Helper()
		v.Say("go")
		require.Equal(t, "joined", v.Hear())
	}
	stuck := func() *victim.Victim {
		t.Helper()
		v := victim.Start(t, "vfork")
		rig.Eventually(t, func() string {
			for _, tid := range threadsOf(t, v.Pid) { // it is the one that calls vfork(2)
				if strings.Contains(view.Read(t, fmt.Sprintf("/proc/%d/task/%s/status", v.Pid, tid)), "State:\tD") {
					return ""
				}
			}
			return "it does not wait for its child"
		})
		require.Equal(t, unix.EAGAIN, view.Write(d.dir+"/b/tasks", fmt.Sprint(v.Pid)))
		return v
	}

	later, elsewhere, dead := stuck(), stuck(), stuck()
	for _, v := range []*victim.Victim{later, elsewhere, dead} {
		d.writeDown(t, "a", v.Pid)
	}
	before := proxy.SetFirstRetry(time.Hour)
	t.Cleanup(func() { proxy.SetFirstRetry(before) })
	d.next(t)
	require.Equal(t, 3, d.sys.WrittenDown())
	in(later, "")
	require.ErrorIs(t, view.Write(d.dir+"/b/tasks", fmt.Sprint(later.Pid)), unix.EAGAIN)
	require.Equal(t, 3, d.sys.WrittenDown(), "a move that was refused replaces none")
	free(elsewhere)
	view.Move(t, d.dir+"/b", fmt.Sprint(elsewhere.Pid))
	d.finish(t, 2)

	proxy.SetFirstRetry(before)
	d.next(t)
	require.Equal(t, 2, d.sys.WrittenDown(), "the next daemon still knows")
	child, err := strconv.Atoi(childrenOf(t, dead.Pid))
	require.NoError(t, err)
	require.NoError(t, unix.Kill(dead.Pid, unix.SIGKILL))
	d.finish(t, 1)
	free(later)
	d.finish(t, 0)
	in(later, "/a")
	in(elsewhere, "/b")
	require.NotEmpty(t, dead.Stop())
	_, err = unix.Wait4(child, nil, 0, nil) // it has become ours
	require.NoError(t, err)
	require.Empty(t, later.Stop())
	require.Empty(t, elsewhere.Stop())
	view.Empty(t, d.dir)
	d.close(t)
	_, err = os.Stat("/run/rcfs/journal")
	require.ErrorIs(t, err, os.ErrNotExist)
}

// Of a move into a container that is no more, with its whole hierarchy, nothing is left to be finished: not in
// the run directory, and not into a container of the same name later.
func TestHalfMovedTaskOfNoHierarchy(t *testing.T) {
	d := &daemons{}
	d.open(t)
	view.Mkdir(t, d.dir+"/a")
	v := victim.Start(t, "vfork")
	rig.Eventually(t, func() string {
		if childrenOf(t, v.Pid) == "" {
			return "it has no child yet"
		}
		return ""
	})
	d.writeDown(t, "a", v.Pid)
	before := proxy.SetFirstRetry(time.Hour)
	t.Cleanup(func() { proxy.SetFirstRetry(before) })
	d.next(t)
	require.Equal(t, 1, d.sys.WrittenDown())
	require.NoError(t, os.Remove(d.dir+"/a"))
	d.close(t)
	_, err := os.Stat("/run/rcfs/journal")
	require.ErrorIs(t, err, os.ErrNotExist)
	v.Say("go")
	require.Equal(t, "joined", v.Hear())
	require.Empty(t, v.Stop())
}
