package inject

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rcfs/testdata/victim"
)

// TestVectors moves a program that computes with long vectors.
func TestVectors(t *testing.T) {
	info, err := os.ReadFile("/proc/cpuinfo")
	require.NoError(t, err)
	if !strings.Contains(string(info), " sve ") {
		t.Skip("this processor has no Scalable Vector Extension")
	}
	eachWay(t, func(t *testing.T) {
		v := victim.Start(t, "vectors")
		there, back := newNamespaces(t), home(t)
		for range 20 {
			require.NoError(t, move(t, v.Pid, there))
			time.Sleep(time.Millisecond)
			require.NoError(t, move(t, v.Pid, back))
		}
		require.Empty(t, v.Stop())
	})
}
