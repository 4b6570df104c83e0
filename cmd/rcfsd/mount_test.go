package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
)

// The tests in this file use mount(8), umount(8) and findmnt(8) as a user does. The rig has made
// a mount namespace with an empty /run; in it, once, /usr/sbin gets our names too.

// programs makes this test binary callable under the program's names, where mount(8) looks and
// nowhere else than in our mount namespace.
var programs = sync.OnceValue(func() error {
	for _, tool := range []string{"mount", "umount", "findmnt"} {
		if _, err := exec.LookPath(tool); err != nil {
			return err
		}
	}
	sbin, err := filepath.EvalSymlinks("/sbin")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	const upper = "/run/sbin"
	if err := os.Mkdir(upper, 0o755); err != nil {
		return err
	}
	// What was there stays callable through links to a second view of it.
	const below = "/run/sbin.below"
	if err := os.Mkdir(below, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(sbin, below, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", sbin, err)
	}
	entries, err := os.ReadDir(below)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Symlink(filepath.Join(below, e.Name()), filepath.Join(upper, e.Name())); err != nil {
			return err
		}
	}
	for _, name := range names {
		link := filepath.Join(upper, name)
		if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.Symlink(self, link); err != nil {
			return err
		}
	}
	return unix.Mount(upper, sbin, "", unix.MS_BIND, "")
})

// machine prepares the ground for a test and looks afterwards that nothing is left: no daemon,
// no run directory, no mount.
func machine(t *testing.T) {
	t.Helper()
	require.NoError(t, programs())
	t.Cleanup(func() {
		for _, dir := range views(t) {
			removeContainers(t, dir)
			unmountAll(t, dir)
		}
		rig.Eventually(t, func() string {
			reapOrphans()
			if pids := append(daemons(t), workers(t)...); len(pids) > 0 {
				log, _ := os.ReadFile(logPath)
				return fmt.Sprintf("daemon %v is still there:\n%s", pids, log)
			}
			if _, err := os.Lstat(runDir); err == nil {
				entries, _ := os.ReadDir(runDir)
				return fmt.Sprintf("%s is still there: %v", runDir, entries)
			}
			return ""
		})
	})
}

// views lists where views are mounted.
func views(t *testing.T) []string {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter(fsType))
	require.NoError(t, err)
	var dirs []string
	for _, m := range mounts {
		dirs = append(dirs, m.Mountpoint)
	}
	return dirs
}

func unmountAll(t *testing.T, dir string) {
	if err := unix.Unmount(dir, 0); err != nil {
		t.Errorf("umount %s: %v", dir, err)
		unix.Unmount(dir, unix.MNT_DETACH)
	}
}

func removeContainers(t *testing.T, dir string) {
	entries, _ := os.ReadDir(dir) // fails on a dead view
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		child := filepath.Join(dir, e.Name())
		removeContainers(t, child)
		rig.Eventually(t, func() string {
			if err := unix.Rmdir(child); err != nil && err != unix.ENOENT {
				return fmt.Sprintf("rmdir %s: %v", child, err)
			}
			return ""
		})
	}
}

// daemons lists the keepers that this test binary has become, as init of orphans.
func daemons(t *testing.T) []int { return childrenNamed(t, "self", keeperComm) }

// workers lists the workers: of keepers, and orphans that are about to become keepers.
func workers(t *testing.T) []int {
	pids := childrenNamed(t, "self", workerComm)
	for _, keeper := range daemons(t) {
		pids = append(pids, childrenNamed(t, strconv.Itoa(keeper), workerComm)...)
	}
	return pids
}

