// Bench measures moves, each against what people use instead, on the same work in the same run,
// and prints ratios of medians. It runs bin/rcfsd in a mount namespace of its own.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

const inside = "RCFS_BENCH_INSIDE"

func main() {
	threadsMain()
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
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
		return cmd.Run()
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	fmt.Printf("Linux %s %s, %d processors, %s\n", unix.ByteSliceToString(uts.Release[:]), runtime.GOARCH, runtime.NumCPU(), runtime.Version())
	for _, group := range []func() (*table, error){groups, oneThread, manyThreads, manyProcesses, containers, listing, proxies, ps} {
		t, err := group()
		if err != nil {
			return err
		}
		t.print()
	}
	return nil
}

// table is some ways to do one thing; the first is what the others are compared with.
type table struct {
	title string
	rows  []row
	note  string // what is wanted, and what costs the rest
}

type row struct {
	name   string
	rounds int
	op     func(i int) error
	per    int // how much op does at once; its time is divided by that. 0 is 1
	times  []time.Duration
}

// measure runs the ways in turn, so that what disturbs one disturbs all.
func (t *table) measure() error {
	const parts = 10
	n := 0
	for range parts {
		for r := range t.rows {
			row := &t.rows[r]
			for range max(1, row.rounds/parts) {
				n++
				start := time.Now()
				if err := row.op(n); err != nil {
					return fmt.Errorf("%s: %s: %w", t.title, row.name, err)
				}
				row.times = append(row.times, time.Since(start)/time.Duration(max(1, row.per)))
			}
		}
	}
	return nil
}

func (t *table) print() {
	fmt.Printf("\n%s\n%12s %8s %18s\n", t.title, "median", "ratio", "quarter to 3/4")
	first := 0.0
	for i := range t.rows {
		times := t.rows[i].times
		slices.Sort(times)
		at := func(q float64) float64 { return float64(times[int(q*float64(len(times)-1))].Nanoseconds()) / 1000 }
		if i == 0 {
			first = at(0.5)
		}
		fmt.Printf("%9.2f µs %7.2fx %8.2f–%.2f µs  %s\n", at(0.5), at(0.5)/first, at(0.25), at(0.75), t.rows[i].name)
	}
	if t.note != "" {
		fmt.Println(t.note)
	}
}

// writeFile is open, write, close, as a C program does it.
func writeFile(file, data string) error {
	fd, err := unix.Open(file, unix.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", file, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(data)); err != nil {
		why, _ := os.ReadFile(filepath.Dir(file) + "/rcfs.error")
		return fmt.Errorf("write %s: %w: %s", file, err, why)
	}
	return nil
}

// mounted mounts subsystems with two containers, and returns the directory and its end.
func mounted(subsystems string) (string, func() error, error) {
	dir, err := os.MkdirTemp("/run", "mnt")
	if err != nil {
		return "", nil, err
	}
	helper := exec.Command("bin/mount.fuse.rcfs", "none", dir, "-o", subsystems+",base=rcfs-bench")
	helper.Stderr = os.Stderr
	if err := helper.Run(); err != nil {
		return "", nil, err
	}
	end := func() error {
		for _, c := range []string{"/a", "/b"} {
			if err := unix.Rmdir(dir + c); err != nil {
				return err
			}
		}
		return unix.Unmount(dir, 0)
	}
	for _, c := range []string{"/a", "/b"} {
		if err := unix.Mkdir(dir+c, 0o755); err != nil {
			return "", nil, err
		}
	}
	return dir, end, nil
}

// sleeper starts a single-threaded process that does nothing.
func sleeper() (string, func(), error) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	return fmt.Sprint(cmd.Process.Pid), func() { cmd.Process.Kill(); cmd.Wait() }, nil
}

func ab(i int) string { return []string{"/a", "/b"}[i%2] }

// groups moves a task among six controllers.
func groups() (*table, error) {
	controllers := []string{"cpu", "cpuacct", "pids", "freezer", "blkio", "cpuset"}
	dir, end, err := mounted(strings.Join(controllers, ","))
	if err != nil {
		return nil, err
	}
	pid, kill, err := sleeper()
	if err != nil {
		return nil, err
	}
	var specs []string
	for _, c := range []string{"a", "b"} {
		specs = append(specs, strings.Join(controllers, ",")+":rcfs-bench/"+c)
	}
	t := &table{title: "one task into " + strings.Join(controllers, "+") + ", open+write+close", rows: []row{
		{name: "six writes by hand", rounds: 2000, op: func(i int) error {
			for _, c := range controllers {
				if err := writeFile("/sys/fs/cgroup/"+c+"/rcfs-bench"+ab(i)+"/tasks", pid); err != nil {
					return err
				}
			}
			return nil
		}},
		{name: "rcfs: echo PID > tasks", rounds: 2000, op: func(i int) error { return writeFile(dir+ab(i)+"/tasks", pid) }},
		{name: "cgclassify", rounds: 60, op: func(i int) error { return exec.Command("cgclassify", "-g", specs[i%2], pid).Run() }},
	}}
	err = t.measure()
	kill()
	if err != nil {
		return nil, err
	}
	return t, end()
}

// object is a state that is only an identity.
type object uint64

func (o object) ID() proxy.ID   { return proxy.ID{Dev: 1, Ino: uint64(o)} }
func (o object) String() string { return "" }

// proxies looks for the canonical proxy among many.
func proxies() (*table, error) {
	t := &table{title: "finding a proxy of 16 slots among many, 1,000 at a time"}
	for _, n := range []int{1000, 100_000, 1_000_000} {
		names := make([]string, 16)
		tab := proxy.NewTable(names)
		objects := make([]proxy.Object, 16)
		list := make([][16]uint64, n) // the list of 2007
		fill := func(i int) {
			for slot := range objects {
				objects[slot] = object(slot*1000 + i>>(slot%3*7)&127)
				list[i][slot] = uint64(objects[slot].(object))
			}
			objects[15] = object(1_000_000 + i)
			list[i][15] = 1_000_000 + uint64(i)
		}
		for i := range n {
			fill(i)
			tab.Find(objects)
		}
		t.rows = append(t.rows, row{name: fmt.Sprintf("map, among %d", n), rounds: 50, op: func(k int) error {
			for j := range 1000 {
				fill((k*7919 + j*104729) % n)
				tab.Find(objects)
			}
			return nil
		}})
		t.rows = append(t.rows, row{name: fmt.Sprintf("list walk, among %d (1,000th of the work done)", n), rounds: 10, op: func(k int) error {
			want := list[(k*7919)%n]
			for i := range list {
				if list[i] == want {
					return nil
				}
			}
			return fmt.Errorf("not found")
		}})
	}
	return t, t.measure()
}
