// Bench measures what rcfs does, each thing against what people use instead, on the same work in the same run,
// and prints ratios of medians. It runs bin/rcfsd in a mount namespace of its own.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const inside = "RCFS_BENCH_INSIDE"

var (
	full = flag.Bool("full", false, "more rounds, 100,000 containers: 20 minutes")
	only = flag.String("run", "", "only the groups whose names match `REGEXP`; writes no documentation")
	docs = flag.String("docs", "docs", "`directory` of bench.md and its pictures")
)

// groups of measurements, by the names of their pictures.
var groups = []struct {
	name string
	run  func() (*table, error)
}{
	{"read", reads},
	{"write", writes},
	{"open", opens},
	{"redirect", redirects},
	{"moves", moves},
	{"shell", shellMoves},
	{"many", manyIDs},
	{"parallel", parallelMoves},
	{"thread", oneThread},
	{"threads", manyThreads},
	{"processes", manyProcesses},
	{"start", starts},
	{"containers", containers},
	{"listing", listing},
	{"members", members},
	{"values", values},
	{"proxies", proxies},
	{"memory", memory},
	{"mount", mounts},
	{"kill", kills},
	{"counts", counts},
	{"growth-containers", growContainers},
	{"ps", ps},
	{"growth-subsystems", growSubsystems},
	{"growth-threads", growThreads},
}

// either is the quick run's, or the full one's.
func either[T any](quick, all T) T {
	if *full {
		return all
	}
	return quick
}

func main() {
	threadsMain()
	goFuseMain()
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	if os.Getenv(inside) == "" {
		lock, err := os.OpenFile(filepath.Join(os.TempDir(), "rcfs-test.lock"), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		defer lock.Close()
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil { // not while tests run
			return err
		}
		runtime.LockOSThread() // Pdeathsig is of a thread
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Setsid: true, Pdeathsig: unix.SIGKILL}
		return cmd.Run()
	}
	favour(os.Getpid())
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	runtime.GOMAXPROCS(16) // for eight threads in calls at once
	chosen, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err
	}
	r := report{head: fmt.Sprintf("Linux %s %s, %d processors, a load of %s before it, %s.", unix.ByteSliceToString(uts.Release[:]), runtime.GOARCH, runtime.NumCPU(), strings.Fields(string(load))[0], runtime.Version())}
	fmt.Println(r.head)
	for _, g := range groups {
		if !chosen.MatchString(g.name) {
			continue
		}
		t, err := g.run()
		if err := errors.Join(err, cleanUp()); err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
		r.add(g.name, t)
	}
	fmt.Printf("\nSummary\n\n%s", r.summary())
	if *only != "" {
		return nil
	}
	return r.write(*docs)
}

// favour has a session go before all others of the machine, which are not to be measured, where the kernel has
// autogroups (sched(7)).
func favour(pid int) { _ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", pid), []byte("-20"), 0) }

// cleanups is what is to be done when a group has ended, however it did, last first.
var cleanups []func() error

func later(f func() error) { cleanups = append(cleanups, f) }

func cleanUp() error {
	var errs []error
	for _, f := range slices.Backward(cleanups) {
		errs = append(errs, f())
	}
	cleanups = nil
	return errors.Join(errs...)
}