func childrenNamed(t *testing.T, process, comm string) []int {
	var pids []int
	files, err := filepath.Glob("/proc/" + process + "/task/*/children")
	require.NoError(t, err)
	for _, file := range files {
		text, _ := os.ReadFile(file)
		for _, word := range strings.Fields(string(text)) {
			have, _ := os.ReadFile("/proc/" + word + "/comm")
			if pid, err := strconv.Atoi(word); err == nil && strings.TrimSpace(string(have)) == comm {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// killDaemon kills all of the daemon, and returns when it has gone.
func killDaemon(t *testing.T) {
	t.Helper()
	rig.Eventually(t, func() string {
		all := append(daemons(t), workers(t)...) // the keeper first, or it would start a worker
		for _, pid := range all {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
				return err.Error()
			}
		}
		reapOrphans()
		if len(all) > 0 {
			return fmt.Sprint("daemons ", all)
		}
		return ""
	})
}

// reapOrphans waits for daemons that have ended.
func reapOrphans() {
	for {
		if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
			return
		}
	}
}

// call runs a program and returns its exit status, what it printed, and its errors.
func call(t *testing.T, name string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	// A daemon that kept what it inherited would hold this up.
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatalf("%s: %v", name, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// ok runs a program that has to succeed in silence, and returns what it printed.
func ok(t *testing.T, name string, args ...string) string {
	t.Helper()
	code, stdout, stderr := call(t, name, args...)
	if code != 0 || stderr != "" {
		log, _ := os.ReadFile(logPath)
		t.Fatalf("%s %v: exit status %d: %s\ndaemon's log:\n%s", name, args, code, stderr, log)
	}
	return stdout
}

// place makes a directory to mount on.
func place(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "mnt")
	require.NoError(t, err)
	return dir
}

// words adds the tests' own base to options.
func words(options string) string { return options + ",base=" + rig.Base() }

// mountOn mounts with mount(8).
func mountOn(t *testing.T, dir, options string) {
	t.Helper()
	ok(t, "mount", "-t", fsType, "-o", words(options), "none", dir)
}

func findmnt(t *testing.T, dir, column string) string {
	t.Helper()
	return strings.TrimSpace(ok(t, "findmnt", "-n", "-o", column, dir))
}

// currentStatus is what rcfs status --json says.
func currentStatus(t *testing.T) status {
	t.Helper()
	var st status
	require.NoError(t, json.Unmarshal([]byte(ok(t, "rcfs", "status", "--json")), &st))
	return st
}

func TestMount(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "uts,net")
	assert.Equal(t, "net,uts", findmnt(t, dir, "SOURCE"))
	assert.Equal(t, "fuse.rcfs", findmnt(t, dir, "FSTYPE"))
	flags := strings.Split(findmnt(t, dir, "OPTIONS"), ",")
	for _, flag := range []string{"rw", "nosuid", "nodev", "noexec", "default_permissions", "allow_other"} {
		assert.Contains(t, flags, flag)
	}
	assert.Contains(t, ok(t, "df", dir), dir)
	assert.FileExists(t, dir+"/uts.hostname")

	st := currentStatus(t)
	require.Len(t, st.Hierarchies, 1)
	assert.Equal(t, daemons(t), []int{st.PID})
	assert.Equal(t, []string{"net", "uts"}, st.Hierarchies[0].Subsystems)
	assert.Equal(t, []string{dir}, st.Hierarchies[0].Mounts)
	text := ok(t, "rcfs", "status")
	assert.Contains(t, text, fmt.Sprintf("daemon %d\n", st.PID))
	assert.Contains(t, text, dir)
	assert.Contains(t, text, "proxies")

	ok(t, "umount", dir)
}

func TestMountByBothNames(t *testing.T) {
	machine(t)
	dir := place(t)
	ok(t, "mount", "-t", "rcfs", "-o", words("uts"), "none", dir)
	assert.Equal(t, fsType, findmnt(t, dir, "FSTYPE"))
	ok(t, "umount", dir)
}

func TestMountOptions(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "ro,uts,noatime")
	flags := strings.Split(findmnt(t, dir, "OPTIONS"), ",")
	assert.Contains(t, flags, "ro")
	assert.Contains(t, flags, "noatime")
	assert.ErrorIs(t, os.Mkdir(dir+"/a", 0o755), unix.EROFS)
	ok(t, "mount", "-o", "remount,rw", dir)
	assert.NoError(t, os.Mkdir(dir+"/a", 0o755))
	assert.NoError(t, os.Remove(dir+"/a"))
}

func TestFstab(t *testing.T) {
	machine(t)
	dir := place(t)
	fstab := filepath.Join(t.TempDir(), "fstab")
	line := fmt.Sprintf("none %s fuse.rcfs %s,nofail,_netdev,x-systemd.requires=a,noauto 0 0\n", dir, words("uts,cpu"))
	require.NoError(t, os.WriteFile(fstab, []byte(line), 0o644))
	ok(t, "mount", "-T", fstab, dir)
	assert.Equal(t, "cpu,uts", findmnt(t, dir, "SOURCE"))
}

func TestSecondView(t *testing.T) {
	machine(t)
	one, two, three := place(t), place(t), place(t)
	mountOn(t, one, "uts,cpu")
	require.NoError(t, os.Mkdir(one+"/a", 0o755))
	mountOn(t, two, "cpu,uts")
	assert.DirExists(t, two+"/a")
	mountOn(t, three, "name="+currentStatus(t).Hierarchies[0].Name)
	assert.DirExists(t, three+"/a")
	assert.Equal(t, []string{one, two, three}, currentStatus(t).Hierarchies[0].Mounts)
	require.NoError(t, os.Mkdir(two+"/b", 0o755))
	assert.DirExists(t, one+"/b")
	ok(t, "umount", one)
	assert.DirExists(t, two+"/a")
}

func TestNamed(t *testing.T) {
	machine(t)
	dir, other := place(t), place(t)
	name := "test-" + strconv.Itoa(os.Getpid())
	mountOn(t, dir, "none,name="+name)
	assert.Equal(t, "none", findmnt(t, dir, "SOURCE"))
	cgroups, err := os.ReadFile("/proc/self/cgroup")
	require.NoError(t, err)
	assert.Contains(t, string(cgroups), ":name=rcfs."+name+":/\n")
	code, _, stderr := call(t, "mount", "-t", fsType, "-o", words("uts,name="+name), "none", other)
	assert.Equal(t, exitMount, code)
	assert.Contains(t, stderr, strconv.Quote(name))
	assert.Contains(t, stderr, dir)
	assert.Contains(t, stderr, unix.EBUSY.Error())
}

func TestMountRefused(t *testing.T) {
	machine(t)
	dir, other := place(t), place(t)
	mountOn(t, other, "uts,cpu")
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	for _, c := range []struct {
		options string
		code    int
		says    []string
	}{
		{"bogus", exitUsage, []string{`"bogus"`, "invalid argument"}},
		{"none,ipc,name=x", exitUsage, []string{`"none"`, "invalid argument"}},
		{"all,ipc", exitUsage, []string{`"ipc"`, "invalid argument"}},
		{"name=,ipc", exitUsage, []string{`"name="`, "invalid argument"}},
		{"name=a,name=b", exitUsage, []string{`"name=b"`, "invalid argument"}},
		{"ipc,release_agent=bin/true", exitUsage, []string{`"release_agent=bin/true"`, "absolute path"}},
		{"ipc,uts", exitMount, []string{`"uts"`, other, "resource busy"}},
		{"cpu", exitMount, []string{`"cpu"`, other, "resource busy"}},
	} {
		code, stdout, stderr := call(t, "mount", "-t", fsType, "-o", words(c.options), "none", dir)
		assert.Equal(t, c.code, code, c.options)
		assert.Empty(t, stdout, c.options)
		assert.Regexp(t, `^mount\.fuse\.rcfs: .*\n$`, stderr, c.options)
		assert.Equal(t, 1, strings.Count(stderr, "\n"), "one line: %s", stderr)
		for _, s := range c.says {
			assert.Contains(t, stderr, s, c.options)
		}
	}
	assert.Equal(t, []string{other}, views(t))
	require.Len(t, currentStatus(t).Hierarchies, 1, "a refusal leaves no hierarchy")

	// mount(8) checks the directory itself, so the helper is called as it would call it.
	for _, c := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"no directory", []string{"none"}, exitUsage, "usage"},
		{"unknown letter", []string{"none", dir, "-x"}, exitUsage, "-x"},
		{"no options after -o", []string{"none", dir, "-o"}, exitUsage, "-o"},
		{"missing directory", []string{"none", dir + "/no", "-o", words("ipc")}, exitMount, "no such file"},
		{"a file", []string{"none", file, "-o", words("ipc")}, exitMount, "not a directory"},
	} {
		code, _, stderr := call(t, "mount.fuse.rcfs", c.args...)
		assert.Equal(t, c.code, code, c.name)
		assert.Contains(t, stderr, c.says, c.name)
		assert.Equal(t, 1, strings.Count(stderr, "\n"), c.name)
	}
}

