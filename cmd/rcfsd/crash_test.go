package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// crash is an operation that the daemon is killed in.
type crash struct {
	name    string
	options string // of the mount; "" where the operation makes it itself
	// reset brings everything to where it is before the operation, from whichever of the two states it is in.
	reset func(t *testing.T, dir string)
	// run does it as a client. It returns when it is over, or the daemon is dead.
	run      func(dir string, dead func() bool) error
	programs bool // run starts programs for it
	unheard  bool // it succeeds all the same
}

const (
	crashGroups     = "cpu,pids"
	crashNamespaces = "uts,net,time,pid,userns,mnt,cgroupns"
	crashValues     = "oom,sched,umask"
)

// stride is how many steps of an operation of so many lie between two that are tried: RCFS_STORM_STEPS,
// else as many as there are: it is tried at one of them, and at its end.
func stride(calls int) int {
	if n, err := strconv.Atoi(os.Getenv("RCFS_STORM_STEPS")); err == nil && n > 0 {
		return n
	}
	return max(1, calls)
}

// someCrashes leaves five of them, a slow machine two, other ones each time; with RCFS_STORM_STEPS all.
func someCrashes(all []crash) []crash {
	if os.Getenv("RCFS_STORM_STEPS") != "" {
		return all
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:victim.Times(5)]
}

func crashes(t *testing.T) []crash {
	v := victim.Start(t, "threads", "2")
	t.Cleanup(func() { require.Empty(t, v.Stop()) })
	var list []crash
	for _, options := range []string{crashGroups, crashNamespaces, "cpu,cgroupns,uts", crashValues} {
		list = append(list,
			crash{"mkdir " + options, options, func(t *testing.T, dir string) { removeContainers(t, dir) },
				func(dir string, _ func() bool) error { return unix.Mkdir(dir+"/a", 0o755) }, false, false},
			crash{"rmdir " + options, options, func(t *testing.T, dir string) { fresh(t, dir, "a") },
				func(dir string, _ func() bool) error { return unix.Rmdir(dir + "/a") }, false, false},
			crash{"chown " + options, options, func(t *testing.T, dir string) { fresh(t, dir, "a") },
				func(dir string, _ func() bool) error { return unix.Chown(dir+"/a", 1000, 1000) }, false, false},
			crash{"rename " + options, options, func(t *testing.T, dir string) { fresh(t, dir, "a") },
				func(dir string, _ func() bool) error { return unix.Rename(dir+"/a", dir+"/\xff b") }, false, false},
		)
	}
	return append(list,
		crash{"chmod", crashGroups, func(t *testing.T, dir string) { fresh(t, dir, "a") },
			func(dir string, _ func() bool) error { return unix.Chmod(dir+"/a", 0o700) }, false, false},
		crash{"move", "cpu,pids,uts,ipc,net", func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(dir+"/tasks", []byte(strconv.Itoa(v.Pid)), 0))
			fresh(t, dir, "a")
		}, func(dir string, _ func() bool) error { return moveOnce(dir+"/a", v.Pid) }, false, false},
		crash{"move with values", crashValues + ",pids,uts", func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(dir+"/tasks", []byte(strconv.Itoa(v.Pid)), 0))
			fresh(t, dir, "a")
		}, func(dir string, _ func() bool) error { return moveOnce(dir+"/a", v.Pid) }, false, false},
		crash{"a value of members", crashValues, func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(dir+"/tasks", []byte(strconv.Itoa(v.Pid)), 0))
			fresh(t, dir, "a")
			require.NoError(t, os.WriteFile(dir+"/a/tasks", []byte(strconv.Itoa(v.Pid)), 0))
		}, func(dir string, _ func() bool) error { return writeRaw(dir+"/a/sched.nice", "9") }, false, false},
		crash{"a value that members change", crashValues, func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(dir+"/tasks", []byte(strconv.Itoa(v.Pid)), 0))
			fresh(t, dir, "a")
			require.NoError(t, os.WriteFile(dir+"/a/tasks", []byte(strconv.Itoa(v.Pid)), 0))
		}, func(dir string, _ func() bool) error { return writeRaw(dir+"/a/umask.mask", "77") }, false, false},
		crash{"mount", "", func(t *testing.T, dir string) { detach(dir) },
			func(dir string, _ func() bool) error {
				return program("mount", "-t", fsType, "-o", words("cpu,uts"), "none", dir)
			}, true, false},
		crash{"remount", "cpu,uts", func(t *testing.T, dir string) {
			if findmnt(t, dir, "SOURCE") != "cpu,uts" {
				ok(t, "umount", dir)
				mountOn(t, dir, "cpu,uts")
			}
		}, func(dir string, _ func() bool) error {
			return program("mount", "-o", "remount,"+words("pids,ipc"), dir)
		}, true, false},
		crash{"umount", "cpu,uts", func(t *testing.T, dir string) {
			if !hasView(dir) {
				mountOn(t, dir, "cpu,uts")
			}
		},
			func(dir string, dead func() bool) error {
				if err := unix.Unmount(dir, 0); err != nil {
					return err
				}
				for slices.Contains(hierarchies(t), "cpu-uts") && !dead() {
					time.Sleep(time.Millisecond)
				}
				return nil
			}, true, false},
	)
}

