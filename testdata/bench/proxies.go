package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"

	"rcfs/proxy"
)

// object is a state that is only an identity.
type object uint64

func (o object) ID() proxy.ID   { return proxy.ID{Dev: 1, Ino: uint64(o)} }
func (o object) String() string { return "" }

// fill makes the i-th tuple: 128 states in each slot, and with own one more that no other tuple has.
func fill(objects []proxy.Object, i int, own bool) {
	for slot := range objects {
		objects[slot] = object(slot*1000 + i>>(slot%3*7)&127)
	}
	if own {
		objects[15] = object(1_000_000 + i)
	}
}

// lookups is how many are looked for at a time. The tuples are made before: what that costs is not the table's.
const lookups = 1000

// proxies looks for the canonical proxy among many.
func proxies() (*table, error) {
	t := &table{title: "finding a proxy of 16 slots among many",
		note: "A list of a million tuples in a row, as the sketch of 2007 has it, is walked to the middle. What grows with the table is the misses of the processor's cache."}
	for _, n := range []int{1000, 1_000_000} {
		for _, own := range []bool{false, true} {
			tab := proxy.NewTable(make([]string, 16))
			var tuple [16]proxy.Object
			before := heap()
			for i := range n {
				fill(tuple[:], i, own)
				tab.Find(tuple[:])
			}
			if !own && n == 1_000_000 {
				t.figures = append(t.figures, figure{"memory of a proxy with 16 slots, table included", float64(heap()-before) / float64(n), "bytes", 256})
			}
			name := fmt.Sprintf("table, among %d", n)
			if own {
				name += ", each with a state of its own"
			}
			r := row{name: name, per: lookups}
			tuples := make([][16]proxy.Object, lookups)
			r.before = func(int) error {
				for k := range tuples {
					fill(tuples[k][:], rand.IntN(n), own)
				}
				return nil
			}
			r.op = func(int) error {
				for k := range tuples {
					tab.Find(tuples[k][:])
				}
				return nil
			}
			t.rows = append(t.rows, r)
		}
	}
	t.rows[2].wants = []want{{1.5, 0}, {0.001, 4}}
	t.rows[3].wants = []want{{1.5, 1}}
	list := make([][16]uint64, 1_000_000)
	for i := range list {
		for slot := range list[i] {
			list[i][slot] = uint64(slot*1000 + i>>(slot%3*7)&127)
		}
	}
	t.rows = append(t.rows, row{name: "list walk, among 1000000", op: func(int) error {
		want := list[len(list)/2]
		for i := range list {
			if list[i] == want {
				return nil
			}
		}
		return fmt.Errorf("not found")
	}}, row{name: "to read one tuple of that list, by its number", per: lookups, op: func(int) error {
		for range lookups {
			if list[rand.IntN(len(list))] == ([16]uint64{}) {
				return fmt.Errorf("an empty tuple")
			}
		}
		return nil
	}})
	return t, t.measure()
}

// heap is how much is in use.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

var anything = math.NaN()
