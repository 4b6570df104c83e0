package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// workerKills is how often the worker is killed.
func workerKills() int {
	if n, err := strconv.Atoi(os.Getenv("RCFS_STORM_WORKER_KILLS")); err == nil {
		return n
	}
	return victim.Times(30)
}

// oneWorker returns the worker, when there is one that serves.
func oneWorker(t *testing.T) (pid int) {
	t.Helper()
	rig.Eventually(t, func() string {
		pids := workers(t)
		if len(pids) != 1 {
			return fmt.Sprint("workers ", pids)
		}
		pid = pids[0]
		return ""
	})
	return pid
}

// client is something that a program does with a mount over and over, each time with no error.
type client struct {
	name string
	do   func(i int) error
}

// clients are eight, or seven where the kernel cannot rename, that write values, move tasks, make, rename and remove containers, and list.
func clients(t *testing.T, dir string) []client {
	home := func(i int) string {
		d := fmt.Sprintf("%s/c%d", dir, i)
		require.NoError(t, os.Mkdir(d, 0o755))
		return d
	}
	values, values2, moves, moves2 := home(0), home(1), home(2), home(3)
	makes, makes2, renamed := home(4), home(5), home(6)
	canRename := renames(t, renamed)
	require.NoError(t, os.Mkdir(renamed+"/0", 0o755))
	write := func(d string) func(int) error {
		return func(i int) error {
			want := strconv.Itoa(1000 + i%1000)
			if err := writeOnce(d+"/pids.max", want); err != nil {
				return err
			}
			if got, err := readOnce(d + "/pids.max"); err != nil || got != want+"\n" {
				return fmt.Errorf("read %q for %s: %w", got, want, err)
			}
			return nil
		}
	}
	mover := func(d string, args ...string) func(int) error {
		require.NoError(t, os.Mkdir(d+"/x", 0o755))
		v := victim.Start(t, args[0], args[1:]...)
		t.Cleanup(func() {
			require.NoError(t, writeOnce(dir+"/tasks", strconv.Itoa(v.Pid)))
			assert.Empty(t, v.Stop())
		})
		return func(i int) error {
			to := []string{d, d + "/x"}[i%2]
			err := unix.EAGAIN // on a loaded machine, of a target that does not get a processor in time
			for try := 0; try < 20 && err == unix.EAGAIN; try++ {
				e := writeOnce(to+"/cgroup.procs", strconv.Itoa(v.Pid))
				if e == nil {
					break
				}
				if !errors.As(e, &err) || err != unix.EAGAIN {
					return e
				}
			}
			if list, e := readOnce(to + "/cgroup.procs"); e != nil || list != fmt.Sprintln(v.Pid) {
				return fmt.Errorf("members %q: %w", list, e)
			}
			return nil
		}
	}
	maker := func(d string) func(int) error {
		return func(i int) error {
			name := fmt.Sprintf("%s/%d", d, i)
			if err := os.Mkdir(name, 0o755); err != nil {
				return err
			}
			if err := os.Mkdir(name, 0o755); !errors.Is(err, os.ErrExist) {
				return fmt.Errorf("a second time: %w", err)
			}
			if err := unix.Rmdir(name); err != nil {
				return fmt.Errorf("rmdir %s: %w", name, err)
			}
			if err := unix.Rmdir(name); err != unix.ENOENT {
				return fmt.Errorf("rmdir a second time: %w", err)
			}
			return nil
		}
	}
	list := []client{
		{"write", write(values)},
		{"write another", write(values2)},
		{"move a thread", mover(moves, "single")},
		{"move threads", mover(moves2, "threads", "4")},
		{"make", maker(makes)},
		{"make others", maker(makes2)},
		{"list", func(int) error {
			entries, err := os.ReadDir(dir)
			var found int
			for _, e := range entries {
				if e.IsDir() {
					found++
				}
			}
			if err == nil && found != 7 {
				err = fmt.Errorf("%d containers", found)
			}
			return err
		}},
	}
	if canRename {
		list = append(list, client{"rename", func(i int) error {
			return os.Rename(fmt.Sprintf("%s/%d", renamed, i), fmt.Sprintf("%s/%d", renamed, i+1))
		}})
	}
	return list
}

