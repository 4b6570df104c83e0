package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
)

// seeing returns the arguments of unshare(1) for a tool that sees no other mounts than dir, as one of
// cgroup v1 with these controllers.
func seeing(t *testing.T, dir, controllers string, tool []string) []string {
	t.Helper()
	mounts := filepath.Join(t.TempDir(), "mounts")
	require.NoError(t, os.WriteFile(mounts, fmt.Appendf(nil, "none %s cgroup rw,%s 0 0\n", dir, controllers), 0o644))
	const script = `mount --bind "$0" /proc/$$/mounts && exec "$@"`
	return append([]string{"--mount", "sh", "-c", script, mounts}, tool...)
}

// Debian's cgroup-tools work on a mount of rcfs that looks to them like one of cgroup v1, and what
// they move goes into the namespaces too.
func TestCgroupTools(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "cpu,pids,cpuset,uts")
	tool := func(args ...string) string {
		t.Helper()
		return ok(t, "unshare", seeing(t, dir, "cpu,pids,cpuset", args)...)
	}
	const group = "cpu,pids,cpuset:web"
	tool("cgcreate", "-g", group)
	require.NoError(t, os.WriteFile(dir+"/web/uts.hostname", []byte("web\n"), 0))
	assert.Equal(t, "cpuset,cpu,pids:/\ncpuset,cpu,pids:/web\n", tool("lscgroup"))
	tool("cgset", "-r", "pids.max=50", "web")
	assert.Equal(t, "web:\npids.max: 50\ncpu.shares: 1024\n\n", tool("cgget", "-r", "pids.max", "-r", "cpu.shares", "web"))

	sleeper := exec.Command("sleep", "1000")
	require.NoError(t, sleeper.Start())
	t.Cleanup(func() { sleeper.Process.Kill(); sleeper.Wait() })
	pid := fmt.Sprint(sleeper.Process.Pid)
	tool("cgclassify", "-g", group, pid)
	tasks, err := os.ReadFile(dir + "/web/tasks")
	require.NoError(t, err)
	assert.Equal(t, pid+"\n", string(tasks))
	assert.Equal(t, "web\n", ok(t, "nsenter", "--target", pid, "--uts", "uname", "-n"))

	out := tool("cgexec", "-g", group, "sh", "-c", "uname -n; cat /proc/self/cgroup")
	assert.True(t, strings.HasPrefix(out, "web\n"), out)
	assert.Contains(t, out, fmt.Sprintf(":pids:/%s/web\n", rig.Base()))
	tool("cgdelete", "-r", group)
	assert.NoDirExists(t, dir+"/web")
	tasks, err = os.ReadFile(dir + "/tasks")
	require.NoError(t, err)
	assert.Contains(t, strings.Fields(string(tasks)), pid, "what was in it is in the root")
}

// All of the tools say of a mount what they say of the kernel's own hierarchy, also where they fail.
func TestCgroupToolsAsOnKernel(t *testing.T) {
	machine(t)
	const controller = "pids"
	kernel := v1Mount(t, controller)
	if kernel == "" {
		t.Skipf("this machine has no %s in cgroup v1, which is what the tools are used on here", controller)
	}
	dir := place(t)
	mountOn(t, dir, controller+",uts")
	want, got := useTools(t, kernel, controller), useTools(t, dir, controller)
	assert.Contains(t, want, "cgget -nv -r pids.max one: 0 \"77\\n\" \"\"")
	assert.Equal(t, strings.Join(want, "\n"), strings.Join(got, "\n"))
}

