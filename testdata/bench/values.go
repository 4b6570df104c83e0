package main

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// values changes one for all members of a container at once.
func values() (*table, error) {
	n := either(1000, 10_000)
	dir, _, err := mounted("oom,sched,umask")
	if err != nil {
		return nil, err
	}
	pids, _, err := crowd(n)
	if err != nil {
		return nil, err
	}
	mine, _, err := crowd(n)
	if err != nil {
		return nil, err
	}
	if err := writeFile(dir+"/a/tasks", strings.Join(mine, "\n")+"\n"); err != nil {
		return nil, err
	}
	renice := func(i int) error {
		for _, pid := range pids {
			id, err := strconv.Atoi(pid)
			if err != nil {
				return err
			}
			if err := unix.Setpriority(unix.PRIO_PROCESS, id, 1+i%2); err != nil {
				return fmt.Errorf("setpriority %s: %w", pid, err)
			}
		}
		return nil
	}
	t := &table{title: fmt.Sprintf("each of %d members gets another value", n), rows: []row{
		{name: "setpriority(2)", per: n, op: renice},
		{name: "rcfs: sched.nice", per: n, op: func(i int) error { return writeFile(dir+"/a/sched.nice", strconv.Itoa(1+i%2)) }},
		{name: "rcfs: umask.mask, for which each is stopped", per: n, rounds: fewest, op: func(i int) error {
			return writeFile(dir+"/a/umask.mask", strconv.Itoa(20+2*(i%2)))
		}},
	}, note: "Each member is moved to where it is once more: named, looked at, allowed; what it had before is known. From outside a task's umask cannot be set at all."}
	return t, t.measure()
}
