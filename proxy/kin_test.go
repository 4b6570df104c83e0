package proxy

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Children of the target, and what its parent got by CLONE_PARENT, are kin; what others have born is not, nor are
// threads and numbers of nobody.
func TestKin(t *testing.T) {
	start := func(flags uintptr) *exec.Cmd {
		cmd := exec.Command("sleep", "100")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: unix.SIGKILL}
		require.NoError(t, cmd.Start())
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		return cmd
	}
	target := start(0)
	sibling := start(0)
	nested := exec.Command("sh", "-c", "sleep 100 & echo $!; read line; kill $!; wait")
	in, err := nested.StdinPipe()
	require.NoError(t, err)
	out, err := nested.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, nested.Start())
	var grandchild int
	b := make([]byte, 20)
	n, err := out.Read(b)
	require.NoError(t, err)
	for _, digit := range b[:n-1] {
		grandchild = 10*grandchild + int(digit-'0')
	}
	threads, err := numericDir("/proc/self/task")
	require.NoError(t, err)
	thread := threads[len(threads)-1]
	require.NotEqual(t, os.Getpid(), thread)

	kin := func(of int, born ...int) []int {
		return (&Attach{task: &Task{TID: of, TGID: of}}).kin(born)
	}
	all := []int{sibling.Process.Pid, grandchild, thread, 1 << 30}
	require.Empty(t, kin(target.Process.Pid))
	if _, err := parentOf(os.Getpid()); err != nil {
		require.Equal(t, unix.ENOTTY, err, "before Linux 6.13")
		require.Equal(t, all, kin(target.Process.Pid, all...))
	} else {
		require.Equal(t, []int{sibling.Process.Pid}, kin(target.Process.Pid, all...), "its parent's child")
		require.Equal(t, []int{grandchild}, kin(nested.Process.Pid, grandchild, thread))
		require.Equal(t, []int{nested.Process.Pid, grandchild}, kin(target.Process.Pid, nested.Process.Pid, grandchild), "of one that is kin")
		require.Empty(t, kin(sibling.Process.Pid, grandchild))
	}
	require.Equal(t, []int{grandchild}, kin(1<<30, grandchild), "of one that has ended")
	in.Close()
	require.NoError(t, nested.Wait())
}