// useTools uses the tools below a mount of one controller, and returns what they say.
func useTools(t *testing.T, mount, controller string) []string {
	top := rig.Base() + "-tools"
	t.Cleanup(func() { // what a failure has left
		for _, group := range []string{"/one/deep/er", "/one/deep", "/one", "/two", ""} {
			os.Remove(mount + "/" + top + group)
		}
	})
	names := []string{mount, "ROOT", top + "/", "", top, "TOP"}
	var sleepers []any
	for i := range 2 {
		sleeper := exec.Command("sleep", "1000")
		require.NoError(t, sleeper.Start())
		t.Cleanup(func() { sleeper.Process.Kill(); sleeper.Wait() })
		pid := fmt.Sprint(sleeper.Process.Pid)
		names = append(names, pid+"\n", fmt.Sprintf("SLEEPER%d\n", i), "pid "+pid+":", fmt.Sprintf("pid SLEEPER%d:", i))
		sleepers = append(sleepers, pid)
	}
	replacer := strings.NewReplacer(names...)
	var lines []string
	say := func(line string) { lines = append(lines, replacer.Replace(line)) }
	tool := func(format string, args ...any) {
		t.Helper()
		line := fmt.Sprintf(format, args...)
		words := strings.Fields(strings.ReplaceAll(line, "@", top+"/"))
		code, stdout, stderr := call(t, "unshare", seeing(t, mount, controller, words)...)
		say(fmt.Sprintf("%s: %d %q %q", strings.ReplaceAll(format, "@", ""), code, stdout, stderr))
	}
	look := func(file string) {
		b, err := os.ReadFile(filepath.Join(mount, top, file))
		say(fmt.Sprintf("%s holds %q %v", file, replacer.Replace(string(b)), err))
	}
	owned := func(file string) {
		var st unix.Stat_t
		err := unix.Stat(filepath.Join(mount, top, file), &st)
		say(fmt.Sprintf("%s has %o %d:%d %v", file, st.Mode, st.Uid, st.Gid, err))
	}
	tool("cgcreate -g pids:@one -g pids:@two")
	tool("cgcreate -t bin:sys -a daemon:mail -d 750 -f 640 -s 660 -g pids:@one/deep/er")
	for _, file := range []string{"one", "one/deep", "one/deep/er", "one/deep/er/tasks", "one/deep/er/cgroup.procs", "one/deep/er/pids.max"} {
		owned(file)
	}
	tool("lscgroup pids:@one")
	tool("lscgroup -g pids:@none")
	tool("cgset -r pids.max=77 @one")
	tool("cgset -r pids.max=none @one")
	tool("cgset -r pids.none=1 @one")
	tool("cgset --copy-from @one @two")
	tool("cgget -nv -r pids.max @one")
	tool("cgget -r pids.max -r pids.current @one @two")
	tool("cgget -g pids @two")
	tool("cgget -a @one")
	tool("cgget -r pids.none @one")
	tool("cgget -r pids.max @none")
	tool("cgclassify -g pids:@one/deep %s %s", sleepers...)
	look("one/deep/tasks")
	tool("cgclassify -g pids:@two --sticky %s", sleepers[1])
	look("one/deep/tasks")
	look("two/cgroup.procs")
	tool("cgclassify -g pids:@none %s", sleepers[1])
	tool("cgexec -g pids:@one --sticky cat %s/%s/one/pids.current", mount, top)
	tool("cgexec -g pids:@none true")
	tool("cgdelete pids:@two") // its members go to its parent
	look("tasks")
	tool("cgdelete pids:@one")
	tool("cgdelete pids:@none")
	tool("cgdelete -r -g pids:@one")
	look("tasks")
	tool("cgdelete -r pids:%s", top)
	owned("")
	return lines
}

