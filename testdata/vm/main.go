// Command vm is the first process of a guest that testdata/vm.sh boots: it mounts what the tests
// need, runs every test binary in /tests, says how that went, and powers off. Its arguments are
// words of the kernel's command line:
//
//	layout=v2|v1|hybrid   where the cgroup controllers are
//	kernel=tested         what depends on the kernel alone is tested elsewhere
//	programs=tested       what depends on neither is, too
//	only=NAME             one test binary, "fs" for /tests/fs.test
//	run=REGEXP            what -test.run shall have
//	verbose=true          for -test.v
//	kills=N               how often a tracer is killed per victim, otherwise 2
package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	code := 1
	if err := prepare(); err != nil {
		fmt.Println("init:", err)
	} else {
		code = run()
	}
	fmt.Printf("INIT END code=%d\n", code)
	unix.Sync()
	fmt.Println(unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// word returns the value of a word of the kernel's command line.
func word(name string) string {
	line, _ := os.ReadFile("/proc/cmdline")
	for w := range strings.FieldsSeq(string(line)) {
		if value, ok := strings.CutPrefix(w, name+"="); ok {
			return value
		}
	}
	return ""
}

func prepare() error {
	for _, m := range []struct{ fstype, dir, data string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"devpts", "/dev/pts", "ptmxmode=666"},
		{"tmpfs", "/run", "mode=755"},
		{"tmpfs", "/tmp", "mode=1777"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fstype, m.dir, m.fstype, 0, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	for link, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(target, "/dev/"+link); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := loadModule("/fuse.ko"); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("guest")); err != nil {
		return err
	}
	if err := loopback(); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return mountCgroups(word("layout"))
}

// loopback brings lo up, as it is on any host.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// loadModule loads a module that is there because this kernel does not have it built in.
func loadModule(file string) error {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.FinitModule(fd, "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", file, err)
	}
	return nil
}

const cgroups = "/sys/fs/cgroup"

// mountCgroups mounts controllers where a host with that layout has them: systemd's unified one,
// the v1 layout of before, or (hybrid) some on v1 and the others on v2.
func mountCgroups(layout string) error {
	if layout == "v2" {
		if err := unix.Mount("cgroup2", cgroups, "cgroup2", 0, "nsdelegate"); err != nil {
			return err
		}
		return enableAll(cgroups)
	}
	if err := unix.Mount("tmpfs", cgroups, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	var controllers []string
	switch layout {
	case "v1":
		table, err := os.ReadFile("/proc/cgroups")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(table)) {
			if f := strings.Fields(line); len(f) == 4 && f[3] == "1" {
				controllers = append(controllers, f[0])
			}
		}
	case "hybrid":
		// Together, as systemd had them; and what v2 has under the same name on v2.
		controllers = []string{"cpu,cpuacct", "net_cls,net_prio", "freezer", "devices", "perf_event"}
	default:
		return fmt.Errorf("layout %q", layout)
	}
	for _, c := range controllers {
		dir := cgroups + "/" + c
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		// 6.12 lists controllers that it has on v2 only.
		if err := unix.Mount("cgroup", dir, "cgroup", 0, c); err != nil {
			os.Remove(dir)
			fmt.Printf("init: no %s on v1: %v\n", c, err)
		}
	}
	dir := cgroups + "/unified"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return unix.Mount("cgroup2", dir, "cgroup2", 0, "")
}

// enableAll enables every controller of v2 for the children of the root except cpuset and pids: as
// systemd does, some are, and rcfs has to enable the others and to take that back.
func enableAll(root string) error {
	b, err := os.ReadFile(root + "/cgroup.controllers")
	if err != nil {
		return err
	}
	for c := range strings.FieldsSeq(string(b)) {
		if c == "cpuset" || c == "pids" {
			continue
		}
		if err := os.WriteFile(root+"/cgroup.subtree_control", []byte("+"+c), 0); err != nil {
			return fmt.Errorf("enable %s: %w", c, err)
		}
	}
	return nil
}

// notHere are tests of cmd/rcfsd for which a guest lacks something: the sources, programs that know
// only cgroup v1, servers, a module for bridges; a thread of its own in a group of v2.
const notHere = "^(TestImportsGoDownwards|TestContractNamesItsTests|TestMakeInstall|TestCgroupTools|TestContainerd|TestIPNetns|TestProgramsUnderLoad|TestThreadLeftBehind)"

