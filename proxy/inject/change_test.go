package inject

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/victim"
)

// maskOf is the umask of a thread.
func maskOf(t *testing.T, tid int) string {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(status), "\nUmask:\t")
	require.True(t, found)
	line, _, _ := strings.Cut(rest, "\n")
	return line
}

// nameOf is what a call with a pointer changes: the name of the thread.
func nameOf(t *testing.T, tid int) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", tid))
	require.NoError(t, err)
	return strings.TrimSpace(string(name))
}

func mask(n uint64) Call { return Call{NR: unix.SYS_UMASK, Args: [3]uint64{n}} }

func threadName(name string) Call {
	return Call{NR: unix.SYS_PRCTL, Args: [3]uint64{unix.PR_SET_NAME}, Data: []byte(name), DataArg: 1}
}

// Threads change something of themselves, with and without namespaces, and take it back.
func TestChange(t *testing.T) { eachSafeWay(t, testChange) }

func testChange(t *testing.T) {
	for _, args := range [][]string{{"single"}, {"threads", "4"}, {"threads", "4", "+ownfiles"}, append([]string{"blocked"}, anywhere()...)} {
		v := victim.Start(t, args[0], args[1:]...)
		tr := stop(t, v.Pid)
		changes := make(map[int][]Change)
		names := make(map[int]string)
		for _, tid := range tr.Threads() {
			names[tid] = nameOf(t, tid)
			changes[tid] = []Change{
				{"mask", mask(0o123), mask(0o022)},
				{"name", threadName(fmt.Sprint("t", tid)), threadName(names[tid])},
			}
		}
		var there []Namespace
		if !slices.Contains(args, "+ownfiles") { // which not every kernel can give namespaces
			there = newNamespaces(t)
		}
		require.NoError(t, tr.do(func() error { return tr.trace.Enter(there, changes) }))
		requireIn(t, v.Pid, there)
		for tid := range changes {
			require.Equal(t, "0123", maskOf(t, tid))
			require.Equal(t, fmt.Sprint("t", tid), nameOf(t, tid))
		}
		require.NoError(t, tr.Undo())
		requireIn(t, v.Pid, home(t))
		require.NoError(t, tr.Change(changes))
		require.NoError(t, tr.Undo())
		for tid, name := range names {
			require.Equal(t, "0022", maskOf(t, tid))
			require.Equal(t, name, nameOf(t, tid))
		}

		// The last change of the last thread is refused: all is put back.
		last := tr.Threads()[len(names)-1]
		changes[last] = append(changes[last], Change{"nothing", Call{NR: unix.SYS_PRCTL, Args: [3]uint64{1 << 30}}, mask(0)})
		err := tr.Change(changes)
		var refused *EnterError
		require.ErrorAs(t, err, &refused)
		require.Equal(t, EnterError{TID: last, Change: "nothing", Err: unix.EINVAL}, *refused)
		for tid, name := range names {
			require.Equal(t, "0022", maskOf(t, tid))
			require.Equal(t, name, nameOf(t, tid))
		}
		require.NoError(t, tr.Release())
		require.Empty(t, undisturbed(t, v.Stop()))
	}
}
