package proxy

import (
	"testing"

	"github.com/stretchr/testify/require"
)

type kind struct {
	Subsystem
	name string
}

func (k kind) Name() string { return k.name }
func (k kind) Kind() string { return KindNamespace }

type notes struct {
	Roster
	written map[string]string
}

func (n notes) SetNote(_, key, value string) error { n.written[key] = value; return nil }

// A mount of everything writes down what its containers do not share, without the demanding ones.
func TestEverythingSharesTheDemanding(t *testing.T) {
	for _, spec := range []Spec{{}, {All: true}, {Name: "x"}, {All: true, Name: "x"}} {
		require.True(t, spec.everything(), spec)
	}
	for _, spec := range []Spec{{None: true}, {Subsystems: []string{"mnt"}}, {None: true, Name: "x"}} {
		require.False(t, spec.everything(), spec)
	}
	r := notes{written: make(map[string]string)}
	sys := &System{subsystems: []Subsystem{kind{name: "mnt"}, kind{name: "net"}, kind{name: "uts"}}}
	h := &Hierarchy{sys: sys, roster: r}
	h.bound.Store((&binding{subsystems: sys.subsystems}).with([]int{0, 1, 2}))
	h.root = &Container{h: h, fresh: h.binding().namespaces}
	require.NoError(t, h.shareDemanding())
	require.Equal(t, []string{"mnt", "net", "uts"}, h.root.Fresh())
	require.Empty(t, r.written)
	h.binding().demanding = 1
	require.NoError(t, h.shareDemanding())
	require.Equal(t, []string{"net", "uts"}, h.root.Fresh())
	require.Equal(t, map[string]string{noteUnshare: "net uts"}, r.written)
}