func TestHelperArguments(t *testing.T) {
	want := helperArgs{dir: "/mnt", options: "cpu"}
	for _, line := range []string{
		"none /mnt -o cpu", "-o cpu none /mnt", "none /mnt -nv -s -ocpu", "none -o cpu -- /mnt", "none /mnt -t fuse.rcfs -o cpu",
	} {
		a, err := parseHelperArgs(strings.Fields(line))
		require.NoError(t, err, line)
		assert.Equal(t, want, a, line)
	}
	a, err := parseHelperArgs([]string{"none", "/mnt", "-f", "-o", "cpu", "-o", "uts"})
	require.NoError(t, err)
	assert.Equal(t, helperArgs{dir: "/mnt", options: "cpu,uts", fake: true}, a)
}

func TestFake(t *testing.T) {
	machine(t)
	dir := place(t)
	ok(t, "mount", "-f", "-t", fsType, "-o", words("uts"), "none", dir)
	ok(t, "mount.fuse.rcfs", "none", dir, "-f", "-o", words("uts"))
	code, _, stderr := call(t, "mount.fuse.rcfs", "none", dir, "-f", "-o", "bogus")
	assert.Equal(t, exitUsage, code)
	assert.Contains(t, stderr, `"bogus"`)
	assert.Empty(t, views(t))
	assert.NoDirExists(t, runDir)
}

