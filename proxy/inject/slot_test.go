package inject

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/victim"
)

// TestThreadsOfOneProcess moves threads of one process at the same time, each by
// a trace of its own: they share one slot.
func TestThreadsOfOneProcess(t *testing.T) { eachSafeWay(t, testThreadsOfOneProcess) }

func testThreadsOfOneProcess(t *testing.T) {
	v := victim.Start(t, "threads", "4")
	tids, err := listThreads(v.Pid)
	require.NoError(t, err)
	targets := [][]Namespace{newNamespaces(t), home(t)}
	results := make(chan error, len(tids))
	for _, tid := range tids {
		go func() {
			var failed error
			for i := range victim.Times(40) {
				if err := moveThread(tid, targets[i%2]); err != nil {
					failed = err
				}
			}
			results <- failed
		}()
	}
	for range tids {
		require.NoError(t, <-results)
	}
	for _, tid := range tids { // not those born meanwhile of one that was away
		requireThreadIn(t, v.Pid, tid, targets[1])
	}
	requireUntraced(t, v.Pid)
	require.Empty(t, v.Stop())
}

func moveThread(tid int, to []Namespace) error {
	return moveSeized(to, func(t *Tracer) (*Trace, error) { return t.SeizeThread(tid) })
}

// requireThreadIn checks one thread.
func requireThreadIn(t *testing.T, pid, tid int, want []Namespace) {
	t.Helper()
	for _, ns := range want {
		var st, is unix.Stat_t
		require.NoError(t, unix.Fstat(ns.FD, &st))
		require.NoError(t, unix.Stat(nsPath(pid, tid, ns.Type), &is))
		require.Equal(t, st.Ino, is.Ino, "thread %d of %d, %s", tid, pid, typeName(ns.Type))
	}
}

// TestSlotHasRoom is about the kernel: whether the rest of its vdso's last page holds the blob.
func TestSlotHasRoom(t *testing.T) {
	c, err := openCode(os.Getpid())
	require.NoError(t, err)
	defer c.close()
	require.True(t, (&tracer{code: c}).canRunBlob(), "%d bytes", c.room)
	t.Logf("%d bytes, %d are needed", c.room, blobSteps+stepSize+stepEnd)
}
