package proxy_test

import (
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/testdata/rig"
	"rcfs/testdata/view"
)

// A change of the tree of which no word can be left is not made.
func TestChangeThatIsNotWrittenDown(t *testing.T) {
	s := newStage(t, "afirst", "cpu", "uts")
	before := tree(t, s.dir)
	for name, change := range map[string]func() error{
		"mkdir":  func() error { return unix.Mkdir(s.dir+"/new", 0o755) },
		"rmdir":  func() error { return unix.Rmdir(s.a) },
		"chown":  func() error { return unix.Chown(s.a, 1000, 1000) },
		"chmod":  func() error { return unix.Chmod(s.a, 0o700) },
		"rename": func() error { return unix.Rename(s.a, s.dir+"/new") },
	} {
		faults.set(map[string]failure{"note, intent": {0, unix.ENOSPC}})
		require.Equal(t, unix.ENOSPC, change(), name)
		require.Equal(t, []string{"note, intent"}, faults.failed(), name)
		require.Equal(t, before, tree(t, s.dir), name)
	}
	require.NoError(t, unix.Rmdir(s.a))
}

func tree(t *testing.T, dir string) string {
	var text strings.Builder
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(dir+"/"+e.Name(), &st))
		fmt.Fprintln(&text, e.Name(), st.Ino, st.Uid, st.Gid, st.Mode)
	}
	return text.String()
}

// What a daemon has written down before it was killed is finished or taken back by the next one, and said.
func TestIntents(t *testing.T) {
	for _, c := range []struct {
		name, note string // %d is the number of the container a
		fails      map[string]failure
		left       string // the containers that are left
		says       string
	}{
		{"mkdir", `{"Op":"mkdir","Path":"\"a\""}`, nil, "b", `"/a": a daemon was killed in its mkdir: taken back`},
		{"mkdir that had not begun", `{"Op":"mkdir","Path":"\"new\""}`, nil, "a b", "nothing had been done"},
		{"mkdir whose group stays", `{"Op":"mkdir","Path":"\"a\""}`, map[string]failure{"afirst, destroy": {0, unix.EBUSY}}, "a b", "failed: afirst: device or resource busy"},
		{"rmdir", `{"Op":"rmdir","Path":"\"a\"","ID":%d}`, nil, "a b", "nothing had been done"},
		{"rmdir, and another one of that name", `{"Op":"rmdir","Path":"\"a\"","ID":1000000}`, nil, "a b", "done"},
		{"rename", `{"Op":"rename","Path":"\"a\"","ID":%d,"Name":"\"c\""}`, nil, "a b", "taken back"},
		{"chown", `{"Op":"chown","Path":"\"a\"","ID":%d,"To":{"UID":1000,"GID":1000,"Mode":448}}`, nil, "a 1000 700 b", "done"},
		{"something of a later version", `{"Op":"swap","Path":"\"a\""}`, nil, "a b", "failed"},
		{"garbage", `{"Op`, nil, "a b", "failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			first := newSystem(t)
			spec := rig.Spec("afirst", "cpu")
			dir, done := view.Once(t, first, spec)
			for _, name := range []string{"/a", "/b"} {
				require.NoError(t, os.Mkdir(dir+name, 0o755))
			}
			h := hierarchyOf(t, first, spec)
			note := c.note
			if strings.Contains(note, "%d") {
				note = fmt.Sprintf(note, h.Root().Child("a").ContainerID())
			}
			require.NoError(t, h.LeaveIntent(note))
			require.NoError(t, unix.Unmount(dir, 0))
			<-done
			require.NoError(t, os.Remove(dir))
			require.NoError(t, first.Close())

			faults.set(maps.Clone(c.fails))
			defer faults.set(nil)
			second := rig.System(t)
			dir = view.Mount(t, second, spec)
			var left []string
			for line := range strings.Lines(tree(t, dir)) {
				f := strings.Fields(line)
				if mode := f[4]; mode == fmt.Sprint(unix.S_IFDIR|0o755) {
					left = append(left, f[0])
				} else if mode == fmt.Sprint(unix.S_IFDIR|0o700) {
					left = append(left, f[0], f[2], "700")
				}
			}
			require.Equal(t, c.left, strings.Join(left, " "))
			found, err := second.Doctor()
			require.NoError(t, err)
			require.NotEmpty(t, found)
			require.Contains(t, found[0].String(), c.says)
			more := 0
			if c.fails != nil {
				more = 1 // what was removed already is made anew
			}
			require.Len(t, found, 1+more)
			found, err = second.Doctor()
			require.NoError(t, err)
			require.Empty(t, found)
			note, err = hierarchyOf(t, second, spec).Intent()
			require.NoError(t, err)
			require.Empty(t, note)
		})
	}
}

func newSystem(t *testing.T) *proxy.System {
	const run = "/run/rcfs"
	require.NoError(t, os.MkdirAll(run, 0o755))
	sys, err := proxy.Open(proxy.Host{Run: run}, rig.Log(t))
	require.NoError(t, err)
	return sys
}

// watching is a view that is not mounted.
type watching struct{}

func (watching) Where() string { return "" }
func (watching) Alive() bool   { return true }

// hierarchyOf returns the hierarchy of a mount.
func hierarchyOf(t *testing.T, sys *proxy.System, spec proxy.Spec) *proxy.Hierarchy {
	h, err := sys.Mount(spec, watching{})
	require.NoError(t, err)
	sys.Unmount(h, watching{})
	return h
}
