package fs_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// A name that has come to mean another group leads there, whichever group tasks were put into under it last.
func TestNamesChangeTheirGroups(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("pids", "uts"))
	groups, leaf := baseDir(t, sys, "pids")
	a, b := mkdir(t, dir+"/a"), dir+"/b"
	v := victim.Start(t, "idle")
	is := func(want string) {
		t.Helper()
		require.Equal(t, []string{"/" + rig.Base() + want}, groupsOf(t, v.Pid, "pids"))
	}
	move(t, a, fmt.Sprint(v.Pid))
	is("/a")
	move(t, dir, fmt.Sprint(v.Pid))
	if !onV2(t, sys, "pids") { // the kernel renames none there
		require.NoError(t, os.Rename(a, b))
		mkdir(t, a)
		move(t, a, fmt.Sprint(v.Pid))
		is("/a")
		move(t, b, fmt.Sprint(v.Pid))
		is("/b")
		move(t, dir, fmt.Sprint(v.Pid))
		require.NoError(t, os.Remove(b))
	}
	require.NoError(t, os.Remove(a))
	mkdir(t, a)
	move(t, a, fmt.Sprint(v.Pid))
	is("/a")
	move(t, dir, fmt.Sprint(v.Pid))

	// Somebody takes the group away and makes another one.
	if leaf == "" {
		require.NoError(t, unix.Rmdir(groups+"/a"))
		require.NoError(t, unix.Mkdir(groups+"/a", 0o755))
		require.NoError(t, write(a+"/tasks", fmt.Sprint(v.Pid)))
		is("/a")
		move(t, dir, fmt.Sprint(v.Pid))
	}
	require.Empty(t, v.Stop())
}

// Moving tasks into ever more containers does not take ever more descriptors.
func TestManyContainersFewDescriptors(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pids"))
	v := victim.Start(t, "idle")
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(list)
	}
	before := count()
	for i := range 300 {
		move(t, mkdir(t, fmt.Sprintf("%s/%d", dir, i)), fmt.Sprint(v.Pid))
	}
	require.Less(t, count(), before+200)
	move(t, dir, fmt.Sprint(v.Pid))
	for i := range 300 {
		require.NoError(t, os.Remove(fmt.Sprintf("%s/%d", dir, i)))
	}
	require.Less(t, count(), before+8, "the root's are open")
	require.Empty(t, v.Stop())
}