// The daemon is killed between any two system calls of an operation, and started again: the operation has
// been done or not done at all, and nothing is left of the half of it.
func TestDaemonCrashesAtEveryStep(t *testing.T) {
	machine(t)
	keep := place(t)
	mountOn(t, keep, "none,name=keep")
	require.NoError(t, os.Mkdir(keep+"/a", 0o755)) // so that the daemon does not end
	for _, c := range someCrashes(crashes(t)) {
		t.Run(c.name, func(t *testing.T) { crashAtSteps(t, keep, &c, daemonPIDs) })
	}
}

// Where only the worker is killed, the client hears nothing of it, and the operation is done.
func TestWorkerCrashesAtEveryStep(t *testing.T) {
	machine(t)
	keep := place(t)
	mountOn(t, keep, "none,name=keep")
	require.NoError(t, os.Mkdir(keep+"/a", 0o755))
	for _, c := range someCrashes(crashes(t)) {
		if c.programs {
			continue // of which the mount helper has a part, that may fail with the worker
		}
		c.unheard = true
		t.Run(c.name, func(t *testing.T) { crashAtSteps(t, keep, &c, func(t *testing.T) []int { return []int{oneWorker(t)} }) })
	}
}

func crashAtSteps(t *testing.T, keep string, c *crash, victims func(*testing.T) []int) {
	dir := place(t)
	if c.options != "" {
		mountOn(t, dir, c.options)
	}
	defer func() {
		detachDead(keep)
		if !hasView(keep) {
			mountOn(t, keep, "none,name=keep")
		}
		if c.options != "" && live(dir) != nil {
			mountOn(t, dir, c.options)
		}
		if live(dir) == nil {
			c.reset(t, dir)
			members, err := os.ReadFile(dir + "/a/cgroup.procs")
			for pid := range strings.FieldsSeq(string(members)) {
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(dir+"/tasks", []byte(pid), 0))
			}
			removeContainers(t, dir)
		}
		detach(dir)
		rig.Eventually(t, func() string {
			if names := append(hierarchies(t), hierarchiesOfValues(t)...); len(names) > 1 {
				log, _ := os.ReadFile(logPath)
				return fmt.Sprintf("%v, view %v; log:\n%s", names, hasView(dir), log[max(0, len(log)-3000):])
			}
			return ""
		})
	}()
	c.reset(t, dir)
	before := picture(t, dir)
	err := c.run(dir, func() bool { return false })
	if err == unix.EPERM && strings.HasPrefix(c.name, "rename") {
		backends, err := os.ReadFile(dir + "/rcfs.subsystems")
		require.NoError(t, err)
		require.Regexp(t, `(?m)^cpu\t.*\tv2$`, string(backends), "only cgroup v2 cannot")
		t.Skip("cgroup v2 cannot rename")
	}
	require.NoError(t, err)
	after := picture(t, dir)
	require.NotEqual(t, before, after)
	c.reset(t, dir)
	k, err := crashAt(t, c, victims(t), dir, 0) // after its end
	require.NoError(t, err)
	restart(t, c, keep, dir)
	require.Contains(t, []string{before, after}, settled(t, dir, before, after))
	by := stride(k.calls)
	points, ends := 0, map[bool]int{}
	start := time.Now()
	// Not each time there are as many; to be sure of the last one, it has to go past it.
	for n := 1 + rand.IntN(by); by == 1 || n <= k.calls; {
		if c.options != "" && live(dir) != nil {
			mountOn(t, dir, c.options)
		}
		c.reset(t, dir)
		require.Equal(t, before, settled(t, dir, before), "before step %d", n)
		k, err := crashAt(t, c, victims(t), dir, n)
		at := k.at
		restart(t, c, keep, dir)
		now := settled(t, dir, before, after)
		if now != after && (now != before || c.unheard) || c.unheard && err != nil && err != unix.EAGAIN {
			log, _ := os.ReadFile(logPath)
			t.Fatalf("killed at step %d, %s (the client heard: %v)\n--- before:\n%s--- after:\n%s--- now:\n%s--- log:\n%s", n, at, err, before, after, now, log)
		}
		_, found, _ := call(t, "rcfs", "doctor")
		if code, again, stderr := call(t, "rcfs", "doctor"); code != 0 || again != "" || stderr != "" {
			t.Fatalf("killed at step %d, %s: rcfs doctor finds %s%s after it has found %s", n, at, again, stderr, found)
		}
		if (at == "" || c.unheard) && errors.Is(err, unix.EAGAIN) {
			continue // the target could not be stopped in time: all is slow while it is watched
		}
		if at == "" {
			require.NoError(t, err)
			break
		}
		points++
		ends[now == after]++
		n += by
	}
	t.Logf("%d points of %d in %s: not done %d, done %d", points, k.calls, time.Since(start).Round(time.Millisecond), ends[false], ends[true])
}

