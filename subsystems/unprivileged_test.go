package subsystems_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// somebody is a user without any privilege.
const somebody, somebodyElse = 12345, 12346

// program is a shell of some user that does what it is told, itself as far as it can.
type program struct {
	t    testing.TB
	pid  int
	in   *os.File
	out  *bufio.Reader
	said string // the file with what it prints
}

func start(t testing.TB, uid, gid uint32) *program {
	t.Helper()
	said := directory(t) + "/said"
	require.NoError(t, os.WriteFile(said, nil, 0o644))
	require.NoError(t, os.Chown(said, int(uid), int(gid)))
	r, w, err := os.Pipe()
	require.NoError(t, err)
	cmd := exec.Command("sh", "-c", `exec 3>&1; while read -r line; do eval "$line" >"$0" 2>&1; echo $? >&3; done`, said)
	cmd.Dir = "/"
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	r.Close()
	p := &program{t: t, pid: cmd.Process.Pid, in: w, out: bufio.NewReader(out), said: said}
	t.Cleanup(func() {
		w.Close()
		cmd.Wait()
	})
	require.Equal(t, "0", p.does(":"))
	return p
}

// does has it do something, and returns the exit code and what was printed, in one line.
func (p *program) does(line string) string {
	p.t.Helper()
	_, err := fmt.Fprintln(p.in, line)
	require.NoError(p.t, err)
	answer, err := p.out.ReadString('\n')
	require.NoError(p.t, err)
	return strings.Join(strings.Fields(answer+read(p.t, p.said)), " ")
}

// namespaces returns what a task is in, by the subsystems' names.
func namespaces(t testing.TB, pid int) map[string]string {
	all := make(map[string]string)
	for _, s := range []string{"user", "uts", "net", "ipc", "mnt", "pid_for_children", "time", "cgroup"} {
		all[s] = link(t, pid, s)
	}
	return all
}

// requireIn checks that a task is in a container's namespaces.
func requireIn(t testing.TB, pid int, dir string, subsystems ...string) {
	t.Helper()
	kinds := map[string]string{"userns": "user", "pid": "pid_for_children", "cgroupns": "cgroup"}
	for _, s := range subsystems {
		kind := s
		if k, ok := kinds[s]; ok {
			kind = k
		}
		require.Contains(t, link(t, pid, kind), target(t, dir+"/"+s+".ns", "")[1:], s)
	}
}

// delegated mounts a hierarchy whose root belongs to somebody, who makes a container c there.
func delegated(t testing.TB, sys *proxy.System, subsystems ...string) (dir, c string) {
	t.Helper()
	dir = mount(t, sys, rig.Spec(subsystems...))
	require.NoError(t, os.Chown(dir, somebody, somebody))
	require.NoError(t, os.Chmod(dir, 0o755))
	c = dir + "/c"
	require.Equal(t, "0", start(t, somebody, somebody).does("mkdir "+c))
	return dir, c
}

// A task without capabilities that belongs to the owner of a container lives in it, and notices
// nothing but what it is for.
func TestUnprivilegedTaskEnters(t *testing.T) {
	sys := rig.System(t)
	dir, c := delegated(t, sys, "userns", "uts", "net", "ipc")
	groups := mount(t, sys, rig.Spec("pids"))
	g := mkdir(t, groups+"/g")
	require.NoError(t, write(c+"/uts.hostname", "blue\n"))
	p := start(t, somebody, somebody)
	before := p.does("id -u; id -g; id -G; ulimit -n; pwd")

	move(t, c, fmt.Sprint(p.pid))
	requireIn(t, p.pid, c, "userns", "uts", "net", "ipc")
	require.Equal(t, "0 blue", p.does("uname -n"))
	require.Equal(t, before, p.does("id -u; id -g; id -G; ulimit -n; pwd"))
	require.Equal(t, fmt.Sprintln(p.pid), read(t, c+"/tasks"))
	require.Equal(t, "lo\n", read(t, c+"/net.devices"))
	require.Regexp(t, `^ +12345 +12345 +1\n$`, read(t, c+"/userns.uid_map"))
	require.Regexp(t, `^ +12345 +12345 +1\n$`, read(t, c+"/userns.gid_map"))
	require.Equal(t, "deny\n", read(t, fmt.Sprintf("/proc/%d/setgroups", p.pid)))

	// Its groups still change; its namespaces do not any more.
	for _, to := range []string{g, groups} {
		move(t, to, fmt.Sprint(p.pid))
		// Two reads make the list, and in the root other tasks come and go between them.
		rig.Eventually(t, func() string {
			if list := read(t, to+"/tasks"); !strings.Contains(list, fmt.Sprintln(p.pid)) {
				return list
			}
			return ""
		})
	}
	was := namespaces(t, p.pid)
	require.Equal(t, unix.EPERM, write(dir+"/tasks", fmt.Sprint(p.pid)))
	require.Equal(t, was, namespaces(t, p.pid))
	require.Equal(t, fmt.Sprintln(p.pid), read(t, c+"/tasks"))

	// It has its container to itself, so it may go on below it.
	require.Equal(t, "0", p.does("mkdir "+c+"/d"))
	require.Equal(t, "0 green", p.does("echo green >"+c+"/d/uts.hostname; echo $$ >"+c+"/d/tasks; uname -n"))
	requireIn(t, p.pid, c+"/d", "userns", "uts", "net", "ipc")
	require.Equal(t, before, p.does("id -u; id -g; id -G; ulimit -n; pwd"))
}

