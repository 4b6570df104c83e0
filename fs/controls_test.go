package fs_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
)

// A mkdir that fails when half of it is done leaves no group, and the controllers that v2's groups
// have enabled for those below as they were.
func TestMkdirThatFailsHalfway(t *testing.T) {
	before := subtreeControls(t)
	t.Run("mounted", func(t *testing.T) {
		sys := rig.System(t)
		var names []string
		for _, name := range []string{"cpu", "pids", "hugetlb"} {
			if onV2(t, sys, name) {
				names = append(names, name)
			}
		}
		if len(names) == 0 {
			t.Skip("this machine has no controller on cgroup v2")
		}
		dir := mount(t, sys, rig.Spec(append(names, "uts")...))
		groups, leaf := baseDir(t, sys, names[0])
		room := groups + "/cgroup.max.descendants"
		for _, parent := range []string{"", "/a"} {
			mounted := subtreeControls(t)
			own := read(t, groups+parent+"/cgroup.subtree_control")
			below := atoi(strings.Fields(read(t, groups+"/cgroup.stat"))[1])
			for _, more := range []int{0, 1} { // no room for the group, or for its leaf
				require.NoError(t, os.WriteFile(room, []byte(fmt.Sprint(below+more)), 0))
				require.Equal(t, unix.EAGAIN, unix.Mkdir(dir+parent+"/x", 0o755))
				require.NoDirExists(t, groups+parent+"/x")
				require.NoDirExists(t, dir+parent+"/x")
				require.Equal(t, mounted, subtreeControls(t))
				require.Equal(t, own, read(t, groups+parent+"/cgroup.subtree_control"))
			}
			require.NoError(t, os.WriteFile(room, []byte("max"), 0))
			mkdir(t, dir+parent+"/a")
			require.DirExists(t, groups+parent+"/a"+leaf)
		}
	})
	require.Equal(t, before, subtreeControls(t))
}
