package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// kills is how often the daemon is killed.
func kills() int {
	if n, err := strconv.Atoi(os.Getenv("RCFS_STORM_KILLS")); err == nil {
		return n
	}
	return victim.Times(50)
}

// The daemon is killed at random moments of endless moves, and started again: no target has died, seen
// an error, got another signal mask or a descriptor more, and none is half moved, whichever container it
// ended in.
func TestDaemonKilledInMoves(t *testing.T) {
	machine(t)
	dir := place(t)
	const options = "cpu,pids,uts,ipc,net"
	mountOn(t, dir, options)
	mountOnAgain := func() { mountOn(t, dir, options) }
	require.NoError(t, os.Mkdir(dir+"/a", 0o755))
	require.NoError(t, os.Mkdir(dir+"/b", 0o755))
	forker := victim.Start(t, "forker") // fork(2) in Go blocks all signals for a moment
	victims := []*victim.Victim{
		victim.Start(t, "single"),
		victim.Start(t, "threads", "1"),
		victim.Start(t, "threads", "8"),
		victim.Start(t, "threads", "32"),
		forker,
	}
	var files []int
	var masks []map[string]string
	for _, v := range victims {
		giveWay(t, v.Pid)
		files = append(files, descriptorsOf(t, v.Pid))
		masks = append(masks, steadyMasksOf(t, v.Pid))
	}
	where := make(map[string]int)
	for range kills() {
		var movers sync.WaitGroup
		for _, v := range victims {
			movers.Go(func() { moveEndlessly(t, dir, v.Pid) })
		}
		time.Sleep(time.Duration(rand.IntN(30000)) * time.Microsecond)
		killDaemon(t)
		movers.Wait()
		mountOnAgain()
		for _, v := range victims {
			where[requireWhole(t, dir, v.Pid)]++
		}
	}
	log, err := os.ReadFile(logPath)
	require.NoError(t, err)
	assert.NotContains(t, string(log), "(EIO)", "this one came from the daemon")
	t.Logf("%d kills; where targets were after them: %v, finished by the next daemon: %d", kills(), where, strings.Count(string(log), "finished an interrupted move"))
	if t.Failed() {
		t.Logf("%s", log)
	}
	for i, v := range victims {
		require.NoError(t, os.WriteFile(dir+"/tasks", []byte(strconv.Itoa(v.Pid)), 0))
		assert.Equal(t, files[i], descriptorsOf(t, v.Pid), "descriptors of the target")
		if v != forker {
			requireMasks(t, v.Pid, masks[i])
		}
		assert.Empty(t, v.Stop())
	}
}

// giveWay has a process take what others leave of the processors: dozens of busy threads would keep each program that
// a test starts waiting for seconds.
func giveWay(t *testing.T, pid int) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	require.NoError(t, err)
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		require.NoError(t, err)
		require.NoError(t, unix.Setpriority(unix.PRIO_PROCESS, tid, 19))
	}
}

// moveEndlessly moves a process between two containers until the mount is dead.
func moveEndlessly(t *testing.T, dir string, pid int) {
	for i := 0; ; i++ {
		fd, err := unix.Open(dir+[]string{"/a", "/b"}[i%2]+"/tasks", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			_, err = unix.Write(fd, []byte(strconv.Itoa(pid)))
			unix.Close(fd)
		}
		switch err {
		case nil, unix.EAGAIN, unix.EBUSY: // EBUSY: an earlier tracer is being taken off
		case unix.ENOTCONN, unix.ECONNABORTED, unix.ECONNREFUSED:
			return
		case unix.EIO: // a daemon that was killed while it read the request (fuse_dev_do_read); see the log
			return
		default:
			t.Error("move:", err)
			return
		}
	}
}

// A thread that is left behind does not escape the look at a process.
func TestThreadLeftBehind(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "cpu,pids,uts,ipc,net")
	require.NoError(t, os.Mkdir(dir+"/a", 0o755))
	v := victim.Start(t, "threads", "2")
	assert.Equal(t, "/", requireWhole(t, dir, v.Pid))
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", v.Pid))
	require.NoError(t, err)
	last := tasks[len(tasks)-1].Name()
	require.NoError(t, os.WriteFile(dir+"/a/tasks", []byte(last), 0))
	_, err = whole(dir, v.Pid)
	assert.ErrorContains(t, err, last+" is in /a, and other threads in /")
	require.NoError(t, os.WriteFile(dir+"/a/cgroup.procs", []byte(strconv.Itoa(v.Pid)), 0))
	assert.Equal(t, "/a", requireWhole(t, dir, v.Pid))
	assert.Empty(t, v.Stop())
}