func TestNotRoot(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "uts")
	for _, args := range [][]string{
		{"/sbin/mount.fuse.rcfs", "none", dir, "-o", words("ipc")},
		{"/sbin/rcfs", "status"},
		{"/sbin/rcfs", "ps"},
		{"/sbin/rcfsd"},
	} {
		self, err := os.Open("/proc/self/exe") // its directory may be root's alone
		require.NoError(t, err)
		var errs bytes.Buffer
		cmd := &exec.Cmd{Path: "/proc/self/fd/3", Args: args, Stderr: &errs, ExtraFiles: []*os.File{self}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
		err = cmd.Run()
		self.Close()
		var status *exec.ExitError
		require.ErrorAs(t, err, &status, "%v", args)
		assert.Equal(t, exitUsage, status.ExitCode(), "%v: %s", args, errs.String())
		assert.Contains(t, errs.String(), "only root", "%v", args)
		assert.Equal(t, 1, strings.Count(errs.String(), "\n"))
	}
}

// Without containers, umount(8) frees the subsystems before it returns, as far as the next
// mount(8) can tell.
func TestUmountFrees(t *testing.T) {
	machine(t)
	dir := place(t)
	for i := range 10 {
		mountOn(t, dir, []string{"uts,cpu", "cpu,ipc", "uts"}[i%3])
		ok(t, "umount", dir)
	}
}

// The kernel keeps a hierarchy as long as a zombie remembers it. Nobody else waits for that, and who
// wants the same name gets it afterwards.
func TestUmountedWithZombie(t *testing.T) {
	machine(t)
	dir, other := place(t), place(t)
	name := "zombie-" + strconv.Itoa(os.Getpid())
	mountOn(t, dir, "uts,name="+name)
	require.NoError(t, os.Mkdir(dir+"/a", 0o755))
	cmd := exec.Command("sleep", "1000")
	require.NoError(t, cmd.Start())
	require.NoError(t, os.WriteFile(dir+"/a/tasks", []byte(strconv.Itoa(cmd.Process.Pid)), 0))
	require.NoError(t, cmd.Process.Kill())
	rig.Eventually(t, func() string {
		if err := os.Remove(dir + "/a"); err != nil {
			return err.Error()
		}
		return ""
	})
	ok(t, "umount", dir)
	mountOn(t, other, "uts,net")
	cgroups, err := os.ReadFile("/proc/self/cgroup")
	require.NoError(t, err)
	assert.Contains(t, string(cgroups), ":name=rcfs."+name+":", "the zombie does not keep the hierarchy: this test shows nothing")
	again := make(chan int)
	go func() {
		code, _, _ := call(t, "mount", "-t", fsType, "-o", words("none,name="+name), "none", dir)
		again <- code
	}()
	cmd.Wait()
	assert.Zero(t, <-again)
}

func TestUmountKeepsContainers(t *testing.T) {
	machine(t)
	dir, other := place(t), place(t)
	mountOn(t, dir, "uts,cpu")
	require.NoError(t, os.MkdirAll(dir+"/a/b", 0o755))
	require.NoError(t, os.WriteFile(dir+"/a/uts.hostname", []byte("kept"), 0o644))
	ok(t, "umount", dir)
	code, _, stderr := call(t, "mount", "-t", fsType, "-o", words("uts"), "none", other)
	assert.Equal(t, exitMount, code)
	assert.Contains(t, stderr, "not mounted")
	mountOn(t, other, "uts,cpu")
	assert.DirExists(t, other+"/a/b")
	name, err := os.ReadFile(other + "/a/uts.hostname")
	require.NoError(t, err)
	assert.Equal(t, "kept\n", string(name))
}

