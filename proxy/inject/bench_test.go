package inject

import (
	"errors"
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/victim"
)

// stopOnce is the floor: seize, interrupt, wait for and detach all threads of a process, with
// nothing in between.
func stopOnce(pid int) (err error) {
	onOwnThread(func() {
		defer runtime.UnlockOSThread()
		var tids []int
		if tids, err = listThreads(pid); err != nil {
			return
		}
		for _, tid := range tids {
			err = errors.Join(err, ptraceSeize(tid), ptraceInterrupt(tid))
		}
		for _, tid := range tids {
			_, waitErr := unix.Wait4(tid, nil, unix.WALL, nil)
			err = errors.Join(err, waitErr, ptraceDetach(tid))
		}
	})
	return err
}

// BenchmarkMove compares a move of uts, ipc and net with the floor.
func BenchmarkMove(b *testing.B) {
	for _, n := range []int{0, 1, 32} {
		kind, args := "threads", []string{fmt.Sprint(n)}
		if n == 0 {
			kind, args = "single", nil
		}
		v := victim.Start(b, kind, args...)
		targets := [][]Namespace{newNamespaces(b), home(b)}
		b.Run(fmt.Sprint(kind, args, "/bare"), func(b *testing.B) {
			for b.Loop() {
				require.NoError(b, stopOnce(v.Pid))
			}
		})
		b.Run(fmt.Sprint(kind, args, "/move"), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				require.NoError(b, moveQuietly(v.Pid, targets[i%2]))
			}
		})
	}
}
