package inject

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rcfs/testdata/victim"
)

// TestSleepsEnd moves a program for as long as it sleeps: calls that began anew after each move
// would not end before the moves do.
func TestSleepsEnd(t *testing.T) {
	eachWay(t, func(t *testing.T) {
		sleeps := []string{"nanosleep", "clock", "futex-time"}
		v := victim.Start(t, "sleeper", sleeps...)
		there, back := newNamespaces(t), home(t)
		for _, want := range slices.Concat(sleeps, sleeps) {
			line := ""
			for end := time.Now().Add(patience); line == ""; line = v.Heard() {
				require.True(t, time.Now().Before(end), "%s does not end", want)
				require.NoError(t, move(t, v.Pid, there))
				require.NoError(t, move(t, v.Pid, back))
			}
			require.Equal(t, want, line)
		}
		for _, line := range v.Stop() {
			require.Contains(t, sleeps, line)
		}
	})
}