// stopDaemon ends the daemon with SIGTERM and returns when it has gone.
func stopDaemon(t *testing.T) {
	t.Helper()
	pids := daemons(t)
	require.Len(t, pids, 1)
	require.NoError(t, unix.Kill(pids[0], unix.SIGTERM))
	rig.Eventually(t, func() string {
		reapOrphans()
		if len(daemons(t)) > 0 {
			return "the daemon does not end"
		}
		return ""
	})
}

func TestDaemonRestart(t *testing.T) {
	machine(t)
	dir, same := place(t), place(t)
	mountOn(t, dir, "uts,cpu,net")
	require.NoError(t, os.MkdirAll(dir+"/a/b", 0o755))
	require.NoError(t, os.Chown(dir+"/a", 1000, 1000))
	require.NoError(t, os.Chmod(dir+"/a", 0o750))
	require.NoError(t, os.WriteFile(dir+"/a/uts.hostname", []byte("kept"), 0o644))
	var ns, again unix.Stat_t
	require.NoError(t, unix.Stat(dir+"/a/net.ns", &ns))
	stopDaemon(t)
	assert.NoFileExists(t, socketPath)
	assert.Contains(t, views(t), dir, "the daemon does not unmount")
	var fs unix.Statfs_t
	assert.ErrorIs(t, unix.Statfs(dir, &fs), unix.ENOTCONN)
	code, _, stderr := call(t, "rcfs", "status")
	assert.Equal(t, 1, code)
	assert.Equal(t, "rcfs status: no rcfsd is running\n", stderr)

	// Over the dead view, and elsewhere.
	mountOn(t, dir, "uts,cpu,net")
	mountOn(t, same, "net,uts,cpu")
	assert.Equal(t, []string{dir, same}, views(t))
	for _, d := range []string{dir, same} {
		assert.DirExists(t, d+"/a/b")
		st, err := os.Stat(d + "/a")
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o750), st.Mode().Perm())
		assert.EqualValues(t, 1000, st.Sys().(*syscall.Stat_t).Uid)
		name, err := os.ReadFile(d + "/a/uts.hostname")
		require.NoError(t, err)
		assert.Equal(t, "kept\n", string(name))
		require.NoError(t, unix.Stat(d+"/a/net.ns", &again))
		assert.Equal(t, ns.Ino, again.Ino)
	}
}

func TestSecondDaemon(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "uts")
	code, _, stderr := call(t, "rcfsd")
	assert.Equal(t, 1, code)
	assert.Equal(t, "rcfsd: another rcfsd is running\n", stderr)
	assert.Len(t, currentStatus(t).Hierarchies, 1)
}

// Helpers that come at the same time find one daemon.
func TestMountAtOnce(t *testing.T) {
	machine(t)
	var all sync.WaitGroup
	failures := make(chan string, 8)
	for range cap(failures) {
		dir := place(t)
		all.Go(func() {
			out, err := exec.Command("mount", "-t", fsType, "-o", words("uts,cpu"), "none", dir).CombinedOutput()
			if err != nil {
				failures <- fmt.Sprintf("%v: %s", err, out)
			}
		})
	}
	all.Wait()
	close(failures)
	for f := range failures {
		t.Error(f)
	}
	assert.Len(t, daemons(t), 1)
	st := currentStatus(t)
	require.Len(t, st.Hierarchies, 1)
	assert.Len(t, st.Hierarchies[0].Mounts, cap(failures))
}

// A daemon started by hand stays when nothing is mounted.
func TestDaemonByHand(t *testing.T) {
	machine(t)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	defer log.Close()
	said := func() string { text, _ := os.ReadFile(log.Name()); return string(text) }
	cmd := exec.Command("rcfsd", "--log-level", "debug")
	cmd.Stderr = log
	require.NoError(t, cmd.Start())
	rig.Eventually(t, func() string {
		c, err := dial()
		if err != nil {
			return err.Error() + "\n" + said()
		}
		c.Close()
		return ""
	})
	dir := place(t)
	mountOn(t, dir, "uts")
	ok(t, "umount", dir)
	mountOn(t, dir, "uts")
	assert.Equal(t, cmd.Process.Pid, currentStatus(t).PID)
	ok(t, "umount", dir)
	require.NoError(t, cmd.Process.Signal(unix.SIGINT))
	assert.NoError(t, cmd.Wait(), said())
}

