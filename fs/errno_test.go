package fs_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// as runs a shell command as another user, and returns whether it succeeded and what it said.
func as(uid uint32, command string) error {
	_, err := output(uid, command)
	return err
}

// output is as with what the command prints.
func output(uid uint32, command string) (string, error) {
	cmd := exec.Command("sh", "-c", `bash -c "$1"; exit $?`, "sh", command)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return string(out), err
}

// kernelThread finds one: kthreadd, where the pid namespace shows it, always is process 2.
func kernelThread(t *testing.T) string {
	comm, err := os.ReadFile("/proc/2/comm")
	require.NoError(t, err)
	require.Equal(t, "kthreadd\n", string(comm))
	return "2"
}

// The table of interface.md for writes to tasks. After every refusal the world is as it was.
func TestErrnoOfTasks(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("pids", "uts"))
	a := mkdir(t, dir+"/a")
	// v2 takes whole processes only. Its controllers are in one hierarchy, so where pids is one
	// of them that refuses, and another one cannot be mounted beside it.
	whole, b, wholeOnly := dir, a, "pids"
	if !onV2(t, sys, "pids") && onV2(t, sys, "hugetlb") {
		wholeOnly = "hugetlb"
		whole = mount(t, sys, rig.Spec(wholeOnly))
		b = mkdir(t, whole+"/b")
	}
	haveWhole := onV2(t, sys, wholeOnly)
	v := victim.Start(t, "threads", "3")
	pid := fmt.Sprint(v.Pid)
	threads, err := os.ReadDir("/proc/" + pid + "/task")
	require.NoError(t, err)
	thread := threads[len(threads)-1].Name()

	threadAlone, threadAloneSays := error(nil), ""
	if onV2(t, sys, "pids") {
		threadAlone, threadAloneSays = unix.EINVAL, wholeOnly+": only the whole process"
	}

	zombie := exec.Command("true")
	require.NoError(t, zombie.Start())
	zombiePid := fmt.Sprint(zombie.Process.Pid)
	t.Cleanup(func() { zombie.Wait() })
	rig.Eventually(t, func() string {
		if stat, _ := os.ReadFile("/proc/" + zombiePid + "/stat"); !strings.Contains(string(stat), ") Z ") {
			return "no zombie: " + string(stat)
		}
		return ""
	})

	uncapable := victim.Start(t, "idle", "+nocap")
	traced := exec.Command("sleep", "1000")
	stopped := make(chan error)
	release := make(chan bool)
	go traceIt(traced, stopped, release)
	require.NoError(t, <-stopped)
	t.Cleanup(func() { close(release); traced.Wait() })

	vfork := victim.Start(t, "vfork")

	for _, c := range []struct {
		name string
		dir  string
		data string
		want error
		says string // in rcfs.error
	}{
		{"no such task", a, "4194300", unix.ESRCH, "no such task"},
		{"a zombie", a, zombiePid, unix.ESRCH, "no such task"},
		{"a kernel thread", a, kernelThread(t), unix.EINVAL, "kernel threads"},
		{"not a number", a, "abc", unix.EINVAL, "not a decimal"},
		{"hexadecimal", a, "0x10", unix.EINVAL, "not a decimal"},
		{"a sign", a, "+5", unix.EINVAL, "not a decimal"},
		{"negative", a, "-1", unix.EINVAL, "not a decimal"},
		{"two on a line", a, "12 34", unix.EINVAL, "not a decimal"},
		{"nothing", a, "\n", unix.EINVAL, "not a decimal"},
		{"over int32", a, "2147483648", unix.EINVAL, "not a decimal"},
		{"over int64", a, "99999999999999999999", unix.EINVAL, "not a decimal"},
		{"a thread where only processes move", b, thread, unix.EINVAL, wholeOnly + ": only the whole process"},
		{"the target has no CAP_SYS_ADMIN", a, fmt.Sprint(uncapable.Pid), unix.EPERM, "uts: the task has no CAP_SYS_ADMIN"},
		{"the target is being traced", a, fmt.Sprint(traced.Process.Pid), unix.EBUSY, "is being traced"},
		{"the target does not stop", a, fmt.Sprint(vfork.Pid), unix.EAGAIN, "did not stop in time"},
		{"the daemon itself", a, fmt.Sprint(os.Getpid()), unix.EBUSY, "does not move itself"},

		{"blanks around", a, " \t" + pid + " \n", nil, ""},
		{"already there", a, pid, nil, ""},
		{"already there, and not stopped", dir, fmt.Sprint(traced.Process.Pid), nil, ""}, // it could not be
		{"a thread alone", dir, thread, threadAlone, threadAloneSays},
		{"leading zeros", dir, "00" + pid, nil, ""},
	} {
		if c.dir == b && c.data == thread && !haveWhole {
			continue // everything is on v1
		}
		t.Run(c.name, func(t *testing.T) {
			before := world(t, dir, whole, v.Pid, uncapable.Pid, traced.Process.Pid)
			err := write(c.dir+"/tasks", c.data)
			require.Equal(t, c.want, errors.Unwrap(wrap(err)), "rcfs.error: %s", read(t, c.dir+"/rcfs.error"))
			if c.want != nil {
				require.Contains(t, read(t, c.dir+"/rcfs.error"), c.says)
				require.Contains(t, read(t, c.dir+"/rcfs.error"), unix.ErrnoName(c.want.(unix.Errno)))
				require.Equal(t, before, world(t, dir, whole, v.Pid, uncapable.Pid, traced.Process.Pid))
			}
		})
	}
	require.Empty(t, v.Stop())
	require.Empty(t, uncapable.Stop())
	// Go's os package takes EAGAIN for a promise that poll(2) will tell, and waits for ever.
	require.ErrorIs(t, os.WriteFile(a+"/tasks", []byte(fmt.Sprint(vfork.Pid)), 0), unix.ETIMEDOUT)
	require.Contains(t, read(t, a+"/rcfs.error"), "did not stop in time")
	require.Empty(t, vfork.Stop())
}

