// Package rig is the ground that tests stand on: a mount namespace of their own with an empty
// /run, a directory of their own in every kernel hierarchy, and a look afterwards at what is
// left. A package calls Main from its TestMain:
//
//	func TestMain(m *testing.M) { rig.Main(m) }
package rig

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/testdata/victim"
)

const inside = "RCFS_TEST_INSIDE"

// Main runs a package's tests as root in a mount namespace of their own, and fails if they leave
// anything behind. Test packages take turns: the names of kernel hierarchies are the machine's.
func Main(m *testing.M) {
	victim.Main()
	if os.Getenv(inside) == "" {
		os.Exit(outside())
	}
	check(privateMounts())
	check(unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	fds := descriptors()
	code := m.Run()
	if err := goleak.Find(); err != nil {
		code = fail("goroutines left: %v", err)
	}
	for _, fd := range descriptors() {
		if !slices.Contains(fds, fd) {
			code = fail("descriptor left: %s", fd)
		}
	}
	if left := children(); len(left) > 0 {
		code = fail("processes left: %v", left)
		for _, process := range left {
			pid, _, _ := strings.Cut(process, " ")
			if n, err := strconv.Atoi(pid); err == nil {
				unix.Kill(n, unix.SIGKILL)
			}
		}
	}
	os.Exit(code)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "rig:", err)
		os.Exit(1)
	}
}

func fail(format string, args ...any) int {
	fmt.Fprintf(os.Stderr, "LEAK: "+format+"\n", args...)
	return 1
}

// outside runs the tests in a child and looks at the machine before and after.
func outside() int {
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), "rcfs-test.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	check(err)
	check(unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	defer lock.Close()
	sweep()
	if left := leftovers(); len(left) > 0 {
		return fail("before the tests, from an earlier run or a running rcfs: %v", left)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	// The race detector would make every program that the tests start wait for a second at its end.
	cmd.Env = append(os.Environ(), inside+"=1", "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	code := 0
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "rig:", err)
		code = 1
	}
	var left []string
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if left = leftovers(); len(left) == 0 {
			return code
		}
		if time.Now().After(deadline) {
			return fail("%v", left)
		}
	}
}

func privateMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	return unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
}

// leftovers lists rcfs hierarchies, mounts and the tests' groups.
func leftovers() []string {
	var left []string
	hierarchies, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(hierarchies)) {
		if strings.Contains(line, "name=rcfs") {
			left = append(left, "hierarchy "+strings.TrimSpace(line))
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "rcfs") {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*rcfs*", "/sys/fs/cgroup/*/*rcfs*"} {
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			left = append(left, "group "+dir)
		}
	}
	return left
}

// descriptors lists what is open, without the runtime's own.
func descriptors() []string {
	var list []string
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.HasPrefix(target, "anon_inode:[event") || strings.HasSuffix(target, "/fd") {
			continue
		}
		list = append(list, e.Name()+" "+target)
	}
	return list
}

func children() []string {
	var left []string
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, file := range tasks {
		b, _ := os.ReadFile(file)
		for _, pid := range strings.Fields(string(b)) {
			comm, _ := os.ReadFile("/proc/" + pid + "/comm")
			left = append(left, pid+" "+strings.TrimSpace(string(comm)))
		}
	}
	return left
}

// Guest reports whether the machine is there for these tests alone, so that they may use the
// hierarchies that a shared one needs itself.
func Guest() bool { return os.Getenv("RCFS_TEST_GUEST") != "" }

// Free reports whether tests may bind a subsystem here. A shared machine's memory is not for them,
// and a v1 hierarchy of hugetlb would take it away from v2.
func Free(s proxy.SubsystemInfo) bool {
	return Guest() || s.Name != "memory" && (s.Name != "hugetlb" || s.Backend != "v1")
}

// Base is the tests' directory in every kernel hierarchy.
func Base() string { return fmt.Sprintf("%s%d", basePrefix, os.Getpid()) }

// Log returns a logger that writes to the test's output.
func Log(t testing.TB) *slog.Logger {
	level := slog.LevelWarn
	if testing.Verbose() {
		level = slog.LevelInfo
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level}))
}

// System opens a system with its pins in /run/rcfs; the cleanup closes it. A test restarts it by
// closing and opening once more.
func System(t testing.TB) *proxy.System {
	const run = "/run/rcfs"
	require.NoError(t, os.MkdirAll(run, 0o755))
	sys, err := proxy.Open(proxy.Host{Run: run}, Log(t))
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := sys.Close(); err != nil {
			t.Error("close:", err)
		}
	})
	return sys
}

// Spec asks for subsystems, with the tests' own base.
func Spec(subsystems ...string) proxy.Spec {
	return proxy.Spec{Subsystems: subsystems, None: len(subsystems) == 0, Base: Base()}
}

// Eventually waits until f says nothing any more, and fails the test with what it says otherwise.
func Eventually(t testing.TB, f func() string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second * time.Duration(min(victim.Slow(), 6)))
	for {
		problem := f()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(problem)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// KernelIsAtLeast compares the kernel's version, for what a test has to expect of it.
func KernelIsAtLeast(major, minor int) bool {
	var uts unix.Utsname
	check(unix.Uname(&uts))
	var a, b int
	_, err := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &a, &b)
	check(err)
	return a > major || a == major && b >= minor
}

// BPF reports whether BPF programs that walk through the kernel's structures have to work here: the kernel describes
// its types, and lets us use bpf(2).
func BPF() bool {
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return false
	}
	// A map: the command 0, an array of one entry.
	attr := struct{ kind, key, value, entries uint32 }{2, 4, 4, 1}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno == 0 {
		check(unix.Close(int(fd)))
	}
	return errno == 0
}