// writeOnce and readOnce are open, one write or read of everything, close; a signal of Go's interrupts none of them.
func writeOnce(file, data string) error {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte(data))
		unix.Close(fd)
	}
	if err != nil {
		return &os.PathError{Op: "write", Path: file, Err: err}
	}
	return nil
}

func readOnce(file string) (string, error) {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: file, Err: err}
	}
	defer unix.Close(fd)
	var text bytes.Buffer
	for piece := make([]byte, 4096); ; {
		n, err := unix.Read(fd, piece)
		if err != nil {
			return "", &os.PathError{Op: "read", Path: file, Err: err}
		}
		if n == 0 {
			return text.String(), nil
		}
		text.Write(piece[:n])
	}
}

// underLoad does f while clients work, and returns how often they did what they do.
func underLoad(t *testing.T, all []client, f func(count *atomic.Int64)) (done int64) {
	var count atomic.Int64
	var group sync.WaitGroup
	stop := make(chan struct{})
	for _, c := range all {
		group.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := c.do(i); err != nil {
					t.Errorf("%s: %v", c.name, err)
					return
				}
				count.Add(1)
			}
		})
	}
	f(&count)
	close(stop)
	group.Wait()
	return count.Load()
}

// requireProgress waits until clients have done something more.
func requireProgress(t *testing.T, count *atomic.Int64) {
	t.Helper()
	before := count.Load()
	rig.Eventually(t, func() string {
		if count.Load() < before+8 && !t.Failed() {
			return "the clients make no progress"
		}
		return ""
	})
}

// The worker is killed at random moments while clients work: no client sees an error, nothing is lost or done
// twice, and nothing grows.
func TestWorkerKilled(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "cpu,pids,uts,net")
	all := clients(t, dir)
	keeper := currentStatus(t).PID
	var fds, memory int
	done := underLoad(t, all, func(count *atomic.Int64) {
		for i := range workerKills() {
			pid := oneWorker(t)
			if i%3 > 0 { // now and then before it serves
				requireProgress(t, count)
			}
			if i == 11 { // it serves, so the keeper is done with starting it
				fds, memory = descriptorsOf(t, keeper), memoryOf(t, keeper)
			}
			time.Sleep(time.Duration(rand.IntN(60000)) * time.Microsecond)
			unix.Kill(pid, unix.SIGKILL)
			rig.Eventually(t, func() string {
				if pids := workers(t); len(pids) != 1 || pids[0] == pid {
					return fmt.Sprint("no new worker: ", pids)
				}
				return ""
			})
			if t.Failed() {
				break
			}
		}
	})
	t.Logf("%d kills, %d times", workerKills(), done)
	if t.Failed() {
		log, _ := os.ReadFile(logPath)
		t.Logf("%s", log[max(0, len(log)-20000):])
	}
	st := currentStatus(t)
	assert.Equal(t, keeper, st.PID)
	if workerKills() > 11 {
		assert.Equal(t, fds, descriptorsOf(t, keeper), "descriptors of the keeper")
		assert.LessOrEqual(t, memoryOf(t, keeper), memory*12/10, "kB of the keeper")
	}
}

// memoryOf returns the resident memory of a process, in kB.
func memoryOf(t *testing.T, pid int) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(status), "\nVmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	require.NoError(t, err)
	return n
}

