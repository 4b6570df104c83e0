package subsystems_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// What the writer could not set in a namespace of its own it cannot set through us.
func TestNamespaceFilesNeedCapability(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("time", "userns"))
	a := mkdir(t, dir+"/a")
	for file, value := range map[string]string{
		"time.offsets": "boottime 5 0", "userns.uid_map": "0 100000 1", "userns.gid_map": "0 100000 1",
	} {
		before := read(t, a+"/"+file)
		v := victim.Start(t, "mover", a+"/"+file, "+nocap")
		v.Say(value)
		require.Equal(t, "wrote -1 EPERM", v.Hear(), file)
		require.Equal(t, before, read(t, a+"/"+file), file)
	}
}
