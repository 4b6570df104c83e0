package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// found is what rcfs doctor prints, a line each.
func found(t *testing.T) []string {
	t.Helper()
	code, stdout, stderr := call(t, "rcfs", "doctor")
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	if stdout == "" {
		assert.Zero(t, code)
		assert.Empty(t, stderr)
		return nil
	}
	assert.Equal(t, exitFound, code)
	assert.Equal(t, fmt.Sprintf("rcfs doctor: found: %d\n", len(lines)), stderr)
	return lines
}

// requireFound checks that something is found, and nothing but that.
func requireFound(t *testing.T, says ...string) {
	t.Helper()
	lines := found(t)
	require.Len(t, lines, 1)
	for _, s := range says {
		assert.Contains(t, lines[0], s)
	}
}

// groupDirs are the directories of a container in the kernel's hierarchies.
func groupDirs(t *testing.T, path string) []string {
	var dirs []string
	for _, line := range groups(t) {
		dir, err := strconv.Unquote(strings.TrimPrefix(line, "group "))
		require.NoError(t, err)
		if strings.HasSuffix(strings.TrimSuffix(dir, "/.rcfs"), rig.Base()+path) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// What others do to what is rcfs's is seen, said, and mended as far as that can be: while the daemon runs,
// and by the next one where it did not.
func TestDoctor(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprint("restarted ", restarted), func(t *testing.T) { doctor(t, restarted) })
	}
}

func doctor(t *testing.T, restarted bool) {
	machine(t)
	dir := place(t)
	const options = "cpu,uts,ipc"
	mountOn(t, dir, options)
	require.NoError(t, os.Mkdir(dir+"/a", 0o755))
	require.NoError(t, os.Mkdir(dir+"/b", 0o755))
	v := victim.Start(t, "threads", "2")
	require.NoError(t, os.WriteFile(dir+"/b/tasks", []byte(strconv.Itoa(v.Pid)), 0))
	require.NoError(t, os.WriteFile(dir+"/a/uts.hostname", []byte("a"), 0))
	require.Empty(t, found(t))
	// meanwhile is what somebody does, while the daemon looks or while there is none.
	meanwhile := func(f func()) {
		if !restarted {
			f()
			return
		}
		stopDaemon(t)
		f()
		mountOn(t, dir, options)
	}
	pinOf := func(container string) string {
		pin, err := os.Readlink(dir + container + "/uts.ns")
		require.NoError(t, err)
		return pin
	}

	// A group.
	removed := groupDirs(t, "/a")
	require.NotEmpty(t, removed)
	meanwhile(func() {
		for i := range removed {
			require.NoError(t, os.Remove(removed[len(removed)-1-i]))
		}
	})
	requireFound(t, `"/a": cpu`, "made anew")
	require.Empty(t, found(t))
	require.Equal(t, removed, groupDirs(t, "/a"))

	// A pin, of a namespace that nobody is in.
	pin := pinOf("/a")
	meanwhile(func() { require.NoError(t, unix.Unmount(pin, 0)) })
	requireFound(t, `"/a": uts`, "not mounted", "made anew")
	require.Empty(t, found(t))
	require.NoError(t, os.WriteFile(dir+"/a/uts.hostname", []byte("again"), 0))

	// One that a task is in is the same afterwards.
	pin = pinOf("/b")
	meanwhile(func() { require.NoError(t, unix.Unmount(pin, 0)) })
	requireFound(t, `"/b": uts`, "not mounted", "held again")
	require.Empty(t, found(t))
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/ns/uts", v.Pid))
	require.NoError(t, err)
	ours, err := os.Stat(dir + "/b/uts.ns")
	require.NoError(t, err)
	require.True(t, os.SameFile(theirs, ours))

	// A task that somebody has moved.
	from, to := groupDirs(t, "/b"), groupDirs(t, "/a")
	meanwhile(func() {
		require.NoError(t, os.WriteFile(to[len(to)-1]+"/cgroup.procs", []byte(strconv.Itoa(v.Pid)), 0))
	})
	for range 2 { // nothing is done about it
		lines := found(t)
		require.Len(t, lines, 2)
		for _, line := range lines {
			assert.Regexp(t, fmt.Sprintf(`"/[ab]": cpu: task %d: somebody has moved it`, v.Pid), line)
		}
	}
	require.NoError(t, os.WriteFile(from[len(from)-1]+"/cgroup.procs", []byte(strconv.Itoa(v.Pid)), 0))
	require.Empty(t, found(t))

	// A namespace of its own is a task's good right.
	require.NoError(t, os.WriteFile(dir+"/tasks", []byte(strconv.Itoa(v.Pid)), 0))
	require.Empty(t, found(t))
	require.Empty(t, v.Stop())
	code, _, stderr := call(t, "rcfs", "doctor", "extra")
	assert.Equal(t, exitUsage, code)
	assert.Contains(t, stderr, `"extra"`)
}

// A hierarchy of which nobody knows anything is said to be there, and stays as it is.
func TestDoctorDeadHierarchy(t *testing.T) {
	machine(t)
	dir, other := place(t), place(t)
	mountOn(t, dir, "none,name=alive")
	require.NoError(t, os.Mkdir(dir+"/a", 0o755))
	name := "dead-" + strconv.Itoa(os.Getpid())
	mount := func() { ok(t, "mount", "-t", "cgroup", "-o", "none,name=rcfs."+name, "none", other) }
	mount()
	require.NoError(t, os.Mkdir(other+"/x", 0o755))
	ok(t, "umount", other)
	t.Cleanup(func() {
		mount()
		require.NoError(t, os.Remove(filepath.Join(other, "x")))
		ok(t, "umount", other)
		time.Sleep(100 * time.Millisecond)
		rig.Eventually(t, func() string {
			if !slices.Contains(hierarchies(t), name) {
				return ""
			}
			mount() // as rcfs does itself
			ok(t, "umount", other)
			time.Sleep(100 * time.Millisecond) // for the kernel; mounted too early there is a new one
			return name + " is still there"
		})
	})
	requireFound(t, name, "a daemon that has died")
	stopDaemon(t)
	mountOn(t, dir, "none,name=alive")
	for range 2 {
		requireFound(t, name, "nobody has written down what it is")
	}
	mount()
	require.DirExists(t, other+"/x")
	ok(t, "umount", other)
}
