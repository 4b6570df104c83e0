package fs_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// rcfs.subsystems has a line for everything that is registered: who has bound it, with how many
// containers, and how the kernel has it.
func TestSubsystemsFile(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("pids", "uts"))
	mkdir(t, mkdir(t, dir+"/a")+"/b")
	lines := strings.Split(strings.TrimSuffix(read(t, dir+"/rcfs.subsystems"), "\n"), "\n")
	require.Equal(t, "#subsys_name\thierarchy\tcontainers\tkind\tbackend", lines[0])
	infos := sys.Subsystems()
	require.Len(t, lines, 1+len(infos))
	for i, info := range infos {
		f := strings.Split(lines[1+i], "\t")
		require.Len(t, f, 5, lines[1+i])
		require.Equal(t, info.Name, f[0])
		switch {
		case info.Name == "pids" || info.Name == "uts":
			require.Equal(t, []string{"pids-uts", "3"}, f[1:3], "the root is a container")
		default:
			require.Equal(t, []string{"-", "0"}, f[1:3], lines[1+i])
		}
		require.Equal(t, info.Kind, f[3])
		if info.Backend != "" {
			require.Equal(t, info.Backend, f[4])
		} else {
			require.Equal(t, "-", f[4])
		}
	}
}

// A task's /proc/PID/cgroup names its container in every hierarchy.
func TestProcNamesTheContainer(t *testing.T) {
	sys := rig.System(t)
	one, two := mount(t, sys, rig.Spec("uts")), mount(t, sys, rig.Spec("pids"))
	b := mkdir(t, mkdir(t, one+"/a")+"/b")
	v := victim.Start(t, "single")
	line := func(hierarchy string) string {
		for line := range strings.Lines(read(t, fmt.Sprintf("/proc/%d/cgroup", v.Pid))) {
			if _, path, ok := strings.Cut(line, ":name=rcfs."+hierarchy+":"); ok {
				return strings.TrimSuffix(path, "\n")
			}
		}
		return ""
	}
	require.Equal(t, "/", line("uts"))
	move(t, b, fmt.Sprint(v.Pid))
	require.Equal(t, "/a/b", line("uts"))
	require.Equal(t, "/", line("pids"))
	move(t, mkdir(t, two+"/x"), fmt.Sprint(v.Pid))
	require.Equal(t, "/x", line("pids"))
	require.Empty(t, v.Stop())
}