// What is open stays so over ten restarts: a shell's working directory, a file that is read now and then, one
// that is written, and a poll that waits.
func TestRestartKeepsWhatIsOpen(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "cpu,pids,uts")
	a := dir + "/a"
	require.NoError(t, os.Mkdir(a, 0o755))
	v := victim.Start(t, "idle")
	shell := exec.Command("bash", "-c", "while read line; do cat rcfs.events; done")
	shell.Dir = a
	in, err := shell.StdinPipe()
	require.NoError(t, err)
	out, err := shell.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, shell.Start())
	limit, err := unix.Open(a+"/pids.max", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(limit)
	events, err := unix.Open(a+"/rcfs.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(events)
	answer := make([]byte, 64)
	for i := range 10 {
		populated := fmt.Sprintf("populated %d\n", i%2)
		n, err := unix.Pread(events, answer, 0)
		require.NoError(t, err)
		require.Equal(t, populated, string(answer[:n]))
		polled := make(chan error, 1)
		go func() {
			p := []unix.PollFd{{Fd: int32(events), Events: unix.POLLPRI}}
			n, err := unix.Poll(p, 20000)
			for err == unix.EINTR { // Go's own signals
				n, err = unix.Poll(p, 20000)
			}
			if err == nil && (n != 1 || p[0].Revents&unix.POLLPRI == 0) {
				err = fmt.Errorf("%d files, %#x", n, p[0].Revents)
			}
			polled <- err
		}()
		before := oneWorker(t)
		if i%2 == 0 {
			ok(t, "rcfs", "restart")
		} else {
			require.NoError(t, unix.Kill(daemons(t)[0], unix.SIGHUP))
			rig.Eventually(t, func() string {
				if now := workers(t); len(now) != 1 || now[0] == before {
					return "no other worker"
				}
				return ""
			})
		}
		_, err = io.WriteString(in, "\n")
		require.NoError(t, err)
		n, err = out.Read(answer)
		require.NoError(t, err)
		require.Equal(t, populated, string(answer[:n]), "of the shell")
		want := strconv.Itoa(1000+i) + "\n"
		_, err = unix.Pwrite(limit, []byte(want), 0)
		require.NoError(t, err)
		n, err = unix.Pread(limit, answer, 0)
		require.NoError(t, err)
		require.Equal(t, want, string(answer[:n]))
		select {
		case err := <-polled:
			t.Fatal("nothing has changed: ", err)
		default:
		}
		require.NoError(t, writeOnce([]string{a, dir}[i%2]+"/tasks", strconv.Itoa(v.Pid)))
		require.NoError(t, <-polled)
	}
	in.Close()
	require.NoError(t, shell.Wait())
	assert.Empty(t, v.Stop())
}

// Who waits for rcfs.events is told when a task comes, from here or from below, when the last one ends, and
// when the container is removed; by poll(2), epoll(7) and select(2).
func TestEventsWakeWaiters(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "pids,uts")
	a := dir + "/a"
	require.NoError(t, os.MkdirAll(a+"/b", 0o755))
	fd, err := unix.Open(a+"/rcfs.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(ep)
	require.NoError(t, unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLPRI, Fd: int32(fd)}))
	ways := map[string]func(ms int) (int, error){
		"poll": func(ms int) (int, error) {
			return unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}, ms)
		},
		"epoll": func(ms int) (int, error) { return unix.EpollWait(ep, make([]unix.EpollEvent, 1), ms) },
		"select": func(ms int) (int, error) {
			var set unix.FdSet
			set.Set(fd)
			return unix.Select(fd+1, nil, nil, &set, &unix.Timeval{Usec: int64(ms) * 1000 % 1e6, Sec: int64(ms) / 1000})
		},
	}
	wait := func(way string, ms int) (n int) {
		for {
			var err error
			if n, err = ways[way](ms); err != unix.EINTR {
				require.NoError(t, err, way)
				return n
			}
		}
	}
	read := func() string {
		b := make([]byte, 64)
		n, err := unix.Pread(fd, b, 0)
		require.NoError(t, err)
		return string(b[:n])
	}
	for way := range ways {
		require.Zero(t, wait(way, 20), "%s: nothing has happened", way)
		v := victim.Start(t, "idle")
		for _, c := range []struct {
			what string
			do   func()
		}{
			{"populated 1\n", func() { require.NoError(t, writeOnce(a+"/b/tasks", strconv.Itoa(v.Pid))) }},
			{"populated 0\n", func() { require.NoError(t, writeOnce(dir+"/tasks", strconv.Itoa(v.Pid))) }},
			{"populated 1\n", func() { require.NoError(t, writeOnce(a+"/tasks", strconv.Itoa(v.Pid))) }},
			{"populated 0\n", func() { require.Empty(t, v.Stop()) }},
		} {
			told := make(chan int, 1)
			go func() { told <- wait(way, 20000) }()
			time.Sleep(5 * time.Millisecond) // now and then it waits by now
			c.do()
			begun := time.Now()
			n := <-told
			t.Log(way, c.what, time.Since(begun))
			require.Equal(t, 1, n, "%s: %s", way, c.what)
			require.Equal(t, c.what, read())
			require.Zero(t, wait(way, 20), "%s: it has been read", way)
		}
	}
	// One that came and went is a change.
	v := victim.Start(t, "idle")
	require.NoError(t, writeOnce(a+"/tasks", strconv.Itoa(v.Pid)))
	require.NoError(t, writeOnce(dir+"/tasks", strconv.Itoa(v.Pid)))
	require.Equal(t, 1, wait("poll", 20000))
	require.Equal(t, "populated 0\n", read())
	assert.Empty(t, v.Stop())
}

