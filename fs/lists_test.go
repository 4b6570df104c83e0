package fs_test

import (
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// A list of tasks that changes while it is read in small pieces has no number that is no task's.
func TestListIsOfOneMoment(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("pids"))
	a := mkdir(t, dir+"/a")
	known := make(map[string]bool)
	var pids []string
	for range 40 {
		cmd := exec.Command("sleep", "1000")
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		pid := fmt.Sprint(cmd.Process.Pid)
		known[pid] = true
		pids = append(pids, pid)
		move(t, a, pid)
	}
	stop := make(chan struct{})
	var movers sync.WaitGroup
	movers.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			to := []string{dir, a}[i/len(pids)%2]
			if err := write(to+"/tasks", pids[i%len(pids)]); err != nil {
				t.Error(err)
			}
		}
	})
	for range victim.Times(200) {
		for _, file := range []string{"tasks", "cgroup.procs"} {
			for id := range strings.FieldsSeq(readInPieces(t, a+"/"+file)) {
				require.True(t, known[id], "%q in %s", id, file)
			}
		}
	}
	close(stop)
	movers.Wait()
	for _, pid := range pids {
		move(t, dir, pid)
	}
}

func readInPieces(t *testing.T, file string) string {
	t.Helper()
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	var text strings.Builder
	for piece := make([]byte, 7); ; {
		n, err := unix.Read(fd, piece)
		require.NoError(t, err)
		if n == 0 {
			return text.String()
		}
		text.Write(piece[:n])
	}
}
