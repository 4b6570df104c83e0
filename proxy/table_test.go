package proxy

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// thing is an object that is only an identity.
type thing uint64

func (n thing) ID() ID         { return ID{1, uint64(n)} }
func (n thing) String() string { return fmt.Sprint("thing", uint64(n)) }

func newTestTable() *Table { return NewTable([]string{"a", "b", "c"}) }

func objectsOf(n ...uint64) []Object {
	var list []Object
	for _, n := range n {
		if n == 0 {
			list = append(list, nil)
			continue
		}
		list = append(list, thing(n))
	}
	return list
}

// Equal tuples have one proxy, whichever way they came about.
func TestProxyIsCanonical(t *testing.T) {
	table := newTestTable()
	p := table.Find(objectsOf(1, 2, 3))
	require.Same(t, p, table.Find(objectsOf(1, 2, 3)))
	q := table.Find(objectsOf(1, 2, 4))
	require.NotSame(t, p, q)
	require.Same(t, p.State(0), q.State(0), "states are canonical too")
	require.Nil(t, table.Find(objectsOf(1, 0, 3)).State(1))
	require.Equal(t, "1 7 a=thing1 b=thing2 c=thing3", table.Describe(p, 7))
}

// A proxy does not keep a state once no task has it.
func TestProxiesWithoutTasksAreDropped(t *testing.T) {
	table := newTestTable()
	held := table.hold(thing(1))
	p, q := table.Find(objectsOf(1, 2)), table.Find(objectsOf(1, 3))
	require.Equal(t, 1, table.Retain(map[*TaskProxy]int{q: 1}))
	states, proxies := table.Sizes()
	require.Equal(t, 2, states, "1 is held, 3 is in a proxy that is used")
	require.Equal(t, 1, proxies)
	require.NotEqual(t, p.ID(), table.Find(objectsOf(1, 2)).ID(), "a number is not used twice")
	table.Retain(nil)
	table.drop(held)
	states, proxies = table.Sizes()
	require.Zero(t, states)
	require.Zero(t, proxies)
}

// Tuples of one hash are told from each other.
func TestProxiesOfOneHash(t *testing.T) {
	table := newTestTable()
	var chain *TaskProxy
	for n := range uint64(3) { // they come to the same place, by hand
		p := table.Find(objectsOf(1, n+2))
		delete(table.proxies, table.hash(&p.states))
		p.next, chain = chain, p
	}
	first, second, third := chain, chain.next, chain.next.next
	at := table.hash(&second.states)
	table.proxies[at] = chain
	require.Same(t, second, table.Find(objectsOf(1, 3)))
	table.forget(second)
	require.Equal(t, []*TaskProxy{first, third}, slices.Collect(table.all()))
	require.Nil(t, second.State(1))
	require.NotSame(t, second, table.Find(objectsOf(1, 3)))
	require.Same(t, third, first.next)
}

// An inode number that has come again is another state.
func TestIdentityThatComesAgain(t *testing.T) {
	table := newTestTable()
	stale := table.Find(objectsOf(1, 2))
	s := table.adopt(thing(1))
	require.NotSame(t, stale.State(0), s)
	require.NotSame(t, stale, table.Find(objectsOf(1, 2)))
	require.Same(t, s, table.Find(objectsOf(1, 2)).State(0))
}

// Containers that come and go leave no proxies behind for ever.
func TestRemovedContainersLeaveTheTable(t *testing.T) {
	table := newTestTable()
	root := table.hold(thing(1))
	for n := uint64(2); n < 2000; n++ {
		s := table.adopt(thing(n))
		p := table.Find(objectsOf(1, n))
		require.Same(t, s, p.State(1))
		table.retire(s)
	}
	states, proxies := table.Sizes()
	require.Less(t, states, 200)
	require.Less(t, proxies, 200)
	require.Same(t, root, table.Find(objectsOf(1, 2)).State(0))
}

func TestRegisterRefuses(t *testing.T) {
	require.PanicsWithValue(t, `proxy: subsystem "x" must implement either Placer or Enterer`, func() { Register(neither{}) })
}

type neither struct{ Subsystem }

func (neither) Name() string { return "x" }