// A worker whose keeper is killed becomes the keeper; nothing is lost.
func TestKeeperKilled(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "cpu,pids,uts,net")
	all := clients(t, dir)
	underLoad(t, all, func(count *atomic.Int64) {
		for range 5 {
			requireProgress(t, count)
			keeper := daemons(t)
			require.Len(t, keeper, 1)
			worker := oneWorker(t)
			time.Sleep(time.Duration(rand.IntN(60000)) * time.Microsecond)
			require.NoError(t, unix.Kill(keeper[0], unix.SIGKILL))
			rig.Eventually(t, func() string {
				reapOrphans()
				if now := daemons(t); len(now) != 1 || now[0] != worker || len(workers(t)) != 1 {
					return fmt.Sprint("keepers ", now, ", workers ", workers(t))
				}
				return ""
			})
		}
	})
	if t.Failed() {
		log, _ := os.ReadFile(logPath)
		t.Logf("%s", log[max(0, len(log)-20000):])
	}
}

// The program on disk takes over under full load: no client sees an error. The longest pause is printed.
func TestUpgrade(t *testing.T) {
	machine(t)
	dir := place(t)
	program := filepath.Join(t.TempDir(), "rcfsd")
	install := func(version string) {
		self, err := os.ReadFile("/proc/self/exe")
		require.NoError(t, err)
		// What is behind an executable's end means nothing to the kernel, and makes it another file.
		require.NoError(t, os.WriteFile(program+".new", append(self, version...), 0o755))
		require.NoError(t, os.Rename(program+".new", program))
	}
	install("one")
	daemon := exec.Command(program)
	daemon.Args[0] = "rcfsd"
	require.NoError(t, daemon.Start())
	t.Cleanup(func() {
		removeContainers(t, dir)
		unmountAll(t, dir)
		daemon.Process.Signal(unix.SIGTERM)
		assert.NoError(t, daemon.Wait())
	})
	rig.Eventually(t, func() string {
		c, err := dial()
		if err != nil {
			return err.Error()
		}
		c.Close()
		return ""
	})
	mountOn(t, dir, "cpu,pids,uts,net")
	all := clients(t, dir)
	var longest atomic.Int64
	for i, c := range all {
		all[i].do = func(i int) error {
			start := time.Now()
			err := c.do(i)
			longest.Store(max(longest.Load(), int64(time.Since(start))))
			return err
		}
	}
	underLoad(t, all, func(*atomic.Int64) {
		for i := range 5 {
			install(strings.Repeat("x", i+1))
			ok(t, "rcfs", "restart")
			st := currentStatus(t)
			assert.Equal(t, daemon.Process.Pid, st.PID)
			want, err := os.Stat(program)
			require.NoError(t, err)
			have, err := os.Stat(fmt.Sprintf("/proc/%d/exe", st.Worker))
			require.NoError(t, err)
			assert.True(t, os.SameFile(want, have), "the worker is the program on disk")
		}
		// One that cannot be executed is not taken: the keeper's own goes on.
		require.NoError(t, os.WriteFile(program+".new", []byte("no program"), 0o755))
		require.NoError(t, os.Rename(program+".new", program))
		ok(t, "rcfs", "restart")
	})
	t.Logf("longest operation over six upgrades: %s", time.Duration(longest.Load()))
}

