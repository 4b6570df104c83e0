package main

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// points are the measurements of a curve each.
type points struct {
	names  []string
	x      []float64
	values [][]float64 // by name
}

// add measures some ways at x.
func (p *points) add(x int, rows ...row) error {
	t := table{title: fmt.Sprint("at ", x), rows: rows}
	if err := t.measure(); err != nil {
		return err
	}
	if p.names == nil {
		p.values = make([][]float64, len(rows))
	}
	p.names = nil
	p.x = append(p.x, float64(x))
	for i, r := range t.rows {
		p.names = append(p.names, r.name)
		p.values[i] = append(p.values[i], r.median())
	}
	return nil
}

// curves are all of them, in what the first is at the first x.
func (p *points) curves() (list []curve) {
	for i, name := range p.names {
		c := curve{name: name, x: p.x}
		for _, v := range p.values[i] {
			c.y = append(c.y, v/p.values[0][0])
		}
		list = append(list, c)
	}
	return list
}

// slope is what one more costs, from the last but one point to the last, in what one cost at the first.
func (c *curve) slope() float64 {
	n := len(c.x) - 1
	return (c.y[n] - c.y[n-1]) / (c.x[n] - c.x[n-1])
}

func madeAndRemoved(name, dir string) row {
	return row{name: name, op: func(int) error {
		if err := unix.Mkdir(dir, 0o755); err != nil {
			return err
		}
		return unix.Rmdir(dir)
	}}
}

func moved(name, pid string, files func(container string) []string) row {
	to := other()
	return row{name: name, op: func(int) error {
		for _, file := range files(to()) {
			if err := writeFile(file, pid); err != nil {
				return err
			}
		}
		return nil
	}}
}

// growContainers has more and more containers in one directory.
func growContainers() (*table, error) {
	dir, _, err := mounted("pids")
	if err != nil {
		return nil, err
	}
	pids, _, err := crowd(2)
	if err != nil {
		return nil, err
	}
	var p points
	have := 0
	for _, n := range either([]int{1, 100, 10_000}, []int{1, 10, 100, 1000, 10_000, 100_000}) {
		if err := mkdirs(names(dir, have, n)); err != nil {
			return nil, err
		}
		have = n
		err := p.add(n,
			moved("a write by hand", pids[0], func(c string) []string { return []string{byKernel("pids", c+"/tasks")} }),
			moved("rcfs: a move", pids[1], func(c string) []string { return []string{dir + c + "/tasks"} }),
			madeAndRemoved("mkdir, rmdir by hand", byKernel("pids", "/x")),
			madeAndRemoved("rcfs: mkdir, rmdir", dir+"/x"))
		if err != nil {
			return nil, err
		}
	}
	return &table{title: "with more containers (pids)", curves: p.curves(), along: "containers",
		note: "In units of a write by hand with one container. A move finds containers by id, in maps: what grows is the misses of the processor's cache."}, nil
}

// growSubsystems binds more and more.
func growSubsystems() (*table, error) {
	all := slices.Concat(six, []string{"devices", "net_cls", "net_prio", "perf_event"}, strings.Split(namespaces, ","), []string{"cgroupns", "time", "mnt"})
	var p points
	for _, n := range either([]int{1, 6, 10, 13, 16}, []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}) {
		dir, end, err := mounted(strings.Join(all[:n], ","))
		if err != nil {
			return nil, err
		}
		pid, kill, err := sleeper()
		if err != nil {
			return nil, err
		}
		err = p.add(n,
			moved("rcfs: a move", pid, func(c string) []string { return []string{dir + c + "/tasks"} }),
			madeAndRemoved("rcfs: mkdir, rmdir", dir+"/x"))
		kill()
		if err != nil {
			return nil, err
		}
		if err := end(); err != nil {
			return nil, err
		}
	}
	c := p.curves()
	return &table{title: "with more subsystems bound", curves: c, along: "subsystems",
		note: "They are " + strings.Join(all, " ") + ". In units of a move with one. The first ten are controllers: each is a write more. From the eleventh on the task is stopped for its namespaces; the last are time and mnt, which have to be made by a process of their own."}, nil
}

// growThreads moves processes of more and more threads.
func growThreads() (*table, error) {
	var p points
	for _, n := range either([]int{1, 8, 64, 512}, []int{1, 2, 4, 8, 16, 32, 64, 128, 256, 512}) {
		groups, endGroups, err := mounted(strings.Join(six, ","))
		if err != nil {
			return nil, err
		}
		spaces, endSpaces, err := mounted(namespaces)
		if err != nil {
			return nil, err
		}
		pid, kill, err := sleeper()
		if n > 1 {
			pid, kill, err = threads(n - 1) // beside the first
		}
		if err != nil {
			return nil, err
		}
		rows := []row{
			{name: "SEIZE, INTERRUPT, wait, DETACH", op: func(int) error { return stopOnce(pid) }},
			moved("rcfs: into three namespaces", pid, func(c string) []string { return []string{spaces + c + "/tasks"} }),
			moved("six by hand", pid, func(c string) (files []string) {
				for _, controller := range six {
					files = append(files, byKernel(controller, c+"/cgroup.procs"))
				}
				return files
			}),
			moved("rcfs: into six groups", pid, func(c string) []string { return []string{groups + c + "/tasks"} }),
		}
		err = p.add(n, rows...)
		kill()
		if err != nil {
			return nil, err
		}
		for _, end := range []func() error{endSpaces, endGroups} {
			if err := end(); err != nil {
				return nil, err
			}
		}
	}
	c := p.curves()
	return &table{title: "with more threads", curves: c, along: "threads",
		note: fmt.Sprintf("In units of the bare cycle of one thread. At the end each thread more costs %s for namespaces, %s for the bare cycle, %s for six groups, %s by hand.",
			times(c[1].slope()), times(c[0].slope()), times(c[3].slope()), times(c[2].slope()))}, nil
}
