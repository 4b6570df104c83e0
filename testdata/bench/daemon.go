package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// processes are what the daemon consists of.
func (d daemon) processes() []int { return []int{d.PID, d.Worker} }

// field adds up a numeric field of files in /proc.
func field(key string, files ...string) (sum int, err error) {
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // a thread has ended
		}
		for line := range strings.Lines(string(b)) {
			if value, ok := strings.CutPrefix(line, key+":"); ok {
				n, err := strconv.Atoi(strings.Fields(value)[0])
				if err != nil {
					return 0, err
				}
				sum += n
			}
		}
	}
	return sum, nil
}

// rss is the memory of both, in megabytes.
func (d daemon) rss() (float64, error) {
	kb, err := field("VmRSS", fmt.Sprintf("/proc/%d/status", d.PID), fmt.Sprintf("/proc/%d/status", d.Worker))
	return float64(kb) / 1024, err
}

// threads are the status files of all threads of both.
func (d daemon) threads() (files []string) {
	for _, pid := range d.processes() {
		list, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		files = append(files, list...)
	}
	return files
}

// switches counts how often a thread of either has gone to sleep.
func (d daemon) switches() (int, error) { return field("voluntary_ctxt_switches", d.threads()...) }

// wakeups are so many a second.
func (d daemon) wakeups(seconds int) (float64, error) {
	before, err := d.switches()
	if err != nil {
		return 0, err
	}
	time.Sleep(time.Duration(seconds) * time.Second)
	after, err := d.switches()
	return float64(after-before) / float64(seconds), err
}

// memory is what the daemon needs, when it does nothing.
func memory() (*table, error) {
	dir, _, err := mounted("pids")
	if err != nil {
		return nil, err
	}
	d, err := theDaemon()
	if err != nil {
		return nil, err
	}
	t := &table{title: "the daemon, both processes"}
	made := 0
	for _, n := range either([]int{0, 1000, 10_000}, []int{0, 1000, 10_000, 100_000}) {
		if err := mkdirs(names(dir, made, n)); err != nil {
			return nil, err
		}
		made = n
		time.Sleep(500 * time.Millisecond)
		mb, err := d.rss()
		if err != nil {
			return nil, err
		}
		f := figure{fmt.Sprintf("resident with %d containers", n), mb, "MB", anything}
		if n >= 10_000 {
			f.most = 40
		}
		t.figures = append(t.figures, f)
	}
	time.Sleep(time.Duration(either(4, 10)) * time.Second) // Go's runtime gives memory back for a while
	wakeups, err := d.wakeups(either(3, 20))
	if err != nil {
		return nil, err
	}
	t.figures = append(t.figures, figure{fmt.Sprintf("idle with %d containers", made), wakeups, "wakeups a second", 0})

	threads := len(d.threads())
	for i := range 100 {
		view, err := mount("pids")
		if err != nil {
			return nil, fmt.Errorf("mount %d: %w", i, err)
		}
		later(func() error { return unix.Unmount(view, unix.MNT_DETACH) })
	}
	t.figures = append(t.figures, figure{"threads", float64(threads), "", anything},
		figure{"threads more with 100 mounts more", float64(len(d.threads()) - threads), "", anything})
	return t, nil
}

// mounts are made and unmade.
func mounts() (*table, error) {
	dir, err := os.MkdirTemp("/run", "mnt")
	if err != nil {
		return nil, err
	}
	const what = "uts,ipc,net"
	make := func(int) error { return mountOn(dir, what) }
	unmake := func(int) error {
		err := unix.Unmount(dir, unix.MNT_DETACH)
		if err == unix.EINVAL {
			return nil // not mounted yet
		}
		return err
	}
	first := &table{title: "mount", rows: []row{
		{name: "the first of all: it starts the daemon", rounds: either(10, 50), most: 60 * time.Millisecond, op: make, before: func(i int) error {
			if err := unmake(i); err != nil {
				return err
			}
			return gone()
		}},
	}}
	if err := first.measure(); err != nil {
		return nil, err
	}
	later(func() error { return unmake(0) })
	if err := unmake(0); err != nil {
		return nil, err
	}
	keep, err := mount("none,name=" + base)
	if err != nil {
		return nil, err
	}
	later(func() error { return unix.Unmount(keep, unix.MNT_DETACH) })
	running := &table{title: first.title, rows: []row{
		{name: "the daemon runs", rounds: either(50, 200), most: 20 * time.Millisecond, op: make, before: unmake},
	}}
	if err := running.measure(); err != nil {
		return nil, err
	}
	running.rows = append(running.rows, first.rows...)
	return running, nil
}

// gone waits until there is no daemon.
func gone() error {
	for range 5000 {
		if _, err := os.Stat("/run/rcfs"); err != nil {
			time.Sleep(20 * time.Millisecond) // the process, too
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("the daemon does not end")
}

// kills kills the worker while somebody writes.
func kills() (*table, error) {
	dir, _, err := mounted("uts,pids")
	if err != nil {
		return nil, err
	}
	file := dir + "/a/notify_on_release"
	write := func(int) error { return writeFile(file, "0") }
	t := &table{title: "a write to notify_on_release", rows: []row{
		{name: "the worker lives", op: write},
		{name: "the worker is killed just before", rounds: either(10, 50), most: 50 * time.Millisecond, op: write, before: func(int) error {
			time.Sleep(1100 * time.Millisecond) // one that dies young is started again later
			d, err := theDaemon()
			if err != nil {
				return err
			}
			return unix.Kill(d.Worker, unix.SIGKILL)
		}},
	}, note: "The next worker is a new process, which finds everything in the kernel again before it answers."}
	return t, t.measure()
}
