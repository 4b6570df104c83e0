package inject

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/victim"
)

// A Go program catches what usually marks the end of the blob; SIGCONT does it, unless the program
// ignores another. While it makes a thread it also blocks all signals, for a moment.
func TestGoProgramHasAMarker(t *testing.T) {
	v := victim.Start(t, "threads", "1")
	require.Empty(t, eventually(func() (problem string) {
		Do(func(tracer *Tracer) {
			tr, err := tracer.Seize(v.Pid)
			if err == nil {
				err = tr.Wait(time.Now().Add(patience))
			}
			if err != nil {
				problem = err.Error()
				return
			}
			for _, th := range tr.s.threads {
				marker, err := tr.s.marker(th)
				if err != nil || marker == 0 {
					problem = fmt.Sprintf("thread %d: signal %d, %v", th.tid, marker, err)
				}
			}
			if err := tr.Release(); err != nil {
				problem = err.Error()
			}
		})
		return problem
	}))
	require.Empty(t, v.Stop())
}

// A signal that stops a process stops it also when it is moved all the time, and nothing but
// SIGCONT lets it go on.
func TestStopSignalsAreKept(t *testing.T) { eachSafeWay(t, testStopSignalsAreKept) }

func testStopSignalsAreKept(t *testing.T) {
	v := victim.Start(t, "threads", "2")
	targets := [][]Namespace{newNamespaces(t), home(t)}
	ctx, cancel := context.WithCancel(t.Context())
	var mover sync.WaitGroup
	var moving sync.Mutex
	end := func() {
		cancel()
		mover.Wait()
	}
	t.Cleanup(end)
	mover.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			moving.Lock()
			if err := moveQuietly(v.Pid, targets[i%2]); err != nil {
				t.Error("move:", err)
			}
			moving.Unlock()
		}
	})
	is := func(stopped bool) func() string {
		return func() string {
			moving.Lock()
			defer moving.Unlock()
			stat, err := readStat(v.Pid)
			if err != nil {
				return err.Error()
			}
			if (stat.state == 'T') != stopped {
				return string(stat.state)
			}
			return ""
		}
	}
	for i := range victim.Times(30) {
		signal := []unix.Signal{unix.SIGSTOP, unix.SIGTSTP}[i%2]
		require.NoError(t, unix.Kill(v.Pid, signal))
		time.Sleep(time.Duration(i%10) * time.Millisecond) // nothing lets it go on
		require.Empty(t, eventually(is(true)), "state after %v", signal)
		require.NoError(t, unix.Kill(v.Pid, unix.SIGCONT))
		require.Empty(t, eventually(is(false)), "state after SIGCONT")
	}
	end()
	require.Empty(t, v.Stop())
}
