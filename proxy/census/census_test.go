package census

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// told is a reading in which all namespaces but that of uts are alike.
func told(uts string) string {
	return uts + strings.Repeat("\nns", len(namespaces)-1) + "\n0::/\n"
}

// scripted is a machine whose tasks are others each time that they are listed; the last list stays.
type scripted struct {
	lists [][]member
	at    int
	texts func(tid, round int) string // "" when it has gone
	reads []int
}

func (s *scripted) list() ([]member, error) {
	list := s.lists[min(s.at, len(s.lists)-1)]
	s.at++
	return list, nil
}

func (s *scripted) read(tid int) (string, error) {
	s.reads = append(s.reads, tid)
	if text := s.texts(tid, s.at); text != "" {
		return text, nil
	}
	return "", errGone
}

func TestRepresentatives(t *testing.T) {
	a, b, c := pointers{1, 1, 1}, pointers{2, 1, 1}, pointers{3, 1, 1}
	stays := []member{{10, a}, {11, a}, {12, b}}
	for _, test := range []struct {
		name   string
		lists  [][]member
		texts  func(tid, round int) string
		want   map[string]int // tasks by the state of uts
		passes int
	}{
		{
			"one of each is read, and the tasks are listed once more", [][]member{stays},
			func(tid, _ int) string { return told(map[int]string{10: "A", 12: "B"}[tid]) },
			map[string]int{"A": 2, "B": 1}, 2,
		},
		{
			"equal states are one proxy", [][]member{{{10, a}, {12, b}, {13, c}}},
			func(tid, _ int) string { return told("A") },
			map[string]int{"A": 3}, 2,
		},
		{
			"one that has gone is replaced by another", [][]member{stays, {{11, a}, {12, b}}},
			func(tid, _ int) string { return map[int]string{11: told("A"), 12: told("B")}[tid] },
			map[string]int{"A": 1, "B": 1}, 2,
		},
		{
			"one that went after it was read is not relied upon", [][]member{{{10, a}, {11, a}}, {{11, a}}},
			func(tid, _ int) string { return told(map[int]string{10: "elsewhere", 11: "A"}[tid]) },
			map[string]int{"A": 1}, 3,
		},
		{
			"one that moved is read again", [][]member{stays, {{10, b}, {11, a}, {12, b}}},
			func(tid, round int) string { return told(map[int]string{10: "B", 11: "A", 12: "B"}[tid]) },
			map[string]int{"A": 1, "B": 2}, 3,
		},
		{
			"a group that has ended does not count", [][]member{stays, {{12, b}}},
			func(tid, _ int) string { return map[int]string{12: told("B")}[tid] },
			map[string]int{"B": 1}, 2,
		},
		{
			"a new group is read", [][]member{{{12, b}}, stays},
			func(tid, _ int) string { return told(map[int]string{10: "A", 12: "B"}[tid]) },
			map[string]int{"A": 2, "B": 1}, 3,
		},
		{
			"one whose namespaces may be seen goes before others", [][]member{stays},
			func(tid, _ int) string { return told(map[int]string{10: Unknown, 11: "A", 12: "B"}[tid]) },
			map[string]int{"A": 2, "B": 1}, 2,
		},
		{
			"where there is none the group is unseen", [][]member{stays},
			func(tid, _ int) string { return told(map[int]string{10: Unknown, 11: Unknown, 12: "B"}[tid]) },
			map[string]int{"B": 1}, 2,
		},
		{
			"nobody", [][]member{{}}, nil, map[string]int{}, 1,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &scripted{lists: test.lists, texts: test.texts}
			got, err := take(s, s.read)
			require.NoError(t, err)
			assert.Equal(t, test.want, byState(got, "uts"))
			assert.Equal(t, test.passes, s.at)
			all := 0
			for _, n := range test.want {
				all += n
			}
			assert.Equal(t, all, got.Tasks)
			assert.Equal(t, len(s.lists[len(s.lists)-1]), got.Tasks+got.Unseen)
		})
	}
}

// Where everybody moves all the time there is an end to it.
func TestRestlessMachine(t *testing.T) {
	s := &scripted{texts: func(tid, round int) string { return told(fmt.Sprint(round)) }}
	for i := range uint64(50) {
		s.lists = append(s.lists, []member{{10, pointers{i, 1, 1}}, {11, pointers{100, i, 1}}})
	}
	got, err := take(s, s.read)
	require.NoError(t, err)
	assert.Equal(t, 2, got.Tasks)
	assert.Equal(t, rounds, s.at)
}

func TestErrorsEndIt(t *testing.T) {
	s := &scripted{lists: [][]member{{{10, pointers{1, 1, 1}}}}}
	broken := errors.New("broken")
	_, err := take(s, func(int) (string, error) { return "", broken })
	assert.ErrorIs(t, err, broken)
	_, err = take(s, func(int) (string, error) { return "nonsense", nil })
	assert.Error(t, err)
}

