package subsystems_test

import (
	"bytes"
	"fmt"
	"os"
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

// kernelGroup is a cgroup directory that the test made, as another program would.
type kernelGroup string

// makeGroup makes a group below the tests' directory in the hierarchy that has a controller. The
// cleanup removes it, as far as it is still there, and the tests' directory.
func makeGroup(t *testing.T, sys *proxy.System, controller, name string) kernelGroup {
	top := kernelGroup(kernelRoot(t, sys, controller) + "/" + rig.Base())
	for _, dir := range []kernelGroup{top, top + "/" + kernelGroup(name)} {
		if err := os.Mkdir(string(dir), 0o755); err == nil {
			t.Cleanup(func() { os.Remove(string(dir)) })
		} else {
			require.ErrorIs(t, err, os.ErrExist)
		}
	}
	return top + "/" + kernelGroup(name)
}

func kernelRoot(t *testing.T, sys *proxy.System, controller string) string {
	fstype := "cgroup"
	if backendOf(sys, controller) == "v2" {
		fstype = "cgroup2"
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter(fstype))
	require.NoError(t, err)
	for _, m := range mounts {
		if fstype == "cgroup2" || slices.Contains(strings.Split(m.VFSOptions, ","), controller) {
			return m.Mountpoint
		}
	}
	t.Fatal("not mounted: ", controller)
	return ""
}

func backendOf(sys *proxy.System, name string) string {
	for _, info := range sys.Subsystems() {
		if info.Name == name {
			return info.Backend
		}
	}
	return ""
}

func (g kernelGroup) put(t *testing.T, pid int) {
	require.NoError(t, write(string(g)+"/cgroup.procs", fmt.Sprint(pid)))
}

func (g kernelGroup) state(t *testing.T) string {
	var s strings.Builder
	require.NoError(t, filepath.WalkDir(string(g), func(path string, d os.DirEntry, err error) error {
		require.NoError(t, err)
		if d.IsDir() {
			fmt.Fprintln(&s, path, g.notes(t, path))
		}
		switch d.Name() {
		case "cgroup.procs", "cgroup.subtree_control", "pids.max", "cpuset.cpus", "cpuset.mems":
			fmt.Fprintf(&s, "%s %q\n", path, read(t, path))
		}
		return nil
	}))
	return s.String()
}

// notes returns the attributes that rcfs has left on a directory.
func (kernelGroup) notes(t *testing.T, path string) string {
	buf := make([]byte, 4096)
	n, err := unix.Listxattr(path, buf)
	require.NoError(t, err)
	return string(bytes.ReplaceAll(buf[:n], []byte{0}, []byte(" ")))
}

// bases are controllers to try a base with: what the layouts have on v1, and on v2.
func bases(t *testing.T, sys *proxy.System) []string {
	var names []string
	for _, info := range sys.Subsystems() {
		if rig.Free(info) && info.Backend != "" && slices.Contains([]string{"cpu", "cpuset", "hugetlb", "pids"}, info.Name) {
			names = append(names, info.Name)
		}
	}
	require.Len(t, names, 4)
	return names
}

// A base can be a group that somebody else made and has delegated, or lie below one. That group,
// and what else is in it, is left alone, and stays when the hierarchy goes, also by another daemon.
func TestDelegatedBase(t *testing.T) {
	var names []string
	t.Run("controllers", func(t *testing.T) { names = bases(t, rig.System(t)) })
	for _, name := range names {
		for _, below := range []string{"", "/deeper/still"} {
			for _, how := range []string{"", "+restart", "+enabled"} {
				t.Run(name+below+how, func(t *testing.T) { delegatedBase(t, name, below, how) })
			}
		}
	}
}

func delegatedBase(t *testing.T, name, below, how string) {
	require.NoError(t, os.MkdirAll("/run/rcfs", 0o755))
	open := func() *proxy.System {
		sys, err := proxy.Open(proxy.Host{Run: "/run/rcfs"}, rig.Log(t))
		require.NoError(t, err)
		return sys
	}
	sys := open()
	controls := enabled(t)
	unit := makeGroup(t, sys, name, "unit")
	v2 := backendOf(sys, name) == "v2"
	if name == "cpuset" && !v2 {
		for _, file := range []string{"/cpuset.cpus", "/cpuset.mems"} {
			for _, dir := range []string{filepath.Dir(string(unit)), string(unit)} {
				require.NoError(t, write(dir+file, read(t, filepath.Dir(dir)+file)))
			}
		}
	}
	leaf := makeGroup(t, sys, name, "unit/leaf")
	if how == "+enabled" { // as systemd has done for Delegate=
		if !v2 {
			require.NoError(t, sys.Close())
			t.Skip("v1 has nothing to enable")
		}
		for _, dir := range []string{kernelRoot(t, sys, name), filepath.Dir(string(unit)), string(unit)} {
			file := dir + "/cgroup.subtree_control"
			if !slices.Contains(strings.Fields(read(t, file)), name) {
				require.NoError(t, write(file, "+"+name))
				t.Cleanup(func() { require.NoError(t, write(file, "-"+name)) })
			}
		}
		controls = enabled(t)
	}
	own, theirs := victim.Start(t, "single"), victim.Start(t, "single")
	if name != "cpuset" || v2 {
		leaf.put(t, theirs.Pid)
	} else {
		unit.put(t, theirs.Pid)
	}
	before := unit.state(t)

	spec := proxy.Spec{Subsystems: []string{name}, Base: rig.Base() + "/unit" + below}
	h, err := sys.Mount(spec, gone{})
	require.NoError(t, err)
	a, err := h.Make(h.Root(), "a", owner, none)
	require.NoError(t, err)
	require.NoError(t, attach(a, own.Pid))
	require.Contains(t, read(t, fmt.Sprintf("/proc/%d/cgroup", own.Pid)), "/unit"+below+"/a")
	if how == "+restart" {
		require.NoError(t, sys.Close())
		sys = open()
		h, err = sys.Mount(spec, gone{})
		require.NoError(t, err)
		require.NotNil(t, h.Root().Child("a"))
	}
	require.NoError(t, attach(h.Root(), own.Pid))
	require.NoError(t, h.Remove(h.Root(), "a"))
	unmount(t, sys, h)
	require.NoError(t, sys.Close())

	require.Equal(t, before, unit.state(t))
	require.Equal(t, controls, enabled(t))
	require.Empty(t, own.Stop())
	require.Empty(t, theirs.Stop())
}

// A delegated group in which nothing is stays as well. The same subsystems cannot be had with another
// base meanwhile.
func TestEmptyDelegatedBase(t *testing.T) {
	sys := rig.System(t)
	unit := makeGroup(t, sys, "pids", "unit")
	h, err := sys.Mount(proxy.Spec{Subsystems: []string{"pids"}, Base: rig.Base() + "/unit"}, gone{})
	require.NoError(t, err)
	_, err = sys.Mount(rig.Spec("pids"), gone{})
	require.ErrorIs(t, err, proxy.ErrBound)
	require.ErrorContains(t, err, fmt.Sprintf("in use with base %q", rig.Base()+"/unit"))
	unmount(t, sys, h)
	require.DirExists(t, string(unit))
}

// A base that cannot be one is refused in words, and nothing has changed.
func TestBaseThatCannotBe(t *testing.T) {
	sys := rig.System(t)
	for _, name := range bases(t, sys) {
		v2 := backendOf(sys, name) == "v2"
		if !v2 && name != "cpuset" {
			continue // v1 has no group that cannot have others below it
		}
		for _, below := range []string{"", "/deeper"} {
			t.Run(name+below, func(t *testing.T) {
				controls := enabled(t)
				unit := makeGroup(t, sys, name, "unit")
				v := victim.Start(t, "single")
				errno, why := unix.ENOSPC, "is not a group of rcfs, and its cpuset.cpus is empty"
				if v2 {
					unit.put(t, v.Pid)
					errno, why = unix.EBUSY, "/unit has processes of its own"
				}
				before := unit.state(t)
				h, err := sys.Mount(proxy.Spec{Subsystems: []string{name}, Base: rig.Base() + "/unit" + below}, gone{})
				if err == nil {
					unmount(t, sys, h)
				}
				require.ErrorIs(t, err, errno)
				require.ErrorContains(t, err, why)
				require.Equal(t, before, unit.state(t))
				require.Equal(t, controls, enabled(t))
				require.Empty(t, v.Stop())
			})
		}
	}
}

// A remount that fails leaves the base to the controllers that have it.
func TestFailedRemountKeepsBase(t *testing.T) {
	sys := rig.System(t)
	if backendOf(sys, "pids") != "v2" || backendOf(sys, "hugetlb") != "v2" {
		t.Skip("v2 has not both of them here")
	}
	h, err := sys.Mount(rig.Spec("pids"), gone{})
	require.NoError(t, err)
	// In a threaded group there can be none of ours.
	base := kernelRoot(t, sys, "pids") + "/" + rig.Base()
	require.NoError(t, write(base+"/cgroup.type", "threaded"))
	controls := enabled(t)
	require.ErrorIs(t, sys.Extend(h, proxy.Spec{Subsystems: []string{"hugetlb"}}), unix.EOPNOTSUPP)
	require.DirExists(t, base)
	require.Equal(t, controls, enabled(t))
	require.Equal(t, "pids\n", read(t, base+"/cgroup.subtree_control"))
	require.Equal(t, []string{"pids"}, h.Subsystems())
	unmount(t, sys, h)
	require.NoDirExists(t, base)
}

// A container whose name somebody else has taken in one kernel hierarchy is made in none; so is
// one that v2's limits on descendants do not allow.
func TestFailedMkdir(t *testing.T) {
	sys := rig.System(t)
	names := bases(t, sys)
	controls := enabled(t)
	h, err := sys.Mount(rig.Spec(append([]string{"uts"}, names...)...), gone{})
	require.NoError(t, err)
	tops := map[string]kernelGroup{}
	for _, name := range names {
		tops[name] = kernelGroup(kernelRoot(t, sys, name) + "/" + rig.Base())
	}
	states := func() string {
		all := ""
		for _, name := range names {
			all += tops[name].state(t)
		}
		return all
	}
	fails := func(name string, errno unix.Errno) {
		t.Helper()
		before := states()
		_, err := h.Make(h.Root(), "a", owner, none)
		require.ErrorIs(t, err, errno, name)
		require.Equal(t, before, states(), name)
		require.Nil(t, h.Root().Child("a"))
	}
	for _, name := range names {
		taken := string(tops[name]) + "/a"
		require.NoError(t, os.Mkdir(taken, 0o755))
		fails(name, unix.EEXIST)
		require.NoError(t, os.Remove(taken))
		if backendOf(sys, name) != "v2" {
			continue
		}
		for _, limit := range []string{"/cgroup.max.depth", "/cgroup.max.descendants"} {
			for n := range 2 { // nothing; the container's group without its leaf
				require.NoError(t, write(string(tops[name])+limit, fmt.Sprint(n)))
				fails(name+limit, unix.EAGAIN)
			}
			require.NoError(t, write(string(tops[name])+limit, "max"))
		}
	}
	_, err = h.Make(h.Root(), "a", owner, none)
	require.NoError(t, err)
	require.NoError(t, h.Remove(h.Root(), "a"))
	unmount(t, sys, h)
	require.Equal(t, controls, enabled(t))
}

// A process that somebody has put into the group of a container, and not into the leaf below it where
// v2 has the tasks, is in the way of a child.
func TestProcessInAnInnerGroup(t *testing.T) {
	sys := rig.System(t)
	names := slices.DeleteFunc(bases(t, sys), func(name string) bool { return backendOf(sys, name) != "v2" })
	if len(names) == 0 {
		t.Skip("v2 has no controllers here")
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			h, err := sys.Mount(rig.Spec(name), gone{})
			require.NoError(t, err)
			a, err := h.Make(h.Root(), "a", owner, none)
			require.NoError(t, err)
			group := kernelGroup(kernelRoot(t, sys, name) + "/" + rig.Base() + "/a")
			v := victim.Start(t, "single")
			group.put(t, v.Pid)
			before := group.state(t)
			_, err = h.Make(a, "b", owner, none)
			require.ErrorIs(t, err, unix.EBUSY)
			require.ErrorContains(t, err, "/a has processes of its own")
			require.Equal(t, before, group.state(t))

			require.NoError(t, attach(a, v.Pid))
			require.Equal(t, fmt.Sprintln(v.Pid), read(t, string(group)+"/.rcfs/cgroup.procs"))
			b, err := h.Make(a, "b", owner, none)
			require.NoError(t, err)
			require.NoError(t, attach(b, v.Pid))
			require.Empty(t, v.Stop())
			require.NoError(t, h.Remove(a, "b"))
			require.NoError(t, h.Remove(h.Root(), "a"))
			unmount(t, sys, h)
		})
	}
}

// enabled returns what v2's root and the tests' directory have enabled.
func enabled(t *testing.T) string {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	require.NoError(t, err)
	var s strings.Builder
	for _, m := range mounts {
		files, err := filepath.Glob(m.Mountpoint + "/*/cgroup.subtree_control")
		require.NoError(t, err)
		for _, file := range append(files, m.Mountpoint+"/cgroup.subtree_control") {
			if !strings.Contains(file, rig.Base()) {
				fmt.Fprintf(&s, "%s %q\n", file, read(t, file))
			}
		}
	}
	return s.String()
}

func unmount(t *testing.T, sys *proxy.System, h *proxy.Hierarchy) {
	sys.Unmount(h, gone{})
	rig.Eventually(t, func() string {
		if !sys.Idle() {
			return "the hierarchy has not gone"
		}
		return ""
	})
}
