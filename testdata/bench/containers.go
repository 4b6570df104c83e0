package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// containers makes and removes a container with six groups and three namespaces.
func containers() (*table, error) {
	kinds := strings.Split(namespaces, ",")
	what := slices.Concat(six, kinds)
	dir, _, err := mounted(strings.Join(what, ","))
	if err != nil {
		return nil, err
	}
	pins, err := os.MkdirTemp("/run", "pins")
	if err != nil {
		return nil, err
	}
	hand := byHand{pins: pins, pinned: kinds}
	for _, c := range six {
		hand.groups = append(hand.groups, byKernel(c, "/hand"))
	}
	t := &table{title: "mkdir and rmdir of a container in " + strings.Join(what, "+"), rows: []row{
		{name: "by hand: six mkdir, unshare, three bind mounts, and the reverse", op: func(int) error {
			return errors.Join(hand.make(), hand.remove())
		}},
		{name: "rcfs: mkdir, rmdir", wants: []want{{1.5, 0}}, op: func(int) error {
			if err := unix.Mkdir(dir+"/x", 0o755); err != nil {
				return err
			}
			return unix.Rmdir(dir + "/x")
		}},
	}}
	return t, errors.Join(t.measure(), os.Remove(pins))
}

// byHand is what a script has to do for the same.
type byHand struct {
	groups []string
	pins   string
	pinned []string
}

func (b *byHand) make() error {
	for _, g := range b.groups {
		if err := unix.Mkdir(g, 0o755); err != nil {
			return fmt.Errorf("mkdir %s: %w", g, err)
		}
	}
	done := make(chan error)
	go func() { // on a thread that ends with it
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET)
		for _, k := range b.pinned {
			fd, e := unix.Open(b.pins+"/"+k, unix.O_CREAT|unix.O_RDONLY|unix.O_CLOEXEC, 0o444)
			if err = errors.Join(err, e); err == nil {
				unix.Close(fd)
				err = unix.Mount("/proc/thread-self/ns/"+k, b.pins+"/"+k, "", unix.MS_BIND, "")
			}
		}
		done <- err
	}()
	return <-done
}

func (b *byHand) remove() error {
	var err error
	for _, k := range b.pinned {
		err = errors.Join(err, unix.Unmount(b.pins+"/"+k, unix.MNT_DETACH), unix.Unlink(b.pins+"/"+k))
	}
	for _, g := range b.groups {
		err = errors.Join(err, unix.Rmdir(g))
	}
	return err
}

// listing reads directories with very many entries.
func listing() (*table, error) {
	n := either(10_000, 100_000)
	dir, _, err := mounted("none,name=" + base)
	if err != nil {
		return nil, err
	}
	kernel, err := os.MkdirTemp("/run", "kernel")
	if err != nil {
		return nil, err
	}
	if err := unix.Mount("none", kernel, "cgroup", 0, "none,name=rcfs-bench-kernel"); err != nil {
		return nil, fmt.Errorf("mount a cgroup hierarchy: %w", err)
	}
	later(func() error {
		err := clear(kernel)
		// The kernel finishes the last directories in the background, and keeps a hierarchy that is
		// unmounted before.
		time.Sleep(300 * time.Millisecond)
		return errors.Join(err, unix.Unmount(kernel, 0), os.Remove(kernel))
	})
	if err := mkdirs(slices.Concat(names(dir+"/a", 0, n), names(kernel, 0, n))); err != nil {
		return nil, err
	}
	list := func(top string, stat bool) error {
		entries, err := os.ReadDir(top)
		if err != nil {
			return err
		}
		dirs := 0
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			dirs++
			if stat {
				if _, err := e.Info(); err != nil {
					return err
				}
			}
		}
		if dirs != n {
			return fmt.Errorf("%d of %d listed", dirs, n)
		}
		return nil
	}
	t := &table{title: fmt.Sprintf("listing %d", n), rows: []row{
		{name: "cgroups of the kernel", op: func(int) error { return list(kernel, false) }},
		{name: "containers", wants: []want{{3, 0}}, op: func(int) error { return list(dir+"/a", false) }},
		{name: "cgroups of the kernel, with lstat of each", op: func(int) error { return list(kernel, true) }},
		{name: "containers, with lstat of each", op: func(int) error { return list(dir+"/a", true) }},
	}}
	return t, t.measure()
}