// wrap lets nil be compared with the errno in an error.
func wrap(err error) error { return fmt.Errorf("%w", err) }

// world describes all that a refused move could have changed.
func world(t *testing.T, dir, other string, pids ...int) string {
	var b strings.Builder
	for _, pid := range pids {
		for _, ns := range []string{"uts", "net", "ipc"} {
			fmt.Fprintln(&b, pid, namespacesOf(t, pid, ns))
		}
		files, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		fmt.Fprintf(&b, "%s\n", files)
	}
	for _, d := range []string{dir, other} {
		entries, err := os.ReadDir(d)
		require.NoError(t, err)
		for _, e := range entries {
			if e.IsDir() {
				fmt.Fprintf(&b, "%s: %s\n", e.Name(), read(t, d+"/"+e.Name()+"/tasks"))
			}
		}
	}
	return b.String()
}

// traceIt starts a command as a tracer does, and keeps it stopped at its first instruction.
func traceIt(cmd *exec.Cmd, stopped chan<- error, release <-chan bool) {
	lockForEver()
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	err := cmd.Start()
	if err == nil {
		_, err = syscall.Wait4(cmd.Process.Pid, nil, syscall.WALL, nil)
	}
	stopped <- err
	if err != nil {
		return
	}
	<-release
	cmd.Process.Kill()
	syscall.PtraceDetach(cmd.Process.Pid)
}

// The writer is neither root nor the target's owner.
func TestErrnoOfAnotherUser(t *testing.T) {
	t.Run("namespaces", anotherUserAndNamespaces)
	t.Run("groups", func(t *testing.T) {
		dir := mount(t, rig.System(t), rig.Spec("cpu"))
		a := mkdir(t, dir+"/a")
		require.NoError(t, os.Chown(a, 1000, 1000))
		out, err := output(1000, fmt.Sprintf("echo $$ > %s/tasks && cat /proc/$$/cgroup", a))
		require.NoError(t, err)
		require.Equal(t, "/"+rig.Base()+"/a", groupIn(out, "cpu"))
	})
}

