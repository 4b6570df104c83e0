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
	dir, _, err := mounted(namespaces)
	if err != nil {
		return nil, err
	}
	pid, _, err := sleeper()
	if err != nil {
		return nil, err
	}
	file, err := nothing()
	if err != nil {
		return nil, err
	}
	t := &table{title: "one single-threaded task into " + namespaces, rows: []row{
		{name: "a bare SEIZE, INTERRUPT, wait, DETACH", op: func(int) error { return stopOnce(pid) }},
		moved("rcfs", pid, func(c string) []string { return []string{dir + c + "/tasks"} }),
		{name: "fork and exec of nsenter", op: func(int) error {
			return exec.Command("nsenter", "-t", pid, "-u", "-n", "-i", "true").Run()
		}},
		{name: cOpens, op: func(int) error { return writeFile(file, "1") }},
	}, note: "A move is three messages through FUSE and about 100 system calls of the daemon, 12 of them ptrace(2); half of them\n" +
		"look in /proc at what the task is and has. It stops twice."}
	t.rows[1].wants = []want{{1.5, 0}, {1.0 / 40, 2}}
	return t, t.measure()
}

// manyThreads moves a task of many threads.
func manyThreads() (*table, error) {
	dir, _, err := mounted(namespaces)
	if err != nil {
		return nil, err
	}
	pid, _, err := threads(32)
	if err != nil {
		return nil, err
	}
	tids, err := os.ReadDir("/proc/" + pid + "/task")
	if err != nil {
		return nil, err
	}
	t := &table{title: fmt.Sprintf("one task of %d threads into %s", len(tids), namespaces), rows: []row{
		{name: "a bare SEIZE, INTERRUPT, wait, DETACH of each", op: func(int) error { return stopOnce(pid) }},
		moved("rcfs", pid, func(c string) []string { return []string{dir + c + "/tasks"} }),
	}, note: "Each thread takes about 60 system calls: to look at it before and after the stop, and to let it run once\n" +
		"through the blob, which makes ten of its own."}
	t.rows[1].wants = []want{{1.5, 0}}
	return t, t.measure()
}

// manyProcesses moves many in one write.
func manyProcesses() (*table, error) {
	n := either(200, 1000)
	dir, _, err := mounted(namespaces)
	if err != nil {
		return nil, err
	}
	pids, _, err := crowd(n)
	if err != nil {
		return nil, err
	}
	all, to := strings.Join(pids, "\n")+"\n", other()
	t := &table{title: fmt.Sprintf("each of %d single-threaded tasks into %s", n, namespaces), rows: []row{
		{name: "a write for each", per: n, op: func(int) error {
			file := dir + to() + "/tasks"
			for _, pid := range pids {
				if err := writeFile(file, pid); err != nil {
					return err
				}
			}
			return nil
		}},
		{name: "all in one write", per: n, wants: []want{{1.2, 0}}, op: func(int) error { return writeFile(dir+to()+"/tasks", all) }},
	}}
	return t, t.measure()
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
	later(func() error { kill(); return nil })
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
