package fs_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// A task that cgroup v1 has frozen cannot stop for a move into namespaces: EAGAIN, and nothing has
// been changed. Into groups alone it moves. Thawed, it goes on as if nothing had been asked.
func TestFrozenTask(t *testing.T) {
	sys := rig.System(t)
	freezer := mount(t, sys, rig.Spec("freezer"))
	if onV2(t, sys, "freezer") {
		t.Skip("a task that v2 has frozen stops for its tracer")
	}
	namespaces, groups := mount(t, sys, rig.Spec("uts")), mount(t, sys, rig.Spec("pids"))
	f, n, g := mkdir(t, freezer+"/f"), mkdir(t, namespaces+"/n"), mkdir(t, groups+"/g")
	v := victim.Start(t, "threads", "3")
	move(t, f, fmt.Sprint(v.Pid))
	require.NoError(t, write(f+"/freezer.state", "FROZEN"))
	t.Cleanup(func() { write(f+"/freezer.state", "THAWED") })
	rig.Eventually(t, func() string {
		if state := read(t, f+"/freezer.state"); state != "FROZEN\n" {
			return "is " + state
		}
		return ""
	})
	before := world(t, namespaces, groups, v.Pid)
	require.Equal(t, unix.EAGAIN, write(n+"/tasks", fmt.Sprint(v.Pid)))
	require.Contains(t, read(t, n+"/rcfs.error"), "did not stop in time")
	require.Equal(t, before, world(t, namespaces, groups, v.Pid))
	move(t, g, fmt.Sprint(v.Pid))
	require.NoError(t, write(f+"/freezer.state", "THAWED"))
	rig.Eventually(t, func() string { // until the threads that were to stop have been let go
		if err := write(n+"/tasks", fmt.Sprint(v.Pid)); err != nil {
			return err.Error()
		}
		return ""
	})
	require.Empty(t, v.Stop())
}