// byState sums up the tasks by their state in a slot.
func byState(c *Census, subsystem string) map[string]int {
	counts := make(map[string]int)
	for _, g := range c.Groups {
		counts[g.Proxy.State(subsystem)] += g.Tasks
	}
	return counts
}

// ways are those that have to work here.
func ways() map[string]func() (*Census, error) {
	return map[string]func() (*Census, error){ByBPF: Take, ByProc: TakeProc}
}

// by is what a way says that it is.
func by(way string) string {
	if way == ByBPF && !rig.BPF() {
		return ByProc
	}
	return way
}

// start runs a program in a new uts namespace, and returns its pid and that namespace.
func start(t *testing.T, name string, args ...string) (pid int, uts string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUTS}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	rig.Eventually(t, func() string { // until it is the program, and not the child that will be
		p, err := Of(cmd.Process.Pid)
		if err != nil {
			return err.Error()
		}
		own, err := Of(unix.Getpid())
		require.NoError(t, err)
		if uts = p.State("uts"); uts == own.State("uts") {
			return "in our uts namespace"
		}
		return ""
	})
	return cmd.Process.Pid, uts
}

// A zombie does not count, and a thread does.
func TestZombies(t *testing.T) {
	pid, uts := start(t, "sleep", "1000")
	for name, take := range ways() {
		c, err := take()
		require.NoError(t, err)
		assert.Equal(t, by(name), c.By)
		assert.Equal(t, 1, byState(c, "uts")[uts], name)
	}
	require.NoError(t, unix.Kill(pid, unix.SIGKILL))
	rig.Eventually(t, func() string {
		_, err := Of(pid)
		if !errors.Is(err, ErrZombie) {
			return fmt.Sprintf("the task is no zombie: %v", err)
		}
		return ""
	})
	for name, take := range ways() {
		c, err := take()
		require.NoError(t, err)
		assert.NotContains(t, byState(c, "uts"), uts, name)
	}
}

func TestNoTask(t *testing.T) {
	for _, tid := range []int{0, 1<<31 - 1} {
		_, err := Of(tid)
		assert.ErrorIs(t, err, ErrNoTask, tid)
	}
}

// A task whose next child will be the first in its pid namespace has none yet.
func TestPidNamespaceWithoutInit(t *testing.T) {
	pid, uts := start(t, "unshare", "--pid", "sleep", "1000")
	rig.Eventually(t, func() string {
		p, err := Of(pid)
		require.NoError(t, err)
		if p.State("pid") != Empty {
			return "unshare has not unshared: " + p.State("pid")
		}
		return ""
	})
	for name, take := range ways() {
		c, err := take()
		require.NoError(t, err)
		found := false
		for _, g := range c.Groups {
			if g.Proxy.State("uts") == uts {
				assert.Equal(t, Empty, g.Proxy.State("pid"), name)
				assert.Equal(t, 1, g.Tasks, name)
				found = true
			}
		}
		assert.True(t, found, name)
	}
}

// While tasks come and go by the thousand, those that stay are counted, and nobody is counted twice.
func TestTasksThatEndMeanwhile(t *testing.T) {
	for _, kind := range []string{"forker", "spawner", "churn"} {
		v := victim.Start(t, kind)
		defer func() { assert.Empty(t, v.Stop(), kind) }()
	}
	var stay []string
	for range 4 {
		_, uts := start(t, "sleep", "1000")
		stay = append(stay, uts)
	}
	for name, take := range ways() {
		for range victim.Times(30) {
			c, err := take()
			require.NoError(t, err, name)
			require.Equal(t, by(name), c.By)
			counts := byState(c, "uts")
			for _, uts := range stay {
				require.Equal(t, 1, counts[uts], name)
			}
		}
	}
}

func TestParseReading(t *testing.T) {
	text := "uts:[1]\nipc:[2]\nnet:[3]\nmnt:[4]\n-\n\ncgroup:[6]\nuser:[7]\n" +
		"12:name=rcfs.cpu-uts:/web\n5:cpu,cpuacct:/a:b\n4:name=systemd:/\n0::/../x y\n"
	p, err := parseReading(text)
	require.NoError(t, err)
	assert.Equal(t, Proxy{
		{"uts", "uts:[1]"}, {"ipc", "ipc:[2]"}, {"net", "net:[3]"}, {"mnt", "mnt:[4]"}, {"pid", Empty},
		{"cgroupns", "cgroup:[6]"}, {"userns", "user:[7]"},
		{Cgroup2, "/../x y"}, {"cpu,cpuacct", "/a:b"}, {"name=systemd", "/"}, {"name=rcfs.cpu-uts", "/web"},
	}, p)
	assert.Equal(t, "/web", p.State("name=rcfs.cpu-uts"))
	assert.Empty(t, p.State("time"))
	for _, bad := range []string{"", "a\nb", strings.Repeat("\n", len(namespaces)) + "x", strings.Repeat("\n", len(namespaces)) + "3::/"} {
		_, err := parseReading(bad)
		assert.Error(t, err, "%q", bad)
	}
}

