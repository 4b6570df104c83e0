package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// 2 is the exit status where the machine lacks something, a /dev/fuse here. Nothing is mounted, and
// no hierarchy is left.
func TestMachineWithoutFuse(t *testing.T) {
	machine(t)
	dir, other := place(t), place(t)
	mountOn(t, other, "uts")
	code, stdout, stderr := call(t, "unshare", "--mount", "sh", "-c", "mount -t tmpfs none /dev && exec mount.fuse.rcfs none "+dir+" -o "+words("ipc"))
	assert.Equal(t, exitSystem, code)
	assert.Empty(t, stdout)
	assert.Equal(t, "mount.fuse.rcfs: open /dev/fuse: no such file or directory\n", stderr)
	assert.Equal(t, []string{other}, views(t))
	assert.Len(t, currentStatus(t).Hierarchies, 1)
}