// crashAt kills the daemon at one step of the operation, at its end where it has not so many.
func crashAt(t *testing.T, c *crash, victims []int, dir string, n int) (k killing, err error) {
	s, err := step(victims, n)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- c.run(dir, func() bool { return len(s.ended) > 0 }) }()
	select {
	case err = <-done:
	case <-time.After(stepperPatience + 20*time.Second):
		t.Error("the client hangs")
	}
	k = s.finish()
	require.NoError(t, k.err)
	return k, err
}

// daemonPIDs returns the processes that are killed as one.
func daemonPIDs(t *testing.T) []int {
	t.Helper()
	pids := append(daemons(t), oneWorker(t)) // the keeper first, or it would start a worker
	require.Len(t, pids, 2)
	return pids
}

// restart starts the daemon and mounts again what it had. A mount helper may have started one already.
func restart(t *testing.T, c *crash, keep, dir string) {
	t.Helper()
	detachDead(dir)
	switch {
	case c.options != "" && c.name != "umount":
		if !hasView(dir) {
			mountOn(t, dir, c.options)
		}
	default:
		detachDead(keep)
		if !hasView(keep) {
			mountOn(t, keep, "none,name=keep")
		}
	}
}

// settled is the picture once it is one of those wanted, or what it is after a while.
func settled(t *testing.T, dir string, wanted ...string) string {
	now := ""
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		reapOrphans()
		if now = picture(t, dir); slices.Contains(wanted, now) || time.Now().After(deadline) {
			return now
		}
	}
}

// picture is all that an operation can change, without the numbers that differ from time to time.
func picture(t *testing.T, dir string) string {
	reapOrphans()
	var lines []string
	if live(dir) == nil {
		lines = append(lines, "source "+findmnt(t, dir, "SOURCE"))
		lines = append(lines, tree(t, dir, "")...)
	}
	for _, name := range hierarchies(t) {
		lines = append(lines, "hierarchy "+name)
	}
	for _, name := range hierarchiesOfValues(t) {
		lines = append(lines, "hierarchy of values "+name)
	}
	lines = append(lines, groups(t)...)
	pins, err := filepath.Glob(runDir + "/ns/*/*")
	require.NoError(t, err)
	for _, pin := range pins {
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(pin, &st))
		_, what, _ := strings.Cut(filepath.Base(pin), ".")
		lines = append(lines, fmt.Sprintf("pin %s %s %v", filepath.Base(filepath.Dir(pin)), what, st.Type == unix.NSFS_MAGIC))
	}
	lines = append(lines, keepers(t)...)
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

// tree is a line for each container and what can be seen of it.
func tree(t *testing.T, dir, path string) []string {
	var st unix.Stat_t
	at := dir + path
	require.NoError(t, unix.Stat(at, &st))
	line := fmt.Sprintf("container %q %d %d %o", path, st.Uid, st.Gid, st.Mode)
	if path != "" {
		links, err := filepath.Glob(dir + "/*.ns")
		require.NoError(t, err)
		for _, link := range links {
			own, err := os.Stat(at + "/" + filepath.Base(link))
			require.NoError(t, err)
			root, err := os.Stat(link)
			require.NoError(t, err)
			line += fmt.Sprintf(" %s=%v", filepath.Base(link), !os.SameFile(own, root))
		}
		for _, file := range []string{"uts.hostname", "cpu.shares", "rcfs.unshare", "userns.uid_map", "oom.score_adj", "sched.nice", "umask.mask"} {
			if text, err := os.ReadFile(at + "/" + file); err == nil {
				line += fmt.Sprintf(" %s=%q", file, text)
			}
		}
		procs, err := os.ReadFile(at + "/cgroup.procs")
		require.NoError(t, err)
		for pid := range strings.FieldsSeq(string(procs)) {
			n, err := strconv.Atoi(pid)
			require.NoError(t, err)
			in, err := whole(dir, n)
			line += fmt.Sprintf(" process in %q, %v, has %s", in, err, valuesOf(n))
		}
	}
	lines := []string{line}
	entries, err := os.ReadDir(at)
	require.NoError(t, err)
	for _, e := range entries {
		if e.IsDir() {
			lines = append(lines, tree(t, dir, path+"/"+e.Name())...)
		}
	}
	return lines
}