// The user moves it without any help of root's.
func TestUnprivilegedTaskMovesItself(t *testing.T) {
	_, c := delegated(t, rig.System(t), "userns", "uts", "net", "ipc", "cgroupns", "time", "pid", "mnt", "pids")
	p := start(t, somebody, somebody)
	in := directory(t)
	require.Equal(t, "0", p.does("cd "+in))
	require.Equal(t, "0 red", p.does("echo red >"+c+"/uts.hostname; echo $$ >"+c+"/tasks; cat "+c+"/rcfs.error; uname -n"))
	requireIn(t, p.pid, c, "userns", "uts", "net", "ipc", "cgroupns", "time", "pid", "mnt")
	require.Equal(t, [2]string{"/", in}, where(t, p.pid))
	require.Regexp(t, `^0 12345 [2-9]$`, p.does(`id -u; sh -c 'echo $$'`), "the second number is of the new pid namespace")
}

// Who cannot enter is told so before anything has changed.
func TestUnprivilegedRefusals(t *testing.T) {
	sys := rig.System(t)
	dir, c := delegated(t, sys, "userns", "uts", "net", "ipc", "pids")
	made := mkdir(t, dir+"/made") // by root, and not untouched
	require.NoError(t, write(made+"/userns.uid_map", "0 0 4294967295\n"))
	require.NoError(t, os.Chown(made, somebody, somebody))

	mine := start(t, somebody, somebody)
	foreign := start(t, somebodyElse, somebodyElse)
	threads := victim.Start(t, "threads", "2", fmt.Sprintf("+uid=%d", somebody))
	for _, r := range []struct {
		name, to string
		pid      int
		errno    unix.Errno
		why      string
	}{
		{"another's", c, foreign.pid, unix.EPERM, "userns: the task has no CAP_SYS_ADMIN in user:["},
		{"threads", c, threads.Pid, unix.EINVAL, "userns: the process has"},
		{"root has made it", made, mine.pid, unix.EPERM, "nor is it of uid 0, who made it"},
	} {
		t.Run(r.name, func(t *testing.T) {
			before, group := namespaces(t, r.pid), read(t, fmt.Sprintf("/proc/%d/cgroup", r.pid))
			require.Equal(t, r.errno, write(r.to+"/tasks", fmt.Sprint(r.pid)))
			require.Contains(t, read(t, r.to+"/rcfs.error"), r.why)
			require.Equal(t, before, namespaces(t, r.pid))
			require.Equal(t, group, read(t, fmt.Sprintf("/proc/%d/cgroup", r.pid)))
			require.Empty(t, read(t, r.to+"/tasks"))
			if r.to == c {
				require.Empty(t, read(t, c+"/userns.uid_map"), "nothing was written to it")
			}
		})
	}
	require.Empty(t, threads.Stop())

	// Somebody's program with another's group is not for somebody to put into their world.
	group := start(t, somebody, somebodyElse)
	require.Contains(t, mine.does(fmt.Sprintf("echo %d >%s/tasks || cat %s/rcfs.error", group.pid, c, c)), "EACCES")
	require.Empty(t, read(t, c+"/tasks"))

	// When the roster refuses, which is asked before there is no way back, nothing was entered.
	before := namespaces(t, mine.pid)
	withoutRoster(t, "ipc-net-pids-userns-uts", "c", func() {
		require.Error(t, write(c+"/tasks", fmt.Sprint(mine.pid)))
		require.Contains(t, read(t, c+"/rcfs.error"), "roster")
		require.NotContains(t, read(t, c+"/rcfs.error"), "not put back")
	})
	require.Equal(t, before, namespaces(t, mine.pid))
}

