package subsystems_test

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// oneWay are the subsystems whose states a task cannot leave.
var oneWay = map[string]bool{"userns": true}

// TestConformance holds every registered subsystem that this kernel has to the same rules, and prints
// a line for each that testdata/table reads: "conformance: cpu v1" where all of them were kept.
func TestConformance(t *testing.T) {
	var uts unix.Utsname
	require.NoError(t, unix.Uname(&uts))
	fmt.Printf("conformance: Linux %s\n", unix.ByteSliceToString(uts.Release[:]))
	for slot, s := range proxy.Registered() {
		verdict := "" // none of one that -run has left out, wholly or in part
		passed := t.Run(s.Name(), func(t *testing.T) {
			sys := rig.System(t)
			info := sys.Subsystems()[slot]
			switch {
			case info.Backend == "":
				verdict = "absent: " + absence(t, sys, info)
				return
			case !rig.Free(info):
				verdict = info.Backend + " not tested: the hierarchy is the host's"
				return
			}
			c := &conformance{T: t, sys: sys, sub: s, slot: slot}
			t.Run("life", c.life)
			t.Run("undo", c.undo)
			if c.passed == 2 {
				verdict = info.Backend
			}
		})
		if passed && verdict != "" {
			fmt.Printf("conformance: %s %s\n", s.Name(), verdict)
		}
	}
}

// absence returns why a subsystem is not there, as mount says it, and fails unless the kernel says so
// too.
func absence(t *testing.T, sys *proxy.System, info proxy.SubsystemInfo) string {
	_, err := sys.Mount(rig.Spec(info.Name), gone{})
	require.ErrorIs(t, err, proxy.ErrUnknown)
	_, reason, _ := strings.Cut(err.Error(), "on this kernel: ")
	require.NotEmpty(t, reason)
	if info.Kind == proxy.KindNamespace {
		link := map[string]string{"cgroupns": "cgroup", "userns": "user"}[info.Name]
		require.NoFileExists(t, "/proc/self/ns/"+cmp.Or(link, info.Name))
		return reason
	}
	v1, v2 := offeredControllers(t)
	require.NotContains(t, v2, info.Name)
	// One controller has two names, each of which is one version's.
	if other := map[string]string{"io": "blkio", "blkio": "io"}[info.Name]; slices.Contains(v1, other) || slices.Contains(v2, other) {
		require.Contains(t, reason, "under the name "+other)
		return reason
	}
	require.NotContains(t, v1, info.Name)
	return reason
}

