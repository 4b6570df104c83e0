package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"rcfs/testdata/rig"
)

// The kernel finishes a directory that had tasks in the background, and keeps its hierarchy until
// then. An rmdir with an umount right behind it leaves nothing all the same.
func TestRmdirThenUmount(t *testing.T) {
	machine(t)
	dir := place(t)
	for range 5 {
		mountOn(t, dir, "uts,pids")
		require.NoError(t, os.Mkdir(dir+"/a", 0o755))
		ok(t, "sh", "-c", fmt.Sprintf("sh -c 'echo 0 > %[1]s/a/tasks'; rmdir %[1]s/a; umount %[1]s", dir))
		rig.Eventually(t, func() string {
			hierarchies, err := os.ReadFile("/proc/self/cgroup")
			require.NoError(t, err)
			if strings.Contains(string(hierarchies), ":name=rcfs.pids-uts:") {
				return string(hierarchies)
			}
			return ""
		})
		assert.NoDirExists(t, "/sys/fs/cgroup/pids/"+rig.Base())
	}
}
