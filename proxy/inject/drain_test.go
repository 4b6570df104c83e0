package inject

import (
	"context"
	"encoding/binary"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rcfs/testdata/victim"
)

// TestDrain names a thread in the slot, as a tracer does that dies then, and
// checks who is waited for.
func TestDrain(t *testing.T) {
	if !haveHandles() {
		t.Skip("without handles of namespaces there is no slot")
	}
	for _, c := range []struct {
		name string
		kind string
		mask uint64 // of the owner when the blob began
		gone bool   // the owner is no thread
		want error
	}{
		{"asleep", "idle", 0, false, nil},
		{"computes or naps", "threads", ^uint64(0), false, nil},
		{"all blocked as in a handler", "threads", 0, false, ErrTimeout},
		{"dead", "threads", 0, true, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := victim.Start(t, c.kind)
			there := newNamespaces(t)
			require.NoError(t, move(t, v.Pid, there), "it writes the slot")
			tids, err := listThreads(v.Pid)
			require.NoError(t, err)
			owner := lockedThread(t, tids)
			if c.gone {
				owner = 1 << 22
			}
			setOwner(t, v.Pid, owner, c.mask)
			tr, err := Seize(v.Pid)
			require.NoError(t, err)
			defer tr.Release()
			limit := patience
			if c.want != nil {
				limit = 50 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			require.ErrorIs(t, tr.Wait(ctx), c.want)
			require.NoError(t, tr.Release())
			requireUntraced(t, v.Pid)
			setOwner(t, v.Pid, 0, 0)
			require.NoError(t, move(t, v.Pid, home(t)))
			require.Empty(t, v.Stop())
		})
	}
}

// lockedThread finds a thread that blocks all signals; the last one if none does.
func lockedThread(t *testing.T, tids []int) int {
	t.Helper()
	for _, tid := range tids {
		text, err := readFile(proc(tid, "status"))
		require.NoError(t, err)
		blocked, err := strconv.ParseUint(statusField(string(text), "SigBlk"), 16, 64)
		require.NoError(t, err)
		if blocked|unblockable == ^uint64(0) {
			return tid
		}
	}
	return tids[len(tids)-1]
}

// setOwner writes the owner and the mask into the slot of a process.
func setOwner(t *testing.T, pid, owner int, mask uint64) {
	t.Helper()
	c, err := openCode(pid)
	require.NoError(t, err)
	defer c.close()
	require.NoError(t, c.write(c.slot+blobOwner, binary.LittleEndian.AppendUint32(nil, uint32(owner))))
	require.NoError(t, c.write(c.slot+blobState, binary.LittleEndian.AppendUint64(nil, mask)))
}
