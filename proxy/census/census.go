// Package census finds out how the tasks of the machine are grouped: which distinct tuples of states
// (proxies) they have, and how many tasks have each. It asks the kernel alone, so it needs no daemon, and
// knows nothing of ours.
//
// # Two ways
//
// A task's namespaces and groups can be read in /proc (procfs.go), a dozen system calls for every task.
// But the kernel itself keeps tuples: tasks that have the same namespaces have, as a rule, the same
// struct nsproxy, and tasks in the same groups of all hierarchies always have the same struct css_set.
// So a BPF program (iterator.go) writes these pointers for every task, 32 bytes each, and /proc is read
// for one task of each group of equal pointers. Groups that turn out to have equal states are one: an
// nsproxy is not canonical.
//
// The representative may end or move between the two. So the tasks are gone through once more afterwards:
// what was read counts if the representative still has its pointers, else another one is read.
//
// # What counts
//
// Tasks are threads, the kernel's own too, as far as /proc shows them. A zombie does not count, nor one
// that is on its way there: it has left its namespaces and has no proxy any more. Nor do tasks that a security
// module hides from us, root or not: of those that /proc lists and does not tell the namespaces of we know the
// number (Unseen), others may not even be listed to the program.
package census

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// The ways.
const (
	ByBPF  = "bpf"
	ByProc = "proc"
)

// Census is how the tasks of the machine are grouped.
type Census struct {
	By     string // ByBPF or ByProc
	Tasks  int
	Groups []Group // the largest first
	// Unseen is how many tasks there are besides whose namespaces we may not see.
	Unseen int
}

// Group is a proxy, and how many tasks have it.
type Group struct {
	Tasks int
	Proxy Proxy
}

// Take counts all tasks, by BPF where that works. Why it does not is of no interest: the answer is the same.
func Take() (*Census, error) {
	if c, err := takeBPF(); err == nil {
		return c, nil
	}
	return TakeProc()
}

func takeBPF() (*Census, error) {
	it, err := newIterator()
	if err != nil {
		return nil, err
	}
	c, err := take(it, readTask)
	return c, errors.Join(err, it.Close())
}

// TakeProc counts all tasks by what /proc says of each.
func TakeProc() (*Census, error) {
	counts, err := readAll()
	if err != nil {
		return nil, err
	}
	return newCensus(ByProc, counts)
}

// pointers are a task's, in the kernel: equal ones mean equal states.
type pointers struct {
	nsproxy, cssSet, userNS uint64
}

// member is a task that has them.
type member struct {
	tid int
	pointers
}

// lister goes through the tasks of the machine.
type lister interface {
	list() ([]member, error)
}

// reading is what /proc has said of one task with certain pointers.
type reading struct {
	tid  int
	text string
}

// rounds is how often the tasks are gone through at most: where all representatives of groups go on ending
// or moving, what was read of the last ones has to do.
const rounds = 6

// take groups what l lists, and has read tell of one task of each group.
func take(l lister, read func(tid int) (string, error)) (*Census, error) {
	known := make(map[pointers]reading)
	for round := 1; ; round++ {
		members, err := l.list()
		if err != nil {
			return nil, err
		}
		groups := make(map[pointers][]int)
		now := make(map[int]pointers, len(known)) // what the representatives have
		for _, r := range known {
			now[r.tid] = pointers{}
		}
		for _, m := range members {
			groups[m.pointers] = append(groups[m.pointers], m.tid)
			if _, ok := now[m.tid]; ok {
				now[m.tid] = m.pointers
			}
		}
		if round < rounds {
			maps.DeleteFunc(known, func(p pointers, r reading) bool { return now[r.tid] != p })
		}
		fresh := false
		for p, tids := range groups {
			if _, ok := known[p]; ok {
				continue
			}
			r, err := represent(tids, read)
			if errors.Is(err, errGone) {
				continue // all of them have ended
			}
			if err != nil {
				return nil, err
			}
			known[p] = r
			fresh = true
		}
		if fresh && round < rounds {
			continue
		}
		counts := make(map[string]int)
		for p, tids := range groups {
			if r, ok := known[p]; ok {
				counts[r.text] += len(tids)
			}
		}
		return newCensus(ByBPF, counts)
	}
}

// tries is how many tasks of a group are read at most to find one whose namespaces we may see.
const tries = 100

// represent reads one of tids. errGone: none of them is there any more.
func represent(tids []int, read func(tid int) (string, error)) (reading, error) {
	best := reading{}
	err := errGone
	for i, tid := range tids {
		text, e := read(tid)
		if errors.Is(e, errGone) {
			continue
		}
		if e != nil {
			return reading{}, e
		}
		if best, err = (reading{tid, text}), nil; !unseen(text) || i >= tries {
			break
		}
	}
	return best, err
}

// newCensus sorts what was counted.
func newCensus(by string, counts map[string]int) (*Census, error) {
	c := &Census{By: by}
	type entry struct {
		Group
		text string
	}
	var entries []entry
	for text, n := range counts {
		if unseen(text) {
			c.Unseen += n
			continue
		}
		p, err := parseReading(text)
		if err != nil {
			return nil, err
		}
		c.Tasks += n
		entries = append(entries, entry{Group{n, p}, text})
	}
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(b.Tasks-a.Tasks, cmp.Compare(a.text, b.text))
	})
	for _, e := range entries {
		c.Groups = append(c.Groups, e.Group)
	}
	return c, nil
}

// Of returns the proxy of one task. ErrNoTask: there is none with that id; ErrZombie: it has ended.
func Of(tid int) (Proxy, error) {
	text, err := readTask(tid)
	if errors.Is(err, errGone) {
		return nil, why(tid)
	}
	if err != nil {
		return nil, fmt.Errorf("task %d: %w", tid, err)
	}
	return parseReading(text)
}
