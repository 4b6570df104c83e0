package subsystems_test

import (
	"errors"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/testdata/rig"
)

// placers runs a test with each subsystem that has groups, and a container of it.
func placers(t *testing.T, test func(t *testing.T, c *conformance, h *proxy.Hierarchy, a *proxy.Container)) {
	for slot, s := range proxy.Registered() {
		if _, ok := s.(proxy.Placer); !ok {
			continue
		}
		t.Run(s.Name(), func(t *testing.T) {
			sys := rig.System(t)
			if info := sys.Subsystems()[slot]; info.Backend == "" || !rig.Free(info) {
				return
			}
			c := &conformance{T: t, sys: sys, sub: s, slot: slot}
			h := c.open(t, s.Name())
			test(t, c, h, c.make(t, h, "a"))
			c.close(t, h)
		})
	}
}

// What was known of a task's group is asked for again where there is no such group any more.
func TestGroupThatHasGone(t *testing.T) {
	placers(t, func(t *testing.T, c *conformance, h *proxy.Hierarchy, a *proxy.Container) {
		sh := startShell(t)
		require.NoError(t, attach(a, sh.pid))
		task, err := proxy.FindTask(sh.pid)
		require.NoError(t, err)
		defer task.Close()
		in := func(want *proxy.Container) {
			at, err := c.of(task)
			require.NoError(t, err)
			require.Equal(t, c.id(want), at)
		}
		in(a)
		if err := h.Rename(h.Root(), "a", h.Root(), "b", none); !errors.Is(err, proxy.ErrCannotRename) {
			require.NoError(t, err)
			in(a)
			require.NoError(t, h.Rename(h.Root(), "b", h.Root(), "a", none))
			task.Forget()
			in(a)
		}
		require.NoError(t, attach(h.Root(), sh.pid))
		rig.Eventually(t, func() string { return words(h.Remove(h.Root(), "a")) })
		in(h.Root())
		sh.end(t)
	})
}

// A zombie stays in the group of v2 that it died in, also when that is removed.
func TestZombieOfARemovedGroup(t *testing.T) {
	placers(t, func(t *testing.T, c *conformance, h *proxy.Hierarchy, a *proxy.Container) {
		cmd := exec.Command("sleep", "1000")
		require.NoError(t, cmd.Start())
		defer cmd.Wait()
		defer cmd.Process.Kill()
		require.NoError(t, attach(a, cmd.Process.Pid))
		task, err := proxy.FindTask(cmd.Process.Pid)
		require.NoError(t, err)
		defer task.Close()
		require.NoError(t, cmd.Process.Kill())
		require.NoError(t, unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil))
		rig.Eventually(t, func() string { return words(h.Remove(h.Root(), "a")) })
		if at, err := c.of(task); err == nil {
			require.Equal(t, c.id(h.Root()), at, "v1 lets the dead go to its root")
		} else {
			require.ErrorIs(t, err, proxy.ErrNoTask)
		}
	})
}
