package fs_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
	"rcfs/testdata/view"
)

// Random operations, bad ones among them, do to the mount what they do to a model of it: after every
// step the tree, the members and the proxies are compared.
func TestProperties(t *testing.T) {
	checks := 12
	if n, err := strconv.Atoi(os.Getenv("RCFS_PROPERTY_CHECKS")); err == nil {
		checks = n
	} else if victim.Slow() > 1 {
		checks = 2
	}
	require.NoError(t, flag.Set("rapid.checks", fmt.Sprint(checks)))
	require.NoError(t, flag.Set("rapid.nofailfile", "true"))
	sys := rig.System(t)
	dir := mount(t, sys, rig.Spec("cpu", "pids", "uts", "ipc"))
	renames := !onV2(t, sys, "pids")
	rapid.Check(t, func(r *rapid.T) {
		m := newModel(t, dir, renames)
		defer m.end()
		r.Repeat(map[string]func(*rapid.T){
			"mkdir":  m.mkdir,
			"rmdir":  m.rmdir,
			"rename": m.rename,
			"move":   m.move,
			"nobody": m.moveNobody,
			"die":    m.die,
			"kill":   m.kill,
			"":       m.compare,
		})
	})
}

// model is a mount and what should be in it.
type model struct {
	t       *testing.T
	dir     string
	renames bool
	tree    map[string]bool      // the containers' paths; "" is the root
	tasks   map[*exec.Cmd]string // in which each is
	order   []*exec.Cmd
}

func newModel(t *testing.T, dir string, renames bool) *model {
	m := &model{t: t, dir: dir, renames: renames, tree: map[string]bool{"": true}, tasks: make(map[*exec.Cmd]string)}
	for range 4 {
		m.start()
	}
	return m
}

func (m *model) start() {
	cmd := exec.Command("sleep", "1000")
	require.NoError(m.t, cmd.Start())
	m.tasks[cmd] = ""
	m.order = append(m.order, cmd)
}

// bury waits for a task that was killed, and starts another one.
func (m *model) bury(cmd *exec.Cmd) {
	cmd.Wait()
	delete(m.tasks, cmd)
	m.order = slices.DeleteFunc(m.order, func(c *exec.Cmd) bool { return c == cmd })
	m.start()
}

func (m *model) end() {
	for _, cmd := range m.order {
		cmd.Process.Kill()
		cmd.Wait()
	}
	view.Empty(m.t, m.dir)
}

func (m *model) paths() []string {
	var list []string
	for p := range m.tree {
		list = append(list, p)
	}
	slices.Sort(list)
	return list
}

func (m *model) container(r *rapid.T, label string) string {
	return rapid.SampledFrom(m.paths()).Draw(r, label)
}

func (m *model) task(r *rapid.T) *exec.Cmd {
	return m.order[rapid.IntRange(0, len(m.order)-1).Draw(r, "task")]
}

// refusedNames are names that no container may have, and why.
var refusedNames = map[string]unix.Errno{
	"tasks":                  unix.EEXIST,
	"uts.hostname":           unix.EEXIST,
	"rcfs.kill":              unix.EEXIST,
	"a\nb":                   unix.EINVAL,
	".rcfs":                  unix.EINVAL,
	".rcfs.x":                unix.EINVAL,
	strings.Repeat("x", 256): unix.ENAMETOOLONG,
}

func name(r *rapid.T) string {
	names := []string{"a", "b", "c", "ä b", "-"}
	for n := range refusedNames {
		names = append(names, n)
	}
	slices.Sort(names)
	// The good ones more often.
	return rapid.OneOf(rapid.SampledFrom(names[:]), rapid.SampledFrom([]string{"a", "b", "c"})).Draw(r, "name")
}

// nameError is what the name of a new container below parent gets.
func (m *model) nameError(parent, name string) error {
	if errno, ok := refusedNames[name]; ok {
		return errno
	}
	if m.tree[join(parent, name)] {
		return unix.EEXIST
	}
	return nil
}

func join(parent, name string) string { return strings.TrimPrefix(parent+"/"+name, "/") }

func parentOf(p string) string {
	if dir := path.Dir(p); dir != "." {
		return dir
	}
	return ""
}

func (m *model) at(p string) string { return m.dir + "/" + p }

func (m *model) below(p string) []string {
	var list []string
	for _, other := range m.paths() {
		if strings.HasPrefix(other, p+"/") || p == "" && other != "" {
			list = append(list, other)
		}
	}
	return list
}

func (m *model) members(p string) []*exec.Cmd {
	var list []*exec.Cmd
	for _, cmd := range m.order {
		if m.tasks[cmd] == p {
			list = append(list, cmd)
		}
	}
	return list
}

func (m *model) mkdir(r *rapid.T) {
	parent, name := m.container(r, "parent"), name(r)
	want := m.nameError(parent, name)
	require.Equal(r, want, unix.Mkdir(m.at(join(parent, name)), 0o755))
	if want == nil {
		m.tree[join(parent, name)] = true
	}
}

func (m *model) rmdir(r *rapid.T) {
	p := m.container(r, "container")
	var want error
	switch {
	case p == "": // a mount point, says the kernel; a path that ends in a slash
		return
	case len(m.below(p)) > 0 || len(m.members(p)) > 0:
		want = unix.EBUSY
	}
	require.Equal(r, want, unix.Rmdir(m.at(p)))
	if want == nil {
		delete(m.tree, p)
	}
	require.Equal(r, unix.ENOENT, unix.Rmdir(m.at(p)+".none"))
}