// requireWhole checks that all of a process is in one container, and returns its path.
func requireWhole(t *testing.T, dir string, pid int) string {
	path, err := whole(dir, pid)
	require.NoError(t, err)
	return path
}

// whole returns the path of the container that all of a process is in, thread by thread. ESRCH: it
// has ended.
func whole(dir string, pid int) (string, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		return "", err
	}
	path, found := "", false
	namespaces := make(map[string]os.FileInfo)
	for _, task := range tasks {
		at, err := containerOf(dir, task, namespaces)
		if err == nil && found && at != path {
			err = fmt.Errorf("%s is in %s, and other threads in %s", task, at, path)
		}
		if err != nil {
			if ending(task) {
				continue
			}
			return "", err
		}
		path, found = at, true
	}
	if !found {
		return "", fmt.Errorf("process %d: %w", pid, unix.ESRCH)
	}
	return path, nil
}

// containerOf returns the path of a thread's container, all of whose states it has. It keeps the
// namespaces of containers that it has looked up.
func containerOf(dir, task string, namespaces map[string]os.FileInfo) (string, error) {
	text, err := os.ReadFile(task + "/cgroup")
	if err != nil {
		return "", err
	}
	groups := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		groups[f[1]] = f[2]
	}
	at := ""
	for label, path := range groups {
		if strings.HasPrefix(label, "name=rcfs.") && label != "name=rcfs.keep" {
			at = path
		}
	}
	for _, ns := range []string{"uts", "ipc", "net"} {
		link := filepath.Join(dir, at, ns+".ns")
		if namespaces[link] == nil {
			if _, err := os.Lstat(filepath.Join(dir, ns+".ns")); err != nil {
				continue // it is not bound
			}
			if namespaces[link], err = os.Stat(link); err != nil {
				return "", err
			}
		}
		have, err := os.Stat(task + "/ns/" + ns)
		if err != nil {
			return "", err
		}
		if !os.SameFile(namespaces[link], have) {
			return "", fmt.Errorf("%s is in %s, but not in its %s", task, at, ns)
		}
	}
	if at == "/" {
		return at, nil // the root stands for whatever was before
	}
	for controller, file := range map[string]string{"cpu": "cpu.stat", "pids": "pids.max"} {
		if _, err := os.Stat(filepath.Join(dir, at, file)); err != nil {
			continue
		}
		group, v1 := groups[controller]
		if !v1 {
			group = strings.TrimSuffix(groups[""], "/.rcfs") // where tasks are on v2
		}
		if group != "/"+rig.Base()+at {
			return "", fmt.Errorf("%s is in %s, but its %s in %s", task, at, controller, group)
		}
	}
	return at, nil
}

// ending reports whether a thread has begun to end: it is in no namespace then, and in the roots
// of cgroup v1.
func ending(task string) bool {
	stat, err := os.ReadFile(task + "/stat")
	if err != nil {
		return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH)
	}
	const flags, exiting = 9, 0x4 // proc_pid_stat(5); PF_EXITING in linux/sched.h
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	n, err := strconv.ParseUint(fields[flags-3], 10, 64)
	return err == nil && n&exiting != 0
}

func descriptorsOf(t *testing.T, pid int) int {
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	require.NoError(t, err)
	return len(names)
}

// masksOf returns the signals that each thread of a process blocks.
func masksOf(t *testing.T, pid int) map[string]string {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	require.NoError(t, err)
	masks := make(map[string]string)
	for _, task := range tasks {
		status, err := os.ReadFile(task + "/status")
		require.NoError(t, err)
		_, rest, _ := strings.Cut(string(status), "\nSigBlk:")
		masks[task], _, _ = strings.Cut(strings.TrimSpace(rest), "\n")
	}
	return masks
}

// steadyMasksOf is masksOf when no thread is in the moment in which Go, or the C library, makes another one, and
// blocks all; the C library does not block the two signals of its own.
func steadyMasksOf(t *testing.T, pid int) (masks map[string]string) {
	all := []string{"fffffffffffbfeff", "fffffffe7ffbfeff"}
	rig.Eventually(t, func() string {
		masks = masksOf(t, pid)
		for task, mask := range masks {
			if slices.Contains(all, mask) {
				return task + " blocks all signals"
			}
		}
		return ""
	})
	return masks
}

// requireMasks checks that threads block the signals that they did, except in that moment.
func requireMasks(t *testing.T, pid int, want map[string]string) {
	rig.Eventually(t, func() string {
		have := masksOf(t, pid)
		for task, mask := range want {
			if have[task] != mask {
				return fmt.Sprintf("%s blocked %s and blocks %q", task, mask, have[task])
			}
		}
		return ""
	})
}
