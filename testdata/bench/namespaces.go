package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const namespaces = "uts,net,ipc"

// oneThread moves a single-threaded task among namespaces.
func oneThread() (*table, error) {
	dir, end, err := mounted(namespaces)
	if err != nil {
		return nil, err
	}
	pid, kill, err := sleeper()
	if err != nil {
		return nil, err
	}
	t := &table{title: "one single-threaded task into uts+net+ipc", rows: []row{
		{name: "a bare SEIZE, INTERRUPT, wait, DETACH", rounds: 500, op: func(int) error { return stopOnce(pid) }},
		{name: "rcfs: echo PID > tasks", rounds: 500, op: func(i int) error { return writeFile(dir+ab(i)+"/tasks", pid) }},
		{name: "fork and exec of nsenter", rounds: 60, op: func(int) error {
			return exec.Command("nsenter", "-t", pid, "-u", "-n", "-i", "true").Run()
		}},
	}, note: "wanted: 1.5x the bare cycle, 1/40 of nsenter. A move is three messages through FUSE and about 100 system calls\n" +
		"of the daemon (strace -c), 12 of them ptrace(2); half of them look in /proc at what the task is and has. It stops twice."}
	err = t.measure()
	kill()
	if err != nil {
		return nil, err
	}
	return t, end()
}

// manyThreads moves a task of many threads.
func manyThreads() (*table, error) {
	dir, end, err := mounted(namespaces)
	if err != nil {
		return nil, err
	}
	pid, kill, err := threads(32)
	if err != nil {
		return nil, err
	}
	tids, err := os.ReadDir("/proc/" + pid + "/task")
	if err != nil {
		return nil, err
	}
	t := &table{title: fmt.Sprintf("one task of %d threads into uts+net+ipc", len(tids)), rows: []row{
		{name: "a bare SEIZE, INTERRUPT, wait, DETACH of each", rounds: 200, op: func(int) error { return stopOnce(pid) }},
		{name: "rcfs: echo PID > tasks", rounds: 200, op: func(i int) error { return writeFile(dir+ab(i)+"/tasks", pid) }},
	}, note: "wanted: 1.5x. Each thread takes about 40 system calls: to look at it before and after the stop, and to let it run once\n" +
		"through the blob, which makes ten of its own."}
	err = t.measure()
	kill()
	if err != nil {
		return nil, err
	}
	return t, end()
}

// manyProcesses moves many in one write.
func manyProcesses() (*table, error) {
	const n = 1000
	dir, end, err := mounted(namespaces)
	if err != nil {
		return nil, err
	}
	var kills []func()
	defer func() {
		for _, kill := range kills {
			kill()
		}
	}()
	var pids []string
	for range n {
		pid, kill, err := sleeper()
		if err != nil {
			return nil, err
		}
		pids, kills = append(pids, pid), append(kills, kill)
	}
	all := strings.Join(pids, "\n")
	last := ""
	t := &table{title: fmt.Sprintf("each of %d single-threaded tasks into uts+net+ipc", n), rows: []row{
		{name: "a write for each", rounds: 10, per: n, op: func(i int) error {
			last = dir + ab(i) + "/tasks"
			for _, pid := range pids {
				if err := writeFile(last, pid); err != nil {
					return err
				}
			}
			return nil
		}},
		{name: "all in one write", rounds: 10, per: n, op: func(i int) error {
			file := dir + ab(i) + "/tasks"
			if file == last {
				file = dir + ab(i+1) + "/tasks"
			}
			return writeFile(file, all)
		}},
	}, note: "wanted: at most 1.2x."}
	if err := t.measure(); err != nil {
		return nil, err
	}
	for _, kill := range kills {
		kill()
	}
	kills = nil
	return t, end()
}

// stopOnce stops all threads of a process and lets them go on.
func stopOnce(pid string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	names, err := os.ReadDir("/proc/" + pid + "/task")
	if err != nil {
		return err
	}
	tids := make([]int, len(names))
	for i, name := range names {
		if tids[i], err = strconv.Atoi(name.Name()); err != nil {
			return err
		}
		if err := unix.PtraceSeize(tids[i]); err != nil {
			return err
		}
		if err := unix.PtraceInterrupt(tids[i]); err != nil {
			return err
		}
	}
	for _, tid := range tids {
		if _, err := unix.Wait4(tid, nil, unix.WALL, nil); err != nil {
			return err
		}
		if err := unix.PtraceDetach(tid); err != nil {
			return err
		}
	}
	return nil
}

// threadsVariable makes this program one of so many sleeping threads.
const threadsVariable = "RCFS_BENCH_THREADS"

func threads(n int) (pid string, kill func(), err error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), threadsVariable+"="+strconv.Itoa(n))
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	pid = strconv.Itoa(cmd.Process.Pid)
	kill = func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
	for range 1000 {
		if names, _ := os.ReadDir("/proc/" + pid + "/task"); len(names) >= n {
			return pid, kill, nil
		}
		time.Sleep(time.Millisecond)
	}
	kill()
	return "", nil, fmt.Errorf("%d threads did not start", n)
}

// threadsMain is that program.
func threadsMain() {
	n, err := strconv.Atoi(os.Getenv(threadsVariable))
	if err != nil {
		return
	}
	for range n {
		go func() {
			runtime.LockOSThread()
			for {
				_, _ = unix.Poll(nil, -1)
			}
		}()
	}
	for {
		time.Sleep(time.Hour)
	}
}