func anotherUserAndNamespaces(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("pids", "uts"))
	a := mkdir(t, dir+"/a")
	require.NoError(t, os.Chown(a, 1000, 1000))
	v := victim.Start(t, "threads", "2")
	before := world(t, dir, dir, v.Pid)

	err := as(1000, fmt.Sprintf("echo %d > %s/tasks", v.Pid, a))
	require.ErrorContains(t, err, "Permission denied")
	require.Contains(t, read(t, a+"/rcfs.error"), "neither root nor the owner")
	require.Equal(t, before, world(t, dir, dir, v.Pid))

	err = as(1001, fmt.Sprintf("echo $$ > %s/tasks", a))
	require.ErrorContains(t, err, "Permission denied", "the file is not theirs")

	// Their own task moves, but not into namespaces: it has no CAP_SYS_ADMIN.
	err = as(1000, fmt.Sprintf("echo $$ > %s/tasks", a))
	require.ErrorContains(t, err, "Operation not permitted")
	require.Contains(t, read(t, a+"/rcfs.error"), "uts: the task has no CAP_SYS_ADMIN")
	require.Empty(t, v.Stop())
}

func TestErrnoOfMkdirAndRmdir(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("pids", "uts"))
	mkdir(t, dir+"/full")
	mkdir(t, dir+"/full/child")
	mkdir(t, dir+"/busy")
	v := victim.Start(t, "idle")
	move(t, dir+"/busy", fmt.Sprint(v.Pid))

	renamed, mayRename := "renamed", error(nil)
	if onV2(t, sys, "pids") { // whose directories cannot be renamed
		renamed, mayRename = "busy", unix.EPERM
	}
	long := strings.Repeat("x", 255)
	for _, c := range []struct {
		name string
		call func() error
		want error
	}{
		{"mkdir of what is there", func() error { return unix.Mkdir(dir+"/full", 0o755) }, unix.EEXIST},
		{"mkdir of our own file's name", func() error { return unix.Mkdir(dir+"/full/tasks", 0o755) }, unix.EEXIST},
		{"mkdir of a control file's name", func() error { return unix.Mkdir(dir+"/full/pids.max", 0o755) }, unix.EEXIST},
		{"mkdir with a newline", func() error { return unix.Mkdir(dir+"/a\nb", 0o755) }, unix.EINVAL},
		{"mkdir of .rcfs", func() error { return unix.Mkdir(dir+"/.rcfsx", 0o755) }, unix.EINVAL},
		{"mkdir of 256 bytes", func() error { return unix.Mkdir(dir+"/"+long+"x", 0o755) }, unix.ENAMETOOLONG},
		{"mkdir of 255 bytes", func() error { return unix.Mkdir(dir+"/"+long, 0o755) }, nil},
		{"rmdir of it", func() error { return unix.Rmdir(dir + "/" + long) }, nil},
		{"mkdir in what is not there", func() error { return unix.Mkdir(dir+"/no/x", 0o755) }, unix.ENOENT},
		{"rmdir with a child", func() error { return unix.Rmdir(dir + "/full") }, unix.EBUSY},
		{"rmdir with a task", func() error { return unix.Rmdir(dir + "/busy") }, unix.EBUSY},
		{"rmdir of what is not there", func() error { return unix.Rmdir(dir + "/no") }, unix.ENOENT},
		{"rmdir of a file", func() error { return unix.Rmdir(dir + "/full/tasks") }, unix.ENOTDIR},
		{"rename to another parent", func() error { return unix.Rename(dir+"/full/child", dir+"/child") }, unix.EIO},
		{"rename over what is there", func() error { return unix.Rename(dir+"/busy", dir+"/full") }, unix.EEXIST},
		{"rename of a file", func() error { return unix.Rename(dir+"/full/tasks", dir+"/full/x") }, unix.ENOTDIR},
		{"rename", func() error { return unix.Rename(dir+"/busy", dir+"/renamed") }, mayRename},
		{"create", func() error { return os.WriteFile(dir+"/file", nil, 0o644) }, unix.EACCES},
		{"unlink", func() error { return unix.Unlink(dir + "/full/tasks") }, unix.EPERM},
		{"symlink", func() error { return unix.Symlink("x", dir+"/link") }, unix.EPERM},
		{"link", func() error { return unix.Link(dir+"/full/tasks", dir+"/link") }, unix.EPERM},
		{"mknod", func() error { return unix.Mknod(dir+"/fifo", unix.S_IFIFO|0o644, 0) }, unix.EPERM},
		{"truncate", func() error { return unix.Truncate(dir+"/full/tasks", 0) }, nil},
		{"write of a file without write", func() error { return write(dir+"/rcfs.proxies", "x") }, unix.EACCES},
		{"rcfs.unshare with a word that is not bound", func() error { return write(dir+"/full/rcfs.unshare", "+net") }, unix.EINVAL},
		{"notify_on_release x", func() error { return write(dir+"/full/notify_on_release", "x") }, unix.EINVAL},
		{"notify_on_release 17", func() error { return write(dir+"/full/notify_on_release", "17") }, nil},
		{"a value that the kernel refuses", func() error { return write(dir+"/full/pids.max", "garbage") }, unix.EINVAL},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.call()
			var errno unix.Errno
			if c.want == nil {
				require.NoError(t, err)
			} else {
				require.ErrorAs(t, err, &errno)
				require.Equal(t, c.want, errno)
			}
		})
	}
	require.Equal(t, "1\n", read(t, dir+"/full/notify_on_release"))
	require.Equal(t, fmt.Sprint(v.Pid)+"\n", read(t, dir+"/"+renamed+"/cgroup.procs"))
	require.Equal(t, []string{"/" + rig.Base() + "/" + renamed}, groupsOf(t, v.Pid, "pids"))
	require.Empty(t, v.Stop())
}

