package subsystems_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

func TestTimeNamespace(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("time"))
	a := mkdir(t, dir+"/a")
	home := link(t, os.Getpid(), "time")
	require.Equal(t, home, target(t, dir+"/time.ns", "time"))
	require.Regexp(t, `^monotonic +0 +0\nboottime +0 +0\n$`, read(t, a+"/time.offsets"))
	require.Regexp(t, `^monotonic +0 +0\nboottime +0 +0\n$`, read(t, dir+"/time.offsets"))

	require.Equal(t, unix.EINVAL, write(a+"/time.offsets", "sometime 1 0\n"))
	require.NoError(t, write(a+"/time.offsets", "boottime 864000 0\n"))
	require.NoError(t, write(a+"/time.offsets", "monotonic 86400 0\n"), "not in use yet")
	offsets := read(t, a+"/time.offsets")
	require.Regexp(t, `^monotonic +86400 +0\nboottime +864000 +0\n$`, offsets)

	v := victim.Start(t, "single")
	move(t, a, fmt.Sprint(v.Pid))
	require.Equal(t, target(t, a+"/time.ns", "time"), link(t, v.Pid, "time"))
	require.Equal(t, unix.EACCES, write(a+"/time.offsets", "boottime 5 0\n"), "in use")
	require.Equal(t, offsets, read(t, a+"/time.offsets"))
	out, err := exec.Command("nsenter", "--time="+a+"/time.ns", "cat", "/proc/uptime").CombinedOutput()
	require.NoError(t, err, "%s", out)
	var there, here float64
	fmt.Sscan(string(out), &there)
	fmt.Sscan(read(t, "/proc/uptime"), &here)
	require.InDelta(t, 864000, there-here, 60)

	move(t, dir, fmt.Sprint(v.Pid))
	require.Equal(t, home, link(t, v.Pid, "time"))
	require.Empty(t, v.Stop())

	threads := victim.Start(t, "threads", "2")
	require.Equal(t, unix.EUSERS, write(a+"/tasks", fmt.Sprint(threads.Pid)))
	require.Contains(t, read(t, a+"/rcfs.error"), "threads share their clocks")
	require.Empty(t, threads.Stop())
}

// The process that rcfs keeps for a container outlives the daemon and ends with the container.
// When somebody kills it, what is asked of it is refused in words.
func TestKeeper(t *testing.T) {
	require.NoError(t, os.MkdirAll("/run/rcfs", 0o755))
	sys, err := proxy.Open(proxy.Host{Run: "/run/rcfs"}, rig.Log(t))
	require.NoError(t, err)
	h, err := sys.Mount(rig.Spec("time"), gone{})
	require.NoError(t, err)
	_, err = h.Make(h.Root(), "a", owner, none)
	require.NoError(t, err)
	before := keepers(t)
	require.Len(t, before, 1)

	require.NoError(t, sys.Close())
	sys = rig.System(t)
	h, err = sys.Mount(rig.Spec("time"), gone{})
	require.NoError(t, err)
	require.Equal(t, before, keepers(t))
	a := h.Root().Child("a")
	text, err := readFile(h, a, "time.offsets")
	require.NoError(t, err)
	require.Contains(t, text, "monotonic")

	require.NoError(t, unix.Kill(before[0], unix.SIGKILL))
	rig.Eventually(t, func() string {
		if _, err := readFile(h, a, "time.offsets"); err == nil {
			return "still there"
		}
		return ""
	})
	_, err = readFile(h, a, "time.offsets")
	require.ErrorIs(t, err, unix.ENXIO)
	require.NoError(t, h.Remove(h.Root(), "a"))
	require.Empty(t, keepers(t))
}

// keepers lists our processes' children that are keepers.
func keepers(t testing.TB) []int {
	t.Helper()
	out, _ := exec.Command("sh", "-c", fmt.Sprintf("cat /proc/%d/task/*/children", os.Getpid())).Output()
	var list []int
	for _, pid := range strings.Fields(string(out)) {
		comm, _ := os.ReadFile("/proc/" + pid + "/comm")
		if string(comm) == "rcfs-keeper\n" {
			var n int
			fmt.Sscan(pid, &n)
			list = append(list, n)
		}
	}
	return list
}
