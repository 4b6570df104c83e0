package main

import (
	"fmt"
	"os/exec"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// spec is what cgclassify and cgexec call a container.
func spec(container string) string { return strings.Join(six, ",") + ":" + base + container }

// moves moves a task among six controllers.
func moves() (*table, error) {
	dir, _, err := mounted(strings.Join(six, ","))
	if err != nil {
		return nil, err
	}
	mover := func(name string, move func(pid, container string) error, wants ...want) row {
		pid, _, err := sleeper()
		to := other()
		return row{name: name, wants: wants, op: func(int) error {
			if err != nil {
				return err
			}
			return move(pid, to())
		}}
	}
	file, err := nothing()
	if err != nil {
		return nil, err
	}
	t := &table{title: "one task into " + strings.Join(six, "+") + ": open, write, close", rows: []row{
		mover("six by hand", byHandInto),
		mover("rcfs", func(pid, container string) error { return writeFile(dir+container+"/tasks", pid) }, want{1.5, 0}, want{0.01, 2}),
		mover("cgclassify", func(pid, container string) error { return exec.Command("cgclassify", "-g", spec(container), pid).Run() }),
		{name: cOpens, op: func(int) error { return writeFile(file, "1") }},
	}, note: "A move is two round trips that are waited for, open and write, and seven writes of the daemon: the six, and the roster's."}
	return t, t.measure()
}

func byHandInto(pid, container string) error {
	for _, c := range six {
		if err := writeFile(byKernel(c, container)+"/tasks", pid); err != nil {
			return err
		}
	}
	return nil
}

// shellMoves is the same in a shell that runs.
func shellMoves() (*table, error) {
	dir, _, err := mounted(strings.Join(six, ","))
	if err != nil {
		return nil, err
	}
	t := &table{title: "echo PID > tasks, in a shell that runs, " + strings.Join(six, "+")}
	for _, way := range []struct {
		name  string
		files func(container string) []string
		wants []want
	}{
		{"six echos by hand", func(container string) (files []string) {
			for _, c := range six {
				files = append(files, byKernel(c, container)+"/tasks")
			}
			return files
		}, nil},
		{"rcfs: one echo", func(container string) []string { return []string{dir + container + "/tasks"} }, []want{{1, 0}}},
	} {
		pid, _, err := sleeper()
		if err != nil {
			return nil, err
		}
		var script strings.Builder
		for _, container := range []string{"/a", "/b"} {
			for _, file := range way.files(container) {
				fmt.Fprintf(&script, "echo %s > %s\n", pid, file)
			}
		}
		op, err := shell(loop(script.String()))
		if err != nil {
			return nil, err
		}
		t.rows = append(t.rows, row{name: way.name, op: op, per: 2 * loops, wants: way.wants})
	}
	return t, t.measure()
}

// manyIDs moves many in one write.
func manyIDs() (*table, error) {
	n := either(1000, 10_000)
	dir, _, err := mounted(strings.Join(six, ","))
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
	all := strings.Join(mine, "\n") + "\n"
	byHand, byRcfs := other(), other()
	t := &table{title: fmt.Sprintf("each of %d ids in one write, %s", n, strings.Join(six, "+")), rows: []row{
		{name: "raw writes to six open files", per: n, op: func(int) error { return rawInto(pids, byHand()) }},
		{name: "rcfs", per: n, wants: []want{{1.5, 0}}, op: func(int) error { return writeFile(dir+byRcfs()+"/tasks", all) }},
	}, note: "What is left beside the seven writes: each id is named, looked at, allowed and written down before its move, and its children are looked for after it."}
	return t, t.measure()
}

// rawInto writes ids to a container's six tasks files and nothing else.
func rawInto(pids []string, container string) error {
	for _, c := range six {
		fd, err := unix.Open(byKernel(c, container)+"/tasks", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if _, err := unix.Write(fd, []byte(pid)); err != nil {
				unix.Close(fd)
				return fmt.Errorf("write %s to %s%s: %w", pid, c, container, err)
			}
		}
		unix.Close(fd)
	}
	return nil
}

// parallelMoves moves tasks in eight threads at once.
func parallelMoves() (*table, error) {
	const threads, each = 8, 16
	dir, _, err := mounted(strings.Join(six, ","))
	if err != nil {
		return nil, err
	}
	containers := names("", 0, threads)
	if err := mkdirs(names(dir, 0, threads)); err != nil {
		return nil, err
	}
	// Each thread takes a task of its own round the containers.
	way := func(name string, move func(pid, container string) error, atOnce int, wants ...want) row {
		pids, _, err := crowd(threads)
		at := make([]int, threads)
		walk := func(i int) error {
			for range each * threads / atOnce {
				at[i]++
				if err := move(pids[i], containers[(i+at[i])%threads]); err != nil {
					return err
				}
			}
			return nil
		}
		return row{name: name, per: each * threads, wants: wants, op: func(int) error {
			if err != nil {
				return err
			}
			var all sync.WaitGroup
			errs := make([]error, atOnce)
			for i := range atOnce {
				all.Go(func() { errs[i] = walk(i) })
			}
			all.Wait()
			for _, err := range errs {
				if err != nil {
					return err
				}
			}
			return nil
		}}
	}
	byRcfs := func(pid, container string) error { return writeFile(dir+container+"/tasks", pid) }
	t := &table{title: "each move, of eight threads in eight containers, " + strings.Join(six, "+"), rows: []row{
		way("by hand, one thread", byHandInto, 1),
		way("by hand, eight threads", byHandInto, threads),
		way("rcfs, one thread", byRcfs, 1),
		way("rcfs, eight threads", byRcfs, threads, want{1, 2}, want{2, 1}),
	}, note: "The kernel makes one move at a time, of all of them (cgroup_mutex, cgroup_threadgroup_rwsem): more threads can save only what is done around that."}
	return t, t.measure()
}

// starts starts a program in a container.
func starts() (*table, error) {
	dir, _, err := mounted(strings.Join(six, ",") + ",net")
	if err != nil {
		return nil, err
	}
	if out, err := exec.Command("ip", "netns", "add", "bench").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("ip netns add: %w: %s", err, out)
	}
	later(func() error { return exec.Command("ip", "netns", "delete", "bench").Run() })
	var hand strings.Builder
	for _, c := range six {
		fmt.Fprintf(&hand, "echo $$ > %s/tasks; ", byKernel(c, "/a"))
	}
	way := func(name string, args ...string) row {
		return row{name: name, op: func(int) error {
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}}
	}
	t := &table{title: "start of a program in " + strings.Join(six, "+") + ", and a network namespace", rows: []row{
		way("nowhere: sh -c 'exec true'", "sh", "-c", "exec true"),
		way("groups by hand: sh -c 'echo $$ > … six times; exec true'", "sh", "-c", hand.String()+"exec true"),
		way("groups, cgexec", "cgexec", "-g", spec("/a"), "true"),
		way("namespace, ip netns exec", "ip", "netns", "exec", "bench", "true"),
		way("namespace, nsenter", "nsenter", "--net=/run/netns/bench", "true"),
		way("both, rcfs: sh -c 'echo $$ > tasks; exec true'", "sh", "-c", "echo $$ > "+dir+"/a/tasks; exec true"),
	}}
	return t, t.measure()
}