// offeredControllers returns the controllers that the kernel has for v1, and those that v2 has.
func offeredControllers(t *testing.T) (v1, v2 []string) {
	for line := range strings.Lines(read(t, "/proc/cgroups")) {
		if f := strings.Fields(line); f[len(f)-1] == "1" {
			v1 = append(v1, f[0])
		}
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	require.NoError(t, err)
	for _, m := range mounts {
		v2 = append(v2, strings.Fields(read(t, m.Mountpoint+"/cgroup.controllers"))...)
	}
	return v1, v2
}

type conformance struct {
	*testing.T
	sys    *proxy.System
	sub    proxy.Subsystem
	slot   int
	passed int // how many parts came to their end
}

// life is a container from its making to its end.
func (c *conformance) life(t *testing.T) {
	h := c.open(t, c.sub.Name())
	root, a, b := h.Root(), c.make(t, h, "a"), c.make(t, h, "b")
	require.NotEqual(t, c.id(root), c.id(a))
	require.NotEqual(t, c.id(a), c.id(b))
	c.readAll(t, h, root)
	c.readAll(t, h, a)
	if _, isPlacer := c.sub.(proxy.Placer); isPlacer {
		require.Contains(t, []string{proxy.KindController, proxy.KindValue}, c.sub.Kind())
	} else {
		require.Equal(t, proxy.KindNamespace, c.sub.Kind())
	}

	sh := startShell(t)
	require.NoError(t, attach(a, sh.pid))
	require.Equal(t, []int{sh.pid}, members(t, a))
	require.Equal(t, c.id(a), c.current(t, sh.pid))
	proxies, err := a.Proxies()
	require.NoError(t, err)
	require.Len(t, proxies, 1)
	require.NoError(t, attach(a, sh.pid), "it is there already")

	child := sh.fork(t)
	require.ElementsMatch(t, []int{sh.pid, child}, members(t, a))
	require.Equal(t, c.id(a), c.current(t, child), "a fork follows")
	require.ErrorIs(t, h.Remove(root, "a"), proxy.ErrNotEmpty)
	sh.reap(t, child)

	if oneWay[c.sub.Name()] {
		require.ErrorIs(t, attach(b, sh.pid), proxy.ErrNotCapable)
		require.ErrorIs(t, attach(root, sh.pid), proxy.ErrNotCapable)
		require.Equal(t, []int{sh.pid}, members(t, a))
		require.Equal(t, c.id(a), c.current(t, sh.pid))
	} else {
		for _, to := range []*proxy.Container{b, a, root, a, root} {
			require.NoError(t, attach(to, sh.pid))
			require.Equal(t, c.id(to), c.current(t, sh.pid))
		}
		require.Empty(t, members(t, a))
		after := sh.fork(t)
		require.Equal(t, c.id(root), c.current(t, after), "a fork follows")
		sh.reap(t, after)
	}
	sh.end(t)
	c.close(t, h)
	c.passed++
}

// undo is a move that fails after it has begun: the last thread may not enter a namespace. A
// subsystem that takes no threads refuses before it begins.
func (c *conformance) undo(t *testing.T) {
	words := []string{c.sub.Name()}
	if c.sub.Name() != "uts" {
		words = append(words, "uts")
	}
	h := c.open(t, words...)
	a := c.make(t, h, "a")
	v := victim.Start(t, "threads", "4", "+onenocap")
	before := c.threads(t, v.Pid)
	require.Error(t, attach(a, v.Pid))
	require.Equal(t, before, c.threads(t, v.Pid))
	require.Empty(t, members(t, a))
	require.Empty(t, v.Stop())
	c.close(t, h)
	c.passed++
}

func (c *conformance) open(t *testing.T, names ...string) *proxy.Hierarchy {
	h, err := c.sys.Mount(rig.Spec(names...), gone{})
	require.NoError(t, err)
	return h
}

func (c *conformance) make(t *testing.T, h *proxy.Hierarchy, name string) *proxy.Container {
	child, err := h.Make(h.Root(), name, owner, none)
	require.NoError(t, err)
	t.Cleanup(func() { h.Remove(h.Root(), name) }) // of a test that has failed
	return child
}

// close removes the containers; nothing of them may be left.
func (c *conformance) close(t *testing.T, h *proxy.Hierarchy) {
	children, names := h.Root().ChildrenAfter(0, 100)
	for i := range children {
		rig.Eventually(t, func() string { return words(h.Remove(h.Root(), names[i])) })
	}
	c.sys.Unmount(h, gone{})
	rig.Eventually(t, func() string {
		if !c.sys.Idle() {
			return "the hierarchy has not gone"
		}
		return ""
	})
	pins, err := filepath.Glob("/run/rcfs/ns/*/*")
	require.NoError(t, err)
	require.Empty(t, pins)
	require.NotContains(t, read(t, "/proc/self/mountinfo"), "/run/rcfs/ns")
	require.Empty(t, keepers(t))
	st, err := c.sys.Status()
	require.NoError(t, err)
	require.Zero(t, st.States, "no container and no proxy holds a state")
}

func words(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// id names what a container has: as the kernel does, or of values, which the kernel has no groups for, as a move does.
func (c *conformance) id(of *proxy.Container) string {
	o := of.Object(c.slot)
	if c.sub.Kind() == proxy.KindValue {
		return o.String()
	}
	return o.ID().String()
}

// of names what a task is in, like id.
func (c *conformance) of(task *proxy.Task) (string, error) {
	if c.sub.Kind() == proxy.KindValue {
		at, err := c.sub.(proxy.Placer).Locate(task)
		return at.Name + at.Own, err
	}
	o, err := c.sub.Current(task)
	if err != nil {
		return "", err
	}
	return o.ID().String(), nil
}

// current is of, of a process.
func (c *conformance) current(t *testing.T, pid int) string {
	task, err := proxy.FindTask(pid)
	require.NoError(t, err)
	defer task.Close()
	at, err := c.of(task)
	require.NoError(t, err)
	return at
}

// threads returns what the threads of a process are in.
func (c *conformance) threads(t *testing.T, pid int) map[string]bool {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	require.NoError(t, err)
	ids := make(map[string]bool)
	for _, task := range tasks {
		var tid int
		fmt.Sscan(filepath.Base(task), &tid)
		ids[c.current(t, tid)] = true
	}
	return ids
}

// readAll reads every control file that there is, and follows the links.
func (c *conformance) readAll(t *testing.T, h *proxy.Hierarchy, of *proxy.Container) {
	for _, f := range h.Files() {
		if !f.Exists(of == h.Root()) {
			continue
		}
		if f.Link != nil {
			to, err := f.Link(of.Object(f.Slot))
			require.NoError(t, err, f.Name)
			var st unix.Stat_t
			require.NoError(t, unix.Stat(to, &st), f.Name)
			require.Equal(t, of.Object(f.Slot).ID(), proxy.IDOf(&st), f.Name)
			continue
		}
		require.True(t, strings.HasPrefix(f.Name, c.sub.Name()+".") || c.sub.Kind() == proxy.KindController, f.Name)
		if f.Read == nil || f.Mode&0o444 == 0 {
			continue
		}
		_, err := readBound(of, f)
		if errors.Is(err, unix.EOPNOTSUPP) {
			continue // the kernel's own answer of some files in some states
		}
		require.NoError(t, err, f.Name)
	}
}

func attach(to *proxy.Container, pid int) error {
	a, err := to.NewAttach(fmt.Sprint(pid), true, proxy.Writer{})
	if err != nil {
		return err
	}
	return a.Run(nil)
}

func members(t *testing.T, c *proxy.Container) []int {
	text, err := c.ListFor(proxy.Writer{TID: os.Getpid()}, "cgroup.procs")
	require.NoError(t, err)
	var list []int
	for _, pid := range strings.Fields(text) {
		var p int
		fmt.Sscan(pid, &p)
		list = append(list, p)
	}
	return list
}

// shell is a program of one thread that forks when told to. It is a grandchild: see package inject
// on waiting for children that are moved.
type shell struct {
	pid int
	cmd *exec.Cmd
	in  *os.File
	out *bufio.Reader
}

func startShell(t *testing.T) *shell {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	const script = `echo $$; while read what; do
if [ "$what" = fork ]; then sleep 1000 & echo $!; else kill -9 $what; wait $what; echo reaped; fi; done`
	cmd := exec.Command("sh", "-c", `sh -c "$1" 2>/dev/null; exit 0`, "sh", script)
	cmd.Stdin = r
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	r.Close()
	s := &shell{cmd: cmd, in: w, out: bufio.NewReader(out)}
	t.Cleanup(func() {
		if w.Close() == nil { // a test that has failed
			unix.Kill(s.pid, unix.SIGKILL)
			cmd.Wait()
		}
	})
	fmt.Sscan(s.line(t), &s.pid)
	return s
}

func (s *shell) line(t *testing.T) string {
	line, err := s.out.ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(line)
}

func (s *shell) say(t *testing.T, what string) string {
	_, err := fmt.Fprintln(s.in, what)
	require.NoError(t, err)
	return s.line(t)
}

// fork makes a child and returns its id.
func (s *shell) fork(t *testing.T) int {
	var pid int
	_, err := fmt.Sscan(s.say(t, "fork"), &pid)
	require.NoError(t, err)
	return pid
}

func (s *shell) reap(t *testing.T, child int) {
	require.Equal(t, "reaped", s.say(t, fmt.Sprint(child)))
}

func (s *shell) end(t *testing.T) {
	require.NoError(t, s.in.Close())
	require.NoError(t, s.cmd.Wait())
}