// What the caller of mount(8) has open does not stay open in the daemon.
func TestDaemonInheritsNothing(t *testing.T) {
	machine(t)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	dir := place(t)
	cmd := exec.Command("mount", "-t", fsType, "-o", words("uts"), "none", dir)
	cmd.Env = append(os.Environ(), "GOTRACEBACK=all", "SOMETHING=else")
	cmd.ExtraFiles = []*os.File{nil, nil, w} // 5
	cmd.Stdout, cmd.Stderr = w, w
	require.NoError(t, cmd.Run())
	w.Close()
	require.NoError(t, r.SetReadDeadline(time.Now().Add(5*time.Second)))
	_, err = r.Read(make([]byte, 1))
	assert.EqualError(t, err, "EOF")
	pids := daemons(t)
	require.Len(t, pids, 1)
	sid, err := unix.Getsid(pids[0])
	require.NoError(t, err)
	assert.Equal(t, pids[0], sid)
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pids[0]))
	require.NoError(t, err)
	assert.Equal(t, "/", cwd)
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pids[0]))
	require.NoError(t, err)
	assert.Contains(t, string(env), "GOTRACEBACK=all\x00")
	assert.NotContains(t, string(env), "SOMETHING")
}

// The root container is what the machine has, and not what the first caller of mount(8) was in.
func TestDaemonNamespaces(t *testing.T) {
	machine(t)
	cmd := exec.Command("mount", "-t", fsType, "-o", words("uts"), "none", place(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	pids := daemons(t)
	require.Len(t, pids, 1)
	for _, name := range []string{"cgroup", "ipc", "net", "uts"} {
		want, err := os.Readlink("/proc/self/ns/" + name) // the rig is in the machine's
		require.NoError(t, err)
		got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pids[0], name))
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
}

// A mount that is not ours stays where it is, dead or not.
func TestDeadMountOfOthers(t *testing.T) {
	machine(t)
	dir := place(t)
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)
	require.NoError(t, unix.Mount("other", dir, "fuse.other", 0, data))
	unix.Close(fd)
	code, _, stderr := call(t, "mount.fuse.rcfs", "none", dir, "-o", words("uts"))
	assert.Equal(t, exitMount, code)
	assert.Contains(t, stderr, "fuse.other")
	require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH))
}

func TestClientUsage(t *testing.T) {
	machine(t)
	for _, args := range [][]string{nil, {"fly"}} {
		code, stdout, stderr := call(t, "rcfs", args...)
		assert.Equal(t, 1, code)
		assert.Empty(t, stdout)
		assert.Contains(t, stderr, "usage:")
		assert.Contains(t, stderr, "rcfs status")
	}
	assert.Contains(t, ok(t, "rcfs", "--help"), "usage:")
	code, _, _ := call(t, "rcfs", "status", "extra")
	assert.Equal(t, 1, code)
	code, _, stderr := call(t, "rcfsd", "extra")
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, `"extra"`)
}

func TestRunDirectory(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "uts")
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(runDir))
	require.NoError(t, err)
	require.Len(t, mounts, 1)
	assert.Empty(t, mounts[0].Optional, "private propagation")
	st, err := os.Stat(socketPath)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	assert.True(t, slices.Contains(views(t), dir))
}

// A daemon in another mount namespace, with a /run of its own, leaves our hierarchies alone.
func TestDaemonOfAnotherRun(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "uts,cpu")
	cmd := exec.Command("sh", "-c", "mount -t tmpfs x /run && { rcfsd & sleep 0.5; kill $!; wait $!; }")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, os.Mkdir(dir+"/a", 0o755))
}

// A daemon that is started from within a container is not in it.
func TestDaemonStartedInContainer(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "cpu,uts")
	require.NoError(t, os.Mkdir(dir+"/a", 0o755))
	script := fmt.Sprintf("echo $$ > %[1]s/a/tasks; read x; mount -t %[2]s -o %[3]s none %[1]s; echo $(cat %[1]s/a/cgroup.procs | wc -l)", dir, fsType, words("cpu,uts"))
	cmd := exec.Command("bash", "-c", script)
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	rig.Eventually(t, func() string {
		if b, _ := os.ReadFile(dir + "/a/cgroup.procs"); len(b) == 0 {
			return "the shell is not in the container"
		}
		return ""
	})
	stopDaemon(t)
	stdin.Close()
	require.NoError(t, cmd.Wait(), out.String())
	// The shell, the substitution's, cat and wc.
	require.Equal(t, "4\n", out.String())
}