// ip netns takes a container's network for one of its own, and a member's too.
func TestIPNetns(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "net,uts")
	require.NoError(t, os.Mkdir(dir+"/web", 0o755))
	const alone = "lo\n"
	links := []string{"sh", "-c", "ip -brief link | cut -d' ' -f1"}
	assert.Equal(t, alone, ok(t, "nsenter", append([]string{"--net=" + dir + "/web/net.ns"}, links...)...))

	const named = "/run/netns"
	require.NoError(t, os.Mkdir(named, 0o755))
	// As ip netns does it where it finds no such mount.
	ok(t, "mount", "--bind", "--make-shared", named, named)
	t.Cleanup(func() {
		assert.NoError(t, unix.Unmount(named, unix.MNT_DETACH))
		assert.NoError(t, os.RemoveAll(named))
	})
	require.NoError(t, os.WriteFile(named+"/web", nil, 0))
	ok(t, "mount", "--bind", dir+"/web/net.ns", named+"/web")
	assert.Equal(t, "web\n", ok(t, "ip", "netns", "list"))
	assert.Equal(t, alone, ok(t, "ip", append([]string{"netns", "exec", "web"}, links...)...))
	ok(t, "ip", "-netns", "web", "link", "add", "br-web", "type", "bridge")
	devices, err := os.ReadFile(dir + "/web/net.devices")
	require.NoError(t, err)
	assert.Equal(t, "lo\nbr-web\n", string(devices))

	member := exec.Command("sleep", "1000")
	require.NoError(t, member.Start())
	t.Cleanup(func() { member.Process.Kill(); member.Wait() })
	pid := fmt.Sprint(member.Process.Pid)
	assert.Equal(t, "\n", ok(t, "ip", "netns", "identify", pid))
	require.NoError(t, os.WriteFile(dir+"/web/cgroup.procs", []byte(pid), 0))
	assert.Equal(t, "web\n", ok(t, "ip", "netns", "identify", pid))
	assert.Equal(t, pid+"\n", ok(t, "ip", "netns", "pids", "web"))
	ok(t, "ip", "netns", "attach", "member", pid)
	assert.Equal(t, "lo\nbr-web\n", ok(t, "ip", append([]string{"netns", "exec", "member"}, links...)...))

	// The names outlive the container, as those of ip netns do.
	require.NoError(t, os.WriteFile(dir+"/cgroup.procs", []byte(pid), 0))
	require.NoError(t, os.Remove(dir+"/web"))
	assert.Empty(t, ok(t, "ip", "netns", "pids", "web"))
	ok(t, "ip", "-netns", "member", "link", "delete", "br-web")
	ok(t, "ip", "netns", "delete", "member")
	assert.Equal(t, alone, ok(t, "ip", append([]string{"netns", "exec", "web"}, links...)...))
	ok(t, "ip", "netns", "delete", "web")
}

// lsns shows the namespaces of containers, and where they are kept.
func TestLsns(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "net,uts,ipc")
	require.NoError(t, os.Mkdir(dir+"/web", 0o755))
	number := func(kind string) string {
		st, err := os.Stat(dir + "/web/" + kind + ".ns")
		require.NoError(t, err)
		return fmt.Sprint(st.Sys().(*syscall.Stat_t).Ino)
	}
	pin, err := os.Readlink(dir + "/web/net.ns")
	require.NoError(t, err)
	member := exec.Command("sleep", "1000")
	require.NoError(t, member.Start())
	t.Cleanup(func() { member.Process.Kill(); member.Wait() })
	pid := fmt.Sprint(member.Process.Pid)
	require.NoError(t, os.WriteFile(dir+"/web/cgroup.procs", []byte(pid), 0))
	for _, kind := range []string{"net", "uts", "ipc"} {
		out := ok(t, "lsns", "--noheadings", "--raw", "--type", kind, "--output", "NS,NPROCS,PID,COMMAND")
		assert.Contains(t, strings.Split(out, "\n"), number(kind)+" 1 "+pid+` sleep\x201000`)
	}
	assert.Equal(t, number("net")+" "+pin+"\n", ok(t, "lsns", "--noheadings", "--raw", "--type", "net", "--task", pid, "--output", "NS,NSFS"))

	// Without a process, from util-linux 2.39 on; before, they are nowhere to be seen (lsns(8)).
	if strings.Contains(ok(t, "lsns", "--help"), "--persistent") {
		require.NoError(t, os.WriteFile(dir+"/cgroup.procs", []byte(pid), 0))
		for _, kind := range []string{"net", "uts", "ipc"} {
			out := ok(t, "lsns", "--persistent", "--noheadings", "--raw", "--type", kind, "--output", "NS")
			assert.Contains(t, strings.Split(out, "\n"), number(kind))
		}
	}
}
