package proxy

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// Kill kills every process in c and below it. It stops each before it kills any, again and again
// until no new one turns up: what forks as fast as it can runs out of processes that run.
// It returns when all have the signal, not when they have died.
func (c *Container) Kill() error {
	for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGKILL} {
		if err := c.signalAll(sig); err != nil {
			return c.refuse("kill", err)
		}
	}
	return nil
}

// signalAll sends a signal to every process in c and below, until a pass meets no new one.
func (c *Container) signalAll(sig unix.Signal) error {
	done := make(map[int]bool)
	daemon := c.h.sys.host.pids()
	for {
		pids, err := c.processesBelow()
		if err != nil {
			return err
		}
		pids = slices.DeleteFunc(pids, func(pid int) bool { return done[pid] || slices.Contains(daemon, pid) })
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			done[pid] = true
			if err := c.signal(pid, sig); err != nil && !errors.Is(err, ErrNoTask) {
				return err
			}
		}
	}
}

// signal sends a signal to a process if it still is in c or below.
func (c *Container) signal(pid int, sig unix.Signal) error {
	t, err := openTask(pid)
	if err != nil {
		return err
	}
	defer t.Close()
	path, err := c.h.roster.Locate(t)
	if err != nil {
		return err
	}
	if base := c.Path(); path != base && !isBelow(path, base) {
		return nil // the number is another's by now
	}
	return noTask(unix.PidfdSendSignal(t.dir, sig, nil, 0))
}

func isBelow(path, base string) bool {
	return len(path) > len(base) && path[:len(base)] == base && path[len(base)] == '/'
}

func (c *Container) processesBelow() ([]int, error) {
	pids, err := c.ids("cgroup.procs")
	if errors.Is(err, ErrRemoved) {
		return nil, nil
	}
	children, _ := c.ChildrenAfter(0, maxChildren)
	for _, child := range children {
		below, e := child.processesBelow()
		pids, err = append(pids, below...), errors.Join(err, e)
	}
	return pids, err
}
