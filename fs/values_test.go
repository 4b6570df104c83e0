package fs_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// What the kernel answers to a value is the answer.
func TestKernelRefusesValues(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("cpuset", "pids"))
	a := mkdir(t, dir+"/a")
	for _, c := range []struct {
		file, value string
		want        error
	}{
		{"cpuset.cpus", "99999", unix.ERANGE},
		{"cpuset.cpus", "garbage", unix.EINVAL},
		{"cpuset.cpus", "0-", unix.EINVAL},
		{"cpuset.mems", "99999", unix.ERANGE},
		{"cpuset.cpus", "0", nil},
	} {
		require.Equal(t, c.want, write(a+"/"+c.file, c.value), "%s=%s", c.file, c.value)
		if c.want != nil && !passesThrough() {
			require.Contains(t, read(t, a+"/rcfs.error"), fmt.Sprintf("write %s %q: cpuset: ", c.file, "/a"))
			require.Contains(t, read(t, a+"/rcfs.error"), unix.ErrnoName(c.want.(unix.Errno)))
		}
	}
	require.Equal(t, unix.EINVAL, write(a+"/pids.max", "-1"))
	require.Equal(t, unix.ERANGE, write(a+"/pids.max", "99999999999999999999"))
	require.Equal(t, "max\n", read(t, a+"/pids.max"))
	_, err := os.OpenFile(a+"/pids.current", os.O_RDWR, 0)
	require.ErrorIs(t, err, unix.EACCES, "a file without write, also for root")
	_, err = os.Open(a + "/rcfs.kill")
	require.ErrorIs(t, err, unix.EACCES, "a file without read, also for root")
}

// A container's cpuset can be used at once: it has what its parent has.
func TestCpusetIsInherited(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("cpuset"))
	a := mkdir(t, dir+"/a")
	v := victim.Start(t, "threads", "2")
	move(t, a, fmt.Sprint(v.Pid))
	require.NoError(t, write(a+"/cpuset.cpus", "0"))
	b := mkdir(t, a+"/b")
	move(t, b, fmt.Sprint(v.Pid))
	status := read(t, fmt.Sprintf("/proc/%d/status", v.Pid))
	require.Contains(t, status, "Cpus_allowed_list:\t0\n")
	if !onV2(t, sys, "cpuset") { // on v2 an empty file means that
		require.Equal(t, read(t, a+"/cpuset.cpus"), read(t, b+"/cpuset.cpus"))
		require.Equal(t, read(t, dir+"/cpuset.mems"), read(t, b+"/cpuset.mems"))
	}
	require.Empty(t, v.Stop())
}

// A controller that does not take a task says so with the kernel's errno, and the groups that had
// been entered by then are left again.
func TestControllerRefusesATask(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("cpu", "pids", "uts"))
	if _, err := os.Stat(dir + "/cpu.rt_runtime_us"); os.IsNotExist(err) {
		t.Skip("this kernel has no groups of real-time tasks (CONFIG_RT_GROUP_SCHED)")
	}
	a := mkdir(t, dir+"/a")
	v := victim.Start(t, "single")
	require.NoError(t, schedule(v.Pid, unix.SchedAttr{Policy: unix.SCHED_FIFO, Priority: 1}))
	before := world(t, dir, dir, v.Pid)
	require.Equal(t, unix.EINVAL, write(a+"/tasks", fmt.Sprint(v.Pid)))
	require.Contains(t, read(t, a+"/rcfs.error"), `"/a": cpu: `)
	require.Equal(t, before, world(t, dir, dir, v.Pid))
	require.Equal(t, "0", strings.TrimSpace(read(t, a+"/cpu.rt_runtime_us")))
	require.NoError(t, schedule(v.Pid, unix.SchedAttr{Policy: unix.SCHED_NORMAL}))
	move(t, a, fmt.Sprint(v.Pid))
	move(t, dir, fmt.Sprint(v.Pid))
	require.Empty(t, v.Stop())
}

func schedule(pid int, attr unix.SchedAttr) error {
	attr.Size = unix.SizeofSchedAttr
	return unix.SchedSetAttr(pid, &attr, 0)
}
