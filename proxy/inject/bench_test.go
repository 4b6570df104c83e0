package inject

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"rcfs/testdata/victim"
)

// BenchmarkMove compares a move of uts, ipc and net with the floor: seize,
// interrupt, wait, detach of the same process.
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
				tr, err := Seize(v.Pid)
				require.NoError(b, err)
				require.NoError(b, tr.Wait(b.Context()))
				require.NoError(b, tr.Release())
			}
		})
		b.Run(fmt.Sprint(kind, args, "/move"), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				require.NoError(b, moveQuietly(v.Pid, targets[i%2]))
			}
		})
	}
}