// An open file of a container that is removed answers ENODEV, and does not keep it.
func TestOpenFilesOfARemovedContainer(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pids"))
	a := mkdir(t, dir+"/a")
	tasks, err := os.OpenFile(a+"/tasks", os.O_RDWR, 0)
	require.NoError(t, err)
	defer tasks.Close()
	max, err := os.OpenFile(a+"/pids.max", os.O_RDWR, 0)
	require.NoError(t, err)
	defer max.Close()
	require.NoError(t, unix.Rmdir(a))
	for _, f := range []*os.File{tasks, max} {
		_, err := f.WriteString("1")
		require.ErrorIs(t, err, unix.ENODEV)
		_, err = f.Read(make([]byte, 10))
		require.ErrorIs(t, err, unix.ENODEV)
	}
	mkdir(t, a)
	_, err = tasks.WriteString("1")
	require.ErrorIs(t, err, unix.ENODEV, "a container of the same name is another one")
}

// groupDirs lists the directories below the tests' base, in every v1 hierarchy that is mounted.
func groupDirs(t *testing.T) []string {
	var dirs []string
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
		found, err := filepath.Glob(pattern + rig.Base() + "/*/")
		require.NoError(t, err)
		dirs = append(dirs, found...)
	}
	return dirs
}

// A refusal that comes after a thread's id was taken for its process gives back what it held.
func TestRefusalOfAThreadsProcess(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pids"))
	a := mkdir(t, dir+"/a")
	require.NoError(t, os.Chmod(a+"/cgroup.procs", 0o666))
	v := victim.Start(t, "threads", "2")
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", v.Pid))
	require.NoError(t, err)
	for range 3 {
		err = as(1000, fmt.Sprintf("echo %s > %s/cgroup.procs", threads[len(threads)-1].Name(), a))
		require.ErrorContains(t, err, "Permission denied")
	}
	open, err := filepath.Glob("/proc/self/fd/*")
	require.NoError(t, err)
	for _, fd := range open {
		target, _ := os.Readlink(fd)
		require.NotEqual(t, fmt.Sprintf("/proc/%d", v.Pid), target, "descriptor left")
	}
	require.Empty(t, v.Stop())
}