// valuesOf are the values that the threads of a process have, each once.
func valuesOf(pid int) string {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	have := make(map[string]bool)
	for _, task := range tasks {
		tid, _ := strconv.Atoi(filepath.Base(task))
		oom, _ := os.ReadFile(task + "/oom_score_adj")
		status, err := os.ReadFile(task + "/status")
		nice, niceErr := unix.Getpriority(unix.PRIO_PROCESS, tid)
		if err == nil && niceErr == nil {
			_, mask, _ := strings.Cut(string(status), "\nUmask:\t")
			have[fmt.Sprintf("%s %d %.4s", bytes.TrimSpace(oom), 20-nice, mask)] = true
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(have)), ", ")
}

// groups are the tests' groups in the kernel's hierarchies.
func groups(t *testing.T) []string {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	require.NoError(t, err)
	var lines []string
	for _, m := range mounts {
		base := m.Mountpoint + "/" + rig.Base()
		filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				lines = append(lines, fmt.Sprintf("group %q", path))
			}
			return nil
		})
	}
	return lines
}

// keepers is a line for each process that a container is kept by.
func keepers(t *testing.T) []string {
	own, err := os.Readlink("/proc/self/ns/mnt")
	require.NoError(t, err)
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	var lines []string
	for _, file := range files {
		stat, _ := os.ReadFile(file)
		theirs, err := os.Readlink(filepath.Dir(file) + "/ns/mnt") // that of a zombie cannot be read
		if err == nil && theirs == own && strings.Contains(string(stat), "(rcfs-keeper)") {
			lines = append(lines, "keeper")
		}
	}
	return lines
}

// fresh makes a container as its reset wants it: new, with something set in it.
func fresh(t *testing.T, dir, name string) {
	removeContainers(t, dir)
	require.NoError(t, os.Mkdir(dir+"/"+name, 0o755))
	if _, err := os.Stat(dir + "/uts.hostname"); err == nil {
		require.NoError(t, os.WriteFile(dir+"/"+name+"/uts.hostname", []byte("kept"), 0))
	}
	if _, err := os.Stat(dir + "/" + name + "/sched.nice"); err == nil {
		require.NoError(t, os.WriteFile(dir+"/"+name+"/sched.nice", []byte("5"), 0))
		require.NoError(t, os.WriteFile(dir+"/"+name+"/oom.score_adj", []byte("50"), 0))
		require.NoError(t, os.WriteFile(dir+"/"+name+"/umask.mask", []byte("7"), 0))
	}
}

// program runs a program whose failure is an answer.
func program(name string, args ...string) error {
	return exec.Command(name, args...).Run()
}

func moveOnce(dir string, pid int) error { return writeRaw(dir+"/cgroup.procs", strconv.Itoa(pid)) }

// writeRaw is a write whose errno is the answer.
func writeRaw(file, text string) error {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(text))
	return err
}

// hierarchies are those of rcfs that the kernel has.
func hierarchies(t *testing.T) []string {
	text, err := os.ReadFile("/proc/self/cgroup")
	require.NoError(t, err)
	var names []string
	for line := range strings.Lines(string(text)) {
		_, rest, _ := strings.Cut(line, ":")
		if name, ours := strings.CutPrefix(rest, "name=rcfs."); ours {
			name, _, _ = strings.Cut(name, ":")
			names = append(names, name)
		}
	}
	return names
}

// hierarchiesOfValues are those that values have.
func hierarchiesOfValues(t *testing.T) []string {
	text, err := os.ReadFile("/proc/self/cgroup")
	require.NoError(t, err)
	var names []string
	for line := range strings.Lines(string(text)) {
		if _, rest, ours := strings.Cut(line, "name=rcfs-"); ours {
			name, _, _ := strings.Cut(rest, ":")
			names = append(names, name)
		}
	}
	return names
}

// live returns why there is no view on dir that answers.
func live(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	if !hasView(dir) {
		return unix.EINVAL
	}
	return nil
}

func hasView(dir string) bool {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	return err == nil && len(mounts) > 0
}

// detachDead takes away a view that nobody serves.
func detachDead(dir string) {
	for hasView(dir) && live(dir) != nil {
		if unix.Unmount(dir, unix.MNT_DETACH) != nil {
			return
		}
	}
}

// detach unmounts all views on dir. What has just been closed may be in use for a moment: a child that is
// being started has it, too.
func detach(dir string) {
	for deadline := time.Now().Add(5 * time.Second); hasView(dir) && time.Now().Before(deadline); {
		if unix.Unmount(dir, 0) != nil {
			time.Sleep(time.Millisecond)
		}
	}
}
