package subsystems_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// All subsystems together (but for those that a test must not take from its host), as a mount
// without words binds them: a process with threads goes in and out; one without can have every
// namespace anew, at once.
func TestEverythingTogether(t *testing.T) {
	sys := rig.System(t)
	var names []string
	for _, info := range sys.Subsystems() {
		if info.Backend != "" && rig.Free(info) {
			names = append(names, info.Name)
		}
	}
	dir := mount(t, sys, rig.Spec(names...))
	everything := read(t, dir+"/rcfs.unshare")
	require.Equal(t, "cgroupns ipc mnt net pid time userns uts\n", everything)
	require.NoError(t, write(dir+"/rcfs.unshare", "-mnt -pid -time -userns\n"))
	a := mkdir(t, dir+"/a")
	v := victim.Start(t, "threads", "4")
	for _, to := range []string{a, dir, a, dir} {
		move(t, to, fmt.Sprint(v.Pid))
		require.Equal(t, target(t, to+"/net.ns", "net"), link(t, v.Pid, "net"))
	}
	require.Empty(t, v.Stop())

	require.NoError(t, write(dir+"/rcfs.unshare", everything))
	b := mkdir(t, dir+"/b")
	s := victim.Start(t, "single")
	move(t, b, fmt.Sprint(s.Pid))
	for name, file := range map[string]string{"cgroup": "cgroupns", "ipc": "ipc", "mnt": "mnt", "net": "net",
		"pid_for_children": "pid", "time": "time", "user": "userns", "uts": "uts"} {
		require.Contains(t, link(t, s.Pid, name), target(t, b+"/"+file+".ns", "")[1:], name)
	}
	require.Len(t, keepers(t), 3, "of pid, time and userns")
	c, err := sys.Status()
	require.NoError(t, err)
	require.Len(t, c.Proxies, 1)
	require.Empty(t, s.Stop())
}
