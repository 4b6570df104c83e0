package main

import (
	"fmt"
	"os"
	"os/exec"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// counts counts what the worker does for one thing, with strace(1), and how often it goes to sleep, without.
func counts() (*table, error) {
	t := &table{title: "what one thing makes the worker do"}
	all := strings.Join(six, ",") + "," + namespaces
	var notes []string
	for _, c := range []struct{ what, subsystems, file string }{
		{"a move into six groups", strings.Join(six, ","), "tasks"},
		{"a move into three namespaces", namespaces, "tasks"},
		{"a move of 32 threads into three namespaces", namespaces, "tasks"},
		{"a read of rcfs.unshare", all, "rcfs.unshare"},
	} {
		dir, end, err := mounted(c.subsystems)
		if err != nil {
			return nil, err
		}
		pid, kill, err := sleeper()
		if strings.Contains(c.what, "32") {
			pid, kill, err = threads(32)
		}
		if err != nil {
			return nil, err
		}
		to := other()
		do := func() error { return writeFile(dir+to()+"/tasks", pid) }
		if c.file != "tasks" {
			fd, err := unix.Open(dir+"/a/"+c.file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			later(func() error { return unix.Close(fd) })
			var buf [100]byte
			do = func() error { _, err := unix.Pread(fd, buf[:], 0); return err }
		}
		d, err := theDaemon()
		if err != nil {
			return nil, err
		}
		const n = 50
		times := func() error {
			for range n {
				if err := do(); err != nil {
					return err
				}
			}
			return nil
		}
		if err := times(); err != nil {
			return nil, err
		}
		before, _ := d.switches()
		if err := times(); err != nil {
			return nil, err
		}
		after, _ := d.switches()
		calls, err := straced(d.Worker, times)
		if err != nil {
			return nil, err
		}
		sum := 0
		var list []string
		for name, k := range calls {
			sum += k
			if k >= n/2 {
				list = append(list, name)
			}
		}
		sort.Slice(list, func(i, j int) bool { return calls[list[i]] > calls[list[j]] })
		for i, name := range list {
			list[i] = fmt.Sprintf("%s %s", number(float64(calls[name])/n), name)
		}
		t.figures = append(t.figures, figure{c.what + ": system calls", float64(sum) / n, "", anything},
			figure{c.what + ": times it goes to sleep", float64(after-before) / n, "", anything})
		notes = append(notes, "- "+c.what+": "+strings.Join(list, ", "))
		kill()
		if err := end(); err != nil {
			return nil, err
		}
	}
	t.note = strings.Join(notes, "\n")
	return t, nil
}

// straced returns how often a process makes each system call while f runs.
func straced(pid int, f func() error) (map[string]int, error) {
	out, err := os.CreateTemp("/run", "strace")
	if err != nil {
		return nil, err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := exec.Command("strace", "-c", "-f", "-o", out.Name(), "-p", strconv.Itoa(pid))
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for range 100 {
		if n, _ := field("TracerPid", fmt.Sprintf("/proc/%d/status", pid)); n == cmd.Process.Pid {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond) // the other threads
	err = f()
	cmd.Process.Signal(unix.SIGINT)
	cmd.Wait() // it ends by that signal
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(out.Name())
	if err != nil {
		return nil, err
	}
	calls := make(map[string]int)
	for line := range strings.Lines(string(text)) { // % time, seconds, µs a call, calls, errors or nothing, name
		f := strings.Fields(line)
		if len(f) < 5 || f[len(f)-1] == "total" {
			continue
		}
		if n, err := strconv.Atoi(f[3]); err == nil {
			calls[f[len(f)-1]] = n
		}
	}
	return calls, nil
}
