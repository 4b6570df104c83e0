package subsystems

import (
	"testing"

	"github.com/stretchr/testify/require"

	"rcfs/proxy"
	"rcfs/testdata/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

func FuzzGroupPath(f *testing.F) {
	f.Add("5:cpu,cpuacct:/a:b\n1:name=rcfs.x:/\n0::/unified\n", "cpu,cpuacct")
	f.Add("0::/\n", "")
	f.Add("::\n:", "x")
	f.Fuzz(func(t *testing.T, text, label string) {
		if path, ok := groupPath(text, label); !ok && path != "" {
			t.Fatal(path)
		}
	})
}

func TestGroupPath(t *testing.T) {
	const text = "5:cpu,cpuacct:/a:b\n1:name=rcfs.x:/\n0::/unified\n"
	for label, want := range map[string]string{"cpu,cpuacct": "/a:b", "name=rcfs.x": "/", "": "/unified"} {
		path, ok := groupPath(text, label)
		require.True(t, ok)
		require.Equal(t, want, path)
	}
	_, ok := groupPath(text, "cpu")
	require.False(t, ok)
}

// Every registered subsystem is a controller, a namespace or a kind of values, and says why if it is not there.
func TestRegistered(t *testing.T) {
	have := 0
	for _, s := range proxy.Registered() {
		require.Contains(t, []string{proxy.KindController, proxy.KindNamespace, proxy.KindValue}, s.Kind())
		backend, err := s.Probe(proxy.Host{Run: t.TempDir()})
		if err != nil {
			require.Empty(t, backend)
			t.Log(s.Name(), err)
			continue
		}
		have++
		require.Contains(t, []string{"v1", "v2", "nsfs", "values"}, backend)
	}
	require.Greater(t, have, 3)
}
