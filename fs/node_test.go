package fs_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
)

// A file's node id comes from its name: who has it open knows it by that id, also after an upgrade to a version with other
// subsystems and files. So these numbers must never change.
func TestNodeIDs(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pids", "uts"))
	a := mkdir(t, dir+"/a")
	number := func(file string) uint64 {
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(file, &st))
		return st.Ino % (1 << 28)
	}
	for name, n := range map[string]uint64{
		"tasks": 1, "cgroup.procs": 2, "notify_on_release": 3, "rcfs.events": 4, "rcfs.unshare": 5, "rcfs.proxies": 6, "rcfs.error": 7,
		"rcfs.kill": 10, "pids.max": 90957279, "pids.current": 83628040, "uts.hostname": 6405976, "uts.ns": 41839250,
	} {
		require.Equal(t, n, number(a+"/"+name), name)
	}
}
