package subsystems_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// A shell that is moved has its later children in the container's pid namespace, whose init reaps
// what they leave.
func TestPidNamespace(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pid"))
	require.Equal(t, "1\n", read(t, dir+"/pid.init"))
	a := mkdir(t, dir+"/a")
	init := strings.TrimSpace(read(t, a+"/pid.init"))
	require.Equal(t, "rcfs-keeper\n", read(t, "/proc/"+init+"/comm"))
	require.Regexp(t, `(?m)^NSpid:\t`+init+`\t1$`, read(t, "/proc/"+init+"/status"))

	// The grandchild's parent is gone before it, so it is left to init.
	script := fmt.Sprintf(`echo $$ >%s/tasks || exit 1
sh -c 'echo $$; (sleep 0.3 & ) ; grep NSpid /proc/self/status' </dev/null
cat /proc/*/stat 2>/dev/null | grep -c ' (sleep) . %s '
sleep 0.5
cat /proc/*/stat 2>/dev/null | grep -c ' (sleep) . %s '
echo $$ >%s/tasks`, a, init, init, dir)
	out, err := exec.Command("sh", "-c", `bash -c "$1" 2>&1; exit 0`, "sh", script).CombinedOutput()
	require.NoError(t, err, "%s", out)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	require.Equal(t, "2", lines[0], "the first after init: %s", out)
	require.Equal(t, []string{"1", "0"}, lines[len(lines)-2:], "an orphan of init, then reaped: %s", out)
}

// A program without threads can go and come back; with threads it could make no more of them.
func TestPidNamespaceTakesSingleThreads(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pid"))
	a, b := mkdir(t, dir+"/a"), mkdir(t, dir+"/b")
	v := victim.Start(t, "single")
	home := link(t, v.Pid, "pid_for_children")
	for _, to := range []string{a, b, a, dir} {
		move(t, to, fmt.Sprint(v.Pid))
		require.Equal(t, target(t, to+"/pid.ns", "pid"), pidForChildren(t, v.Pid))
		require.Equal(t, home, link(t, v.Pid, "pid"))
	}
	require.Empty(t, v.Stop())
	threads := victim.Start(t, "threads", "2")
	require.Equal(t, unix.EINVAL, write(a+"/tasks", fmt.Sprint(threads.Pid)))
	require.Contains(t, read(t, a+"/rcfs.error"), "they could make no more of them")
	require.Empty(t, threads.Stop())
}

func pidForChildren(t testing.TB, pid int) string { return link(t, pid, "pid_for_children") }

// Who was born in a container cannot leave it: the kernel knows only the way down.
func TestPidNamespaceIsForLife(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pid"))
	a := mkdir(t, dir+"/a")
	cmd := exec.Command("sh", "-c", fmt.Sprintf(`echo $$ >%s/tasks; sleep 1000 & read x; kill $!; wait`, a))
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var child string
	rig.Eventually(t, func() string {
		for _, pid := range strings.Fields(read(t, a+"/tasks")) {
			if comm, _ := os.ReadFile("/proc/" + pid + "/comm"); string(comm) == "sleep\n" {
				child = pid
				return ""
			}
		}
		return "no child"
	})
	require.Equal(t, unix.EINVAL, write(dir+"/tasks", child))
	require.Contains(t, read(t, dir+"/rcfs.error"), "born in another pid namespace")
	in.Close()
	require.NoError(t, cmd.Wait())
}

// When init has died, the container says so.
func TestPidNamespaceWithoutInit(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pid"))
	a := mkdir(t, dir+"/a")
	var init int
	fmt.Sscan(read(t, a+"/pid.init"), &init)
	require.NoError(t, unix.Kill(init, unix.SIGKILL))
	v := victim.Start(t, "single")
	rig.Eventually(t, func() string {
		if err := write(a+"/tasks", fmt.Sprint(v.Pid)); err != unix.ENXIO {
			move(t, dir, fmt.Sprint(v.Pid))
			return fmt.Sprint(err)
		}
		return ""
	})
	require.Contains(t, read(t, a+"/rcfs.error"), "has died")
	_, err := os.ReadFile(a + "/pid.init")
	require.ErrorIs(t, err, unix.ENXIO)
	require.Empty(t, v.Stop())
}