func (m *model) rename(r *rapid.T) {
	from, newParent, newName := m.container(r, "from"), m.container(r, "to"), name(r)
	to := join(newParent, newName)
	if from == "" || to == from || strings.HasPrefix(to, from+"/") || strings.HasPrefix(from, to+"/") {
		return // the kernel has answers of its own
	}
	if errno, ok := refusedNames[newName]; ok && errno == unix.EEXIST {
		return // so it has to a directory over a file
	}
	var want error
	switch {
	case newParent != parentOf(from):
		want = unix.EIO
	case m.nameError(newParent, newName) != nil:
		want = m.nameError(newParent, newName)
	case !m.renames:
		want = unix.EPERM
	}
	require.Equal(r, want, unix.Rename(m.at(from), m.at(to)))
	if want != nil {
		return
	}
	for _, p := range append(m.below(from), from) {
		delete(m.tree, p)
		m.tree[to+strings.TrimPrefix(p, from)] = true
		for _, cmd := range m.members(p) {
			m.tasks[cmd] = to + strings.TrimPrefix(p, from)
		}
	}
}

func (m *model) move(r *rapid.T) {
	cmd, p := m.task(r), m.container(r, "to")
	err := m.write(p, "tasks", fmt.Sprint(cmd.Process.Pid))
	require.NoError(r, err, "%s", m.why(p))
	m.tasks[cmd] = p
}

func (m *model) moveNobody(r *rapid.T) {
	p := m.container(r, "to")
	dead := exec.Command("true")
	require.NoError(r, dead.Run())
	require.Equal(r, unix.ESRCH, m.write(p, "tasks", fmt.Sprint(dead.Process.Pid)))
	bad := rapid.SampledFrom([]string{"0x10", "+5", "-1", "x", "1 2", "99999999999", ""}).Draw(r, "id")
	require.Equal(r, unix.EINVAL, m.write(p, "cgroup.procs", bad+"\n"))
}

// write writes to a container's file. On a slow machine a task that does not stop in time is asked
// again.
func (m *model) write(p, file, data string) error {
	err := write(m.at(p)+"/"+file, data)
	for i := 1; err == unix.EAGAIN && i < victim.Slow(); i++ {
		err = write(m.at(p)+"/"+file, data)
	}
	return err
}

func (m *model) why(p string) string {
	b, _ := os.ReadFile(m.at(p) + "/rcfs.error")
	return string(b)
}

func (m *model) die(r *rapid.T) {
	cmd := m.task(r)
	require.NoError(r, cmd.Process.Kill())
	m.bury(cmd)
}

func (m *model) kill(r *rapid.T) {
	p := m.container(r, "container")
	if p == "" {
		require.Equal(r, unix.ENOENT, write(m.at(p)+"/rcfs.kill", "1"))
		return
	}
	require.Equal(r, unix.EINVAL, write(m.at(p)+"/rcfs.kill", "2"))
	require.NoError(r, write(m.at(p)+"/rcfs.kill", "1"))
	for _, p := range append(m.below(p), p) {
		for _, cmd := range m.members(p) {
			m.bury(cmd)
		}
	}
}

// compare looks whether the mount is as it should be.
func (m *model) compare(r *rapid.T) {
	require.Equal(r, m.paths(), m.walk(r, ""))
	for _, p := range m.paths() {
		if p == "" {
			continue
		}
		var pids []int
		for _, cmd := range m.members(p) {
			pids = append(pids, cmd.Process.Pid)
		}
		slices.Sort(pids)
		var want strings.Builder
		for _, pid := range pids {
			fmt.Fprintln(&want, pid)
		}
		for _, file := range []string{"tasks", "cgroup.procs"} {
			have, err := os.ReadFile(m.at(p) + "/" + file)
			require.NoError(r, err)
			require.Equal(r, want.String(), string(have), "%s of %q", file, p)
		}
		m.compareProxies(r, p, len(pids))
	}
}

// compareProxies looks whether the members of a container have one proxy, with its states.
func (m *model) compareProxies(r *rapid.T, p string, members int) {
	text, err := os.ReadFile(m.at(p) + "/rcfs.proxies")
	require.NoError(r, err)
	if members == 0 {
		require.Empty(r, string(text))
		return
	}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	require.Len(r, lines, 1)
	f := strings.Fields(lines[0])
	require.Equal(r, strconv.Itoa(members), f[1])
	require.Contains(r, lines[0], fmt.Sprintf(" pids=/%s/%s", rig.Base(), p))
	var st unix.Stat_t
	require.NoError(r, unix.Stat(m.at(p)+"/uts.ns", &st))
	require.Contains(r, f, fmt.Sprintf("uts=uts:[%d]", st.Ino))
}

// walk returns the paths of the containers there are.
func (m *model) walk(r *rapid.T, p string) []string {
	list := []string{p}
	entries, err := os.ReadDir(m.at(p))
	require.NoError(r, err)
	for _, e := range entries {
		if e.IsDir() {
			list = append(list, m.walk(r, join(p, e.Name()))...)
		}
	}
	if p == "" {
		slices.Sort(list)
	}
	return list
}
