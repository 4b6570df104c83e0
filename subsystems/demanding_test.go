package subsystems_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// A container that shares the root's mount namespace leaves a task in the one that it has from
// elsewhere, threads or not; one with a namespace of its own takes it in.
func TestForeignNamespacesAreKept(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("mnt", "pid", "pids", "time", "userns", "uts"))
	require.NoError(t, write(dir+"/rcfs.unshare", "uts\n"))
	shares := mkdir(t, dir+"/shares")
	require.NoError(t, write(dir+"/rcfs.unshare", "mnt\n"))
	own := mkdir(t, dir+"/own")

	for _, kind := range []string{"single", "threads"} {
		v := victim.Start(t, kind, "+newns")
		id := fmt.Sprint(v.Pid)
		mnt, pid := link(t, v.Pid, "mnt"), link(t, v.Pid, "pid_for_children")
		for _, to := range []string{shares, dir} {
			move(t, to, id)
			require.Equal(t, target(t, to+"/uts.ns", "uts"), link(t, v.Pid, "uts"))
			require.Equal(t, mnt, link(t, v.Pid, "mnt"))
			require.Equal(t, pid, link(t, v.Pid, "pid_for_children"))
		}
		if kind == "single" {
			move(t, own, id)
			require.Equal(t, target(t, own+"/mnt.ns", "mnt"), link(t, v.Pid, "mnt"))
			move(t, shares, id)
			require.Equal(t, target(t, dir+"/mnt.ns", "mnt"), link(t, v.Pid, "mnt"), "it is not foreign any more")
		}
		require.Empty(t, v.Stop())
	}

	// What has threads and no namespace from elsewhere moves too.
	v := victim.Start(t, "threads", "3")
	move(t, shares, fmt.Sprint(v.Pid))
	move(t, dir, fmt.Sprint(v.Pid))
	require.Empty(t, v.Stop())
}