// Mounting, and what rcfs(1) asks, is not disturbed by workers that come and go.
func TestMountThroughRestarts(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "uts") // so that the daemon stays
	second := place(t)
	end := make(chan bool)
	var killer sync.WaitGroup
	killer.Go(func() {
		for i := 0; ; i++ {
			st, err := askStatus() // there is one that serves
			select {
			case <-end:
				return
			case <-time.After(time.Duration(rand.IntN(50)) * time.Millisecond):
			}
			switch {
			case err != nil:
			case i%2 == 0:
				unix.Kill(st.PID, unix.SIGHUP)
			default:
				unix.Kill(st.Worker, unix.SIGKILL)
			}
		}
	})
	for range victim.Times(12) {
		mountOn(t, second, "pids")
		ok(t, "rcfs", "status")
		unmountAll(t, second)
	}
	close(end)
	killer.Wait()
}

// A controller's open file does not need the worker where the kernel passes it through; opened again from the next
// worker it is the same file to the kernel.
func TestPassedThroughWithoutWorker(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "pids,uts")
	a := dir + "/a"
	require.NoError(t, os.Mkdir(a, 0o755))
	limit, err := unix.Open(a+"/pids.max", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(limit)
	value := func(fd int) string {
		b := make([]byte, 64)
		n, err := unix.Pread(fd, b, 0)
		require.NoError(t, err)
		return string(b[:n])
	}
	worker := oneWorker(t)
	require.NoError(t, unix.Kill(worker, unix.SIGSTOP))
	done := make(chan string, 1)
	go func() {
		if _, err := unix.Pwrite(limit, []byte("7"), 0); err != nil {
			done <- err.Error()
		}
		done <- "written"
	}()
	select {
	case says := <-done:
		require.Equal(t, "written", says)
		require.True(t, rig.KernelIsAtLeast(6, 9), "who has written that?")
		require.Equal(t, "7\n", value(limit))
		require.NoError(t, unix.Kill(worker, unix.SIGCONT))
	case <-time.After(time.Second):
		require.NoError(t, unix.Kill(worker, unix.SIGCONT))
		require.Equal(t, "written", <-done)
		require.False(t, rig.KernelIsAtLeast(6, 9), "FUSE_PASSTHROUGH is of Linux 6.9")
	}
	for i := range 3 {
		require.NoError(t, unix.Kill(oneWorker(t), unix.SIGKILL))
		want := strconv.Itoa(10+i) + "\n"
		require.NoError(t, writeOnce(a+"/pids.max", want))
		require.Equal(t, want, value(limit))
	}
	require.NoError(t, os.Remove(a))
	_, err = unix.Pread(limit, make([]byte, 64), 0)
	require.Equal(t, unix.ENODEV, err)
}

// A request that kills whoever serves it is given up, and only that. The killing is done here, while it is in
// hand for a target that does not stop.
func TestPoison(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "pids,uts")
	require.NoError(t, os.Mkdir(dir+"/a", 0o755))
	v := victim.Start(t, "vfork")
	result := make(chan error, 1)
	crash := func() {
		pid := currentStatus(t).Worker // it serves
		time.Sleep(20 * time.Millisecond)
		require.NoError(t, unix.Kill(pid, unix.SIGABRT))
		rig.Eventually(t, func() string {
			if slices.Contains(workers(t), pid) {
				return "it does not end"
			}
			return ""
		})
	}
	err := unix.EAGAIN // it was answered before the crash
	for try := 0; try < 20 && err == unix.EAGAIN; try++ {
		go func() { result <- writeOnce(dir+"/a/tasks", strconv.Itoa(v.Pid)) }()
		crash()
		crash()
		require.ErrorAs(t, <-result, &err)
	}
	require.Equal(t, unix.EIO, err)
	_, e := os.ReadDir(dir)
	require.NoError(t, e)
	assert.Empty(t, v.Stop())
	require.NoError(t, writeOnce(dir+"/a/pids.max", "10"))
}
