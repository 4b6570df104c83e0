package inject

import (
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/victim"
)

// A state that names a thread, as a tracer leaves it that dies just before it has entered, delays
// nobody.
func TestOwnerThatHasLeft(t *testing.T) {
	for _, kind := range []string{"single", "idle", "threads"} {
		t.Run(kind, func(t *testing.T) {
			v := victim.Start(t, kind)
			there, back := newNamespaces(t), home(t)
			require.NoError(t, move(t, v.Pid, there), "it writes the slot")
			tids, err := listThreads(v.Pid)
			require.NoError(t, err)
			for _, owner := range append(tids, 1<<22) {
				setOwner(t, v.Pid, owner)
				require.NoError(t, move(t, v.Pid, back))
				requireIn(t, v.Pid, back)
				require.NoError(t, move(t, v.Pid, there))
			}
			for _, tid := range tids {
				setOwner(t, v.Pid, tids[0])
				require.NoError(t, moveThread(tid, back))
			}
			require.Empty(t, v.Stop())
		})
	}
}

// setOwner writes the owner into the slot of a process.
func setOwner(t *testing.T, pid, owner int) {
	t.Helper()
	c, err := openCode(pid)
	require.NoError(t, err)
	defer c.close()
	require.NoError(t, c.write(c.stateAt(1)+stateOwner, binary.LittleEndian.AppendUint32(nil, uint32(owner))))
}

// TestHandlerReturnsToSlot marks with a signal that the program catches in threads that block it
// outside: the tracer dies, and the handler, from which the mask cannot be told, runs inside the
// slot, perhaps stopped for a while. No later tracer may send its thread astray. Only sleeps that
// the handler ends are known to fail; that is why such a signal marks nothing otherwise.
func TestHandlerReturnsToSlot(t *testing.T) {
	t.Setenv(caughtVariable, "1")
	eachSafeWay(t, func(t *testing.T) {
		v := victim.Start(t, "threads", "2")
		there, back := newNamespaces(t), home(t)
		for range 2 * kills() {
			mover := startMover(t, v.Pid, there, back)
			time.Sleep(time.Duration(rand.IntN(10000)) * time.Microsecond)
			_ = unix.Kill(v.Pid, unix.SIGSTOP)
			require.NoError(t, mover.Process.Kill())
			require.EqualError(t, mover.Wait(), "signal: killed")
			require.NoError(t, move(t, v.Pid, back), "it drains the slot first")
			require.NoError(t, unix.Kill(v.Pid, unix.SIGCONT))
		}
		for _, fault := range v.Stop() {
			require.True(t, strings.HasPrefix(fault, "nanosleep: interrupted system call"), fault)
		}
	})
}