// ofKernel are tests of fs that depend on the kernel, and not on where its controllers are.
const ofKernel = "^(TestAwkwardTargets|TestTwoMovesOfOneTarget|TestThreadsThatMoveEachOther|TestTargetKilledInMidMove|TestVforkParent|" +
	"TestWriterWithAThreadInVfork|TestTracerAndTracee|TestNoRoomForADescriptor|TestTaskMovesItself|TestTaskThatCannotMoveItself|" +
	"TestListIsOfOneMoment|TestIdsOfAnotherPidNamespace|TestRmdirRightAfterAMoverHasEnded)$"

// ofFUSE are the tests of cmd/rcfsd that run in other guests than the first of all: what depends on what a kernel's FUSE
// and BPF can do.
const ofFUSE = "^(TestPs|TestPassedThrough|TestWorkerKilled|TestRestartKeepsWhatIsOpen|TestEventsWakeWaiters|TestMountThroughRestarts|" +
	"TestReadmeSession|TestDaemonKilledInMoves|TestMount$)"

// elsewhere is what runs of each package on another processor, in the time that there is: what depends
// on it. Of a package named there with "" everything does, of one that is not there nothing.
var elsewhere = map[string]string{
	"census":     "",
	"inject":     "",
	"proxy":      "",
	"rcfsd":      "^TestPs",
	"fs":         "^(TestTaskMovesItself|TestTaskThatCannotMoveItself|TestRefusalLeavesEverything|TestNamespaceLinks)$",
	"subsystems": "^(TestKeeper|TestPid|TestTime|TestUser|TestUnprivilegedTask)",
}

// selected says whether a package runs, and which of its tests.
func selected(name string) (tests string, ok bool) {
	tests, only := word("run"), word("only")
	switch {
	case only != "":
		return tests, only == name
	case word("kernel") == "tested":
		return tests, name == "fs" || name == "subsystems"
	case runtime.GOARCH == "amd64":
		if name == "rcfsd" && word("programs") == "tested" && tests == "" {
			tests = ofFUSE
		}
		return tests, true
	}
	part, ok := elsewhere[name]
	if tests == "" {
		tests = part
	}
	return tests, ok
}

// run runs the test binaries one after the other.
func run() int {
	var uts unix.Utsname
	unix.Uname(&uts)
	fmt.Printf("init: Linux %s layout %s\n", unix.ByteSliceToString(uts.Release[:]), word("layout"))
	tests, err := filepath.Glob("/tests/*.test")
	if err != nil || len(tests) == 0 {
		fmt.Println("init: no tests", err)
		return 1
	}
	code := 0
	for _, test := range tests {
		name := strings.TrimSuffix(filepath.Base(test), ".test")
		selection, ok := selected(name)
		if !ok {
			continue
		}
		dir := filepath.Join("/tests", name) // README.md is two above it, as it is in the sources
		if err := os.Mkdir(dir, 0o755); err != nil {
			fmt.Println("init:", err)
			return 1
		}
		args := []string{"-test.timeout=20m", "-test.v=" + map[bool]string{true: "true", false: "false"}[word("verbose") == "true"]}
		switch {
		case name == "rcfsd":
			args = append(args, "-test.skip="+notHere)
		case name == "fs" && word("kernel") == "tested":
			args = append(args, "-test.skip="+ofKernel)
		}
		if selection != "" {
			args = append(args, "-test.run="+selection)
		}
		before := state()
		cmd := exec.Command(test, args...)
		cmd.Dir = dir
		cmd.Env = []string{"PATH=/usr/bin:/usr/sbin", "HOME=/root", "LC_ALL=C", "GOMAXPROCS=2", "RCFS_TEST_SLOW=10", "RCFS_TEST_GUEST=1", "RCFS_STORM_KILLS=" + cmp.Or(word("kills"), "2")}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		start := time.Now()
		err := cmd.Run()
		verdict := "ok"
		if err != nil {
			verdict, code = "FAIL", 1
			fmt.Println("init:", err)
		}
		if after := state(); after != before {
			verdict, code = "FAIL", 1
			fmt.Printf("init: the tests changed groups that are not theirs: before\n%safter\n%s", before, after)
		}
		fmt.Printf("%-4s\t%s\t%.1fs\n", verdict, name, time.Since(start).Seconds())
	}
	return code
}

// state describes what rcfs has to leave as it was: the groups there are, and which controllers v2
// has enabled where.
func state() string {
	var s strings.Builder
	filepath.WalkDir(cgroups, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if d.IsDir() {
			fmt.Fprintln(&s, path)
		} else if d.Name() == "cgroup.subtree_control" {
			b, _ := os.ReadFile(path)
			fmt.Fprintf(&s, "%s: %s\n", path, strings.TrimSpace(string(b)))
		}
		return nil
	})
	return s.String()
}