// When one subsystem cannot make its group, what the others made is undone.
func TestMkdirIsAllOrNothing(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("cpu", "pids", "uts", "net"))
	groups, _ := baseDir(t, sys, "pids")
	obstacle := groups + "/x"
	require.NoError(t, os.Mkdir(obstacle, 0o755))
	pins, err := filepath.Glob("/run/rcfs/ns/*/*")
	require.NoError(t, err)
	before := groupDirs(t)
	require.Equal(t, unix.EEXIST, unix.Mkdir(dir+"/x", 0o755))
	subsystem := "pids"
	if onV2(t, sys, "cpu") {
		subsystem = "cpu" // which shares it
	}
	require.Contains(t, read(t, dir+"/rcfs.error"), `mkdir "/x": `+subsystem+`: `)
	require.Equal(t, before, groupDirs(t))
	after, err := filepath.Glob("/run/rcfs/ns/*/*")
	require.NoError(t, err)
	require.Equal(t, pins, after)
	require.NoDirExists(t, dir+"/x")
	require.NoError(t, os.Remove(obstacle))
	mkdir(t, dir+"/x")
}

// A task that somebody put into a container's group by hand keeps the container, whole.
func TestRmdirWithAStranger(t *testing.T) {
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("cpu", "pids", "uts"))
	a := mkdir(t, dir+"/a")
	require.NoError(t, write(a+"/pids.max", "123"))
	v := victim.Start(t, "idle")
	groups, leaf := baseDir(t, sys, "pids")
	require.NoError(t, write(groups+"/a"+leaf+"/cgroup.procs", fmt.Sprint(v.Pid)))
	require.Equal(t, unix.EBUSY, unix.Rmdir(a))
	require.Contains(t, read(t, a+"/rcfs.error"), ": a task that was moved by hand")
	require.Equal(t, "123\n", read(t, a+"/pids.max"))
	move(t, a, fmt.Sprint(v.Pid))
	move(t, dir, fmt.Sprint(v.Pid))
	require.NoError(t, unix.Rmdir(a))
	require.Empty(t, v.Stop())
}

// To own a container is to own what was made for it, not what it shares with its parent.
func TestDelegation(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pids", "uts"))
	require.NoError(t, write(dir+"/rcfs.unshare", "-uts"))
	a := mkdir(t, dir+"/a")
	require.NoError(t, os.Chown(a, 1000, 1000))
	host := read(t, a+"/uts.hostname")
	err := as(1000, "echo theirs > "+a+"/uts.hostname")
	require.ErrorContains(t, err, "Permission denied")
	require.Contains(t, read(t, a+"/rcfs.error"), "shares this with one that the writer does not own")
	require.Equal(t, host, read(t, a+"/uts.hostname"))

	// They set values, make children, and own these.
	require.NoError(t, as(1000, fmt.Sprintf("cd %s && echo 99 > pids.max && echo uts > rcfs.unshare && mkdir b && echo theirs > b/uts.hostname && mkdir b/c && echo uts > b/rcfs.unshare && rmdir b/c", a)))
	require.Equal(t, "99\n", read(t, a+"/pids.max"))
	require.Equal(t, "theirs\n", read(t, a+"/b/uts.hostname"))
	require.Equal(t, host, read(t, dir+"/uts.hostname"))
	require.ErrorContains(t, as(1001, "mkdir "+a+"/d"), "Permission denied")
	require.ErrorContains(t, as(1000, "mkdir "+dir+"/d"), "Permission denied")
	require.ErrorContains(t, as(1000, "chown 1001 "+a), "Operation not permitted")
	require.NoError(t, as(1000, "rmdir "+a+"/b"))
}