// Who was born in a container goes on to those below it, and only there.
func TestPidNamespacesNest(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pid"))
	a, other := mkdir(t, dir+"/a"), mkdir(t, dir+"/other")
	b := mkdir(t, a+"/b")
	init := strings.TrimSpace(read(t, b+"/pid.init"))
	require.Regexp(t, `(?m)^NSpid:\t`+init+`\t[0-9]+\t1$`, read(t, "/proc/"+init+"/status"))

	outer := start(t, 0, 0)
	move(t, a, fmt.Sprint(outer.pid))
	// The inner shell is born in a, and told what to do through a pipe.
	fifo := t.TempDir() + "/fifo"
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	said := t.TempDir() + "/said"
	outer.does(fmt.Sprintf(`sh -c 'read x; grep NSpid /proc/self/status; :' <%s >%s 2>&1 3>&- &`, fifo, said))
	in, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	require.NoError(t, err)
	var child int
	rig.Eventually(t, func() string {
		for _, pid := range strings.Fields(read(t, a+"/tasks")) {
			if cmd, _ := os.ReadFile("/proc/" + pid + "/cmdline"); strings.Contains(string(cmd), "read x; grep") {
				fmt.Sscan(pid, &child)
				return ""
			}
		}
		return "no child"
	})
	for _, to := range []string{dir, other} {
		require.Equal(t, unix.EINVAL, write(to+"/tasks", fmt.Sprint(child)))
		require.Contains(t, read(t, to+"/rcfs.error"), "born in another pid namespace")
	}
	move(t, b, fmt.Sprint(child))
	require.Equal(t, target(t, b+"/pid.ns", "pid"), pidForChildren(t, child))
	move(t, a, fmt.Sprint(child))
	require.Equal(t, target(t, a+"/pid.ns", "pid"), pidForChildren(t, child))
	move(t, b, fmt.Sprint(child))
	_, err = in.WriteString("\n")
	require.NoError(t, err)
	require.NoError(t, in.Close())
	rig.Eventually(t, func() string {
		if text := strings.Fields(read(t, said)); len(text) == 4 && text[3] == "2" {
			return ""
		}
		return "the grandchild has not said its three numbers: " + read(t, said)
	})
	require.Equal(t, "0", outer.does("wait; :"))

	// Below a container whose init has died there can be none.
	var pid int
	fmt.Sscan(read(t, other+"/pid.init"), &pid)
	require.NoError(t, unix.Kill(pid, unix.SIGKILL))
	rig.Eventually(t, func() string {
		if _, err := os.ReadFile(other + "/pid.init"); err == nil {
			return "it lives"
		}
		return ""
	})
	require.ErrorIs(t, os.Mkdir(other+"/c", 0o755), unix.ENXIO)
	require.Contains(t, read(t, other+"/rcfs.error"), "has died")
}

// The containers can be removed after somebody has killed the init above.
func TestPidNamespaceBelowDeadInit(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pid"))
	a := mkdir(t, dir+"/a")
	b := mkdir(t, a+"/b")
	var pid int
	fmt.Sscan(read(t, a+"/pid.init"), &pid)
	require.NoError(t, unix.Kill(pid, unix.SIGKILL))
	rig.Eventually(t, func() string {
		if _, err := os.ReadFile(b + "/pid.init"); err == nil {
			return "it lives"
		}
		return ""
	})
	require.NoError(t, unix.Rmdir(b))
	require.NoError(t, unix.Rmdir(a))
	require.Empty(t, keepers(t))
}