// Without a user namespace of its own a container takes no such task: the kernel would not.
func TestUnprivilegedNeedsUserNamespace(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("userns", "uts"))
	require.NoError(t, os.Chown(dir, somebody, somebody))
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, write(dir+"/rcfs.unshare", "-userns\n"))
	p := start(t, somebody, somebody)
	require.Equal(t, "0", p.does("mkdir "+dir+"/u"))
	require.Equal(t, unix.EPERM, write(dir+"/u/tasks", fmt.Sprint(p.pid)))
	require.Contains(t, read(t, dir+"/u/rcfs.error"), "uts: the task has no CAP_SYS_ADMIN")

	// One below can have one, although its parent shares the machine's.
	require.Equal(t, "0 low", p.does(fmt.Sprintf("echo +userns >%s/u/rcfs.unshare; mkdir %s/u/c; echo low >%s/u/c/uts.hostname; echo $$ >%s/u/c/tasks; uname -n",
		dir, dir, dir, dir)))
}

// A daemon that starts anew lets them in as before.
func TestUnprivilegedAfterRestart(t *testing.T) {
	require.NoError(t, os.MkdirAll("/run/rcfs", 0o755))
	sys, err := proxy.Open(proxy.Host{Run: "/run/rcfs"}, rig.Log(t))
	require.NoError(t, err)
	h, err := sys.Mount(rig.Spec("userns", "uts"), gone{})
	require.NoError(t, err)
	_, err = h.Make(h.Root(), "a", proxy.Owner{UID: somebody, GID: somebody}, none)
	require.NoError(t, err)
	require.NoError(t, sys.Close())

	sys = rig.System(t)
	h, err = sys.Mount(rig.Spec("userns", "uts"), gone{})
	require.NoError(t, err)
	a := h.Root().Child("a")
	p := start(t, somebody, somebody)
	require.NoError(t, attach(a, p.pid))
	require.Equal(t, "0 12345 12345", p.does("id -u; id -g"))
	text, err := readFile(h, a, "userns.uid_map")
	require.NoError(t, err)
	require.Regexp(t, `^ +12345 +12345 +1\n$`, text)
	p.in.Close()
	rig.Eventually(t, func() string { return words(h.Remove(h.Root(), "a")) })
	require.Empty(t, keepers(t))
}

// A container that is given away is for its new owner, with all that was set.
func TestUnprivilegedTaskEntersAfterChown(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("userns", "uts", "ipc", "net", "mnt", "time", "pid", "cgroupns", "pids"))
	a := mkdir(t, dir+"/a")
	values := map[string]string{
		"uts.hostname": "given\n", "ipc.shmmni": "77\n", "mnt.split_fs": "1\n", "pids.max": "9\n",
		"time.offsets": "monotonic         100         0\nboottime          200         0\n",
	}
	for name, value := range values {
		require.NoError(t, write(a+"/"+name, value), name)
	}
	p := start(t, somebody, somebody)
	require.Equal(t, unix.EPERM, write(a+"/tasks", fmt.Sprint(p.pid)))
	require.NoError(t, os.Chown(a, somebody, somebody))
	for name, value := range values {
		require.Equal(t, value, read(t, a+"/"+name), name)
	}
	require.Equal(t, "lo\n", read(t, a+"/net.devices"))
	require.Len(t, keepers(t), 3, "of pid, time and userns")
	move(t, a, fmt.Sprint(p.pid))
	require.Equal(t, "0 given", p.does("uname -n"))
	require.Equal(t, "0 12345 12345", p.does("id -u; id -g"))
	requireIn(t, p.pid, a, "userns", "uts", "net", "ipc", "cgroupns", "time", "pid", "mnt")

	// With somebody in it it stays what it is.
	was := target(t, a+"/userns.ns", "")
	require.NoError(t, os.Chown(a, somebodyElse, somebodyElse))
	require.Equal(t, was, target(t, a+"/userns.ns", ""))
	require.NoError(t, os.Chown(a, somebody, somebody))
	requireIn(t, p.pid, a, "userns", "uts", "net")

	// Where a new one cannot be had, because nobody above is the new owner, nothing changes.
	b := mkdir(t, a+"/b")
	require.ErrorIs(t, os.Chown(b, somebodyElse, somebodyElse), unix.EPERM)
	require.Contains(t, read(t, b+"/rcfs.error"), "id 12346 is nobody's")
	var st unix.Stat_t
	require.NoError(t, unix.Stat(b, &st))
	require.EqualValues(t, 0, st.Uid)
	require.NoError(t, os.WriteFile(b+"/uts.hostname", []byte("b"), 0))
	require.Equal(t, "b\n", read(t, b+"/uts.hostname"))
}
