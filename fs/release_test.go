package fs_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// The agent has one argument, runs in / as root, and finds HOME and PATH in its environment and
// nothing else.
func TestReleaseAgentsSurroundings(t *testing.T) {
	work := t.TempDir()
	agent, log := work+"/agent", work+"/log"
	// Written under another name first, so that it is there as a whole or not at all.
	script := fmt.Sprintf("#!/bin/sh\n{ echo \"$# $1\"; pwd; id -u; cat /proc/$$/environ; } > %[1]s.new\nexec /bin/ln %[1]s.new %[1]s\n", log)
	require.NoError(t, os.WriteFile(agent, []byte(script), 0o755))
	dir := mount(t, rig.System(t), rig.Spec("uts"))
	require.NoError(t, write(dir+"/release_agent", agent+"\n"))
	a := mkdir(t, dir+"/a b")
	require.NoError(t, write(a+"/notify_on_release", "1"))
	v := victim.Start(t, "idle")
	move(t, a, fmt.Sprint(v.Pid))
	require.Empty(t, v.Stop())
	rig.Eventually(t, func() string {
		if _, err := os.Stat(log); err != nil {
			return err.Error()
		}
		return ""
	})
	lines := strings.SplitN(read(t, log), "\n", 4)
	require.Equal(t, []string{"1 /a b", "/", "0"}, lines[:3])
	env := strings.Split(strings.TrimSuffix(lines[3], "\x00"), "\x00")
	slices.Sort(env)
	require.Equal(t, []string{"HOME=/", "PATH=/sbin:/bin:/usr/sbin:/usr/bin"}, env)
}

// Any number switches notify_on_release on or off; what is no number is refused.
func TestNotifyOnReleaseTakesNumbers(t *testing.T) {
	a := mkdir(t, mount(t, rig.System(t), rig.Spec("uts"))+"/a")
	file := a + "/notify_on_release"
	require.Equal(t, "0\n", read(t, file))
	for _, c := range []struct{ in, out string }{
		{"1", "1\n"}, {"0", "0\n"}, {"2\n", "1\n"}, {"00", "0\n"}, {" 4294967296 ", "1\n"}, {"0x0", "0\n"},
	} {
		require.NoError(t, write(file, c.in), c.in)
		require.Equal(t, c.out, read(t, file), c.in)
	}
	require.NoError(t, write(file, "1"))
	for _, in := range []string{"x", "\n", "-1", "1x", "1 2", "18446744073709551616"} {
		require.Equal(t, unix.EINVAL, write(file, in), in)
		require.Equal(t, "1\n", read(t, file), in)
	}
}

// The agent is run by the machine, so root of some user namespace may not name it.
func TestReleaseAgentTakesTheMachinesRoot(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("uts"))
	err := as(0, "unshare --user --map-root-user bash -c 'id -u; echo /bin/true > "+dir+"/release_agent'")
	require.ErrorContains(t, err, "Operation not permitted")
	require.ErrorContains(t, err, "0\n", "it is root to itself")
	require.Contains(t, read(t, dir+"/rcfs.error"), "(EPERM)")
	require.Equal(t, "\n", read(t, dir+"/release_agent"))
	err = as(0, "setpriv --bounding-set -all --inh-caps -all bash -c 'echo /bin/true > "+dir+"/release_agent'")
	require.ErrorContains(t, err, "Operation not permitted")
	require.NoError(t, as(0, "echo /bin/true > "+dir+"/release_agent"))
	require.Equal(t, "/bin/true\n", read(t, dir+"/release_agent"))
	require.NoFileExists(t, mkdir(t, dir+"/a")+"/release_agent")
}
