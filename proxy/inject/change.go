package inject

import "slices"

// Change is a system call by which a thread changes something of itself, and the one that takes that back. Neither may
// sleep.
type Change struct {
	Name     string // for errors
	Do, Undo Call
}

// Call is a system call of at most three arguments.
type Call struct {
	NR   uintptr
	Args [3]uint64
	// Data, if there is any, is what Args[DataArg] shall point to. It lies in the thread's memory only during the call.
	Data    []byte
	DataArg int
}

func (c Call) call() *call {
	return &call{nr: c.NR, args: c.Args, text: string(c.Data), textArg: c.DataArg}
}

// addChanges adds to a plan what threads change.
func addChanges(plan map[int][]step, changes map[int][]Change) {
	for tid, list := range changes {
		steps := slices.Clip(plan[tid])
		for _, c := range list {
			steps = append(steps, step{call: c.Do.call(), undo: c.Undo.call(), change: c.Name})
		}
		plan[tid] = steps
	}
}