func TestHasEnded(t *testing.T) {
	for stat, want := range map[string]bool{
		"12 (a) b) c) S 1 12 12 0 -1 4194304 0 0\n": false,
		"12 (sleep) S 1 12 12 0 -1 4194308 0 0\n":   true,
		"12 (sleep) Z 1 12 12 0 -1 4194304 0 0\n":   true,
		"12 (sleep) X 1 12 12 0 -1 4194304 0 0\n":   true,
		"12 (Z) R 1 12 12 0 -1 4194304 0 0\n":       false,
		"12 (sleep) S 1 12 12 0 -1 x 0 0\n":         true,
		"12 (sleep) S\n":                            true,
		"":                                          true,
	} {
		assert.Equal(t, want, hasEnded(stat), stat)
	}
}

func FuzzHasEnded(f *testing.F) {
	f.Add("12 (a) b) S 1 12 12 0 -1 4194304 0 0\n")
	f.Add(")")
	f.Add("")
	f.Fuzz(func(t *testing.T, stat string) {
		if !hasEnded(stat) {
			require.GreaterOrEqual(t, len(strings.Fields(stat)), 7)
		}
	})
}

func FuzzParseReading(f *testing.F) {
	f.Add("uts:[1]\nipc:[2]\nnet:[3]\nmnt:[4]\n-\n\ncgroup:[6]\nuser:[7]\n12:name=rcfs.cpu:/web\n5:cpu,cpuacct:/a:b\n0::/\n")
	f.Add(strings.Repeat("\n", len(namespaces)))
	f.Add(strings.Repeat("?\n", len(namespaces)) + "0::/")
	f.Add("1::/\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parseReading(text)
		if err != nil {
			return
		}
		// Nothing is lost: each line is a slot, but for those of namespaces that are not there.
		lines := strings.SplitAfterN(text, "\n", len(namespaces)+1)
		want := strings.Count(strings.TrimSuffix(lines[len(namespaces)], "\n"), "\n")
		if lines[len(namespaces)] != "" {
			want++
		}
		for _, line := range lines[:len(namespaces)] {
			if line != "\n" {
				want++
			}
		}
		require.Len(t, p, want)
		for _, s := range p {
			require.NotEmpty(t, s.State)
			require.NotEmpty(t, s.Subsystem)
		}
	})
}

// types are what a kernel with a structure and a bit field in it has, and a few other types before it.
func types(structure string, members ...string) []byte {
	var list, names []byte
	word := func(n int) { list = binary.NativeEndian.AppendUint32(list, uint32(n)) }
	name := func(s string) {
		word(len(names))
		names = append(append(names, s...), 0)
	}
	name("")
	word(2 << 24) // a pointer
	word(0)
	name("counter")
	word(1 << 24) // int
	word(4)
	word(32)
	name(structure)
	word(1<<31 | kindStruct<<24 | len(members)) // with bit fields
	word(64)
	for i, m := range members {
		name(m)
		word(1)
		word(i * 64)
	}
	header := []uint32{0, 24, 0, uint32(len(list)), uint32(len(list)), uint32(len(names))}
	b := binary.NativeEndian.AppendUint16(nil, 0xeb9f)
	b = append(b, 1, 0)
	for _, n := range header[1:] {
		b = binary.NativeEndian.AppendUint32(b, n)
	}
	return append(append(b, list...), names...)
}

func TestLayout(t *testing.T) {
	found := make(map[string]uint32)
	require.NoError(t, eachStruct(types("cred", "usage", "user_ns"), func(name []byte, members func(func([]byte, uint32))) {
		members(func(member []byte, at uint32) { found[string(name)+"."+string(member)] = at })
	}))
	assert.Equal(t, map[string]uint32{"cred.usage": 0, "cred.user_ns": 8}, found)
	_, err := layoutOf(types("task_struct", "pid", "nsproxy", "cgroups"))
	assert.ErrorContains(t, err, "no [real_cred] and [user_ns]")
	if rig.BPF() {
		l, err := layoutOfKernel()
		require.NoError(t, err)
		for _, at := range []int16{l.pid, l.nsproxy, l.cssSet, l.cred, l.userNS} {
			assert.Positive(t, at)
		}
	}
}

func FuzzLayout(f *testing.F) {
	good := types("task_struct", "pid", "nsproxy", "cgroups", "real_cred")
	f.Add(good)
	f.Add(types("cred", "user_ns"))
	f.Add(good[:len(good)/2])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := layoutOf(b); err == nil {
			require.Contains(t, string(b), "task_struct")
		}
	})
}

func FuzzParseRecords(f *testing.F) {
	f.Add(make([]byte, recordSize))
	f.Add([]byte(strings.Repeat("\x01\x00\x00\x00\x00\x00\x00\x00", 8)))
	f.Add([]byte("short"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		members, err := parseRecords(data)
		if len(data)%recordSize != 0 {
			require.Error(t, err)
			return
		}
		require.NoError(t, err)
		require.Len(t, members, len(data)/recordSize)
	})
}
