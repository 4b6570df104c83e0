package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// six are the controllers that moves are measured with.
var six = []string{"cpu", "cpuacct", "pids", "freezer", "blkio", "cpuset"}

// base is the mount option, and where the groups are.
const base = "rcfs-bench"

// byKernel returns the kernel's own directory of a container.
func byKernel(controller, container string) string {
	return "/sys/fs/cgroup/" + controller + "/" + base + container
}

// mount mounts subsystems on a new directory.
func mount(subsystems string) (string, error) {
	dir, err := os.MkdirTemp("/run", "mnt")
	if err != nil {
		return "", err
	}
	return dir, mountOn(dir, subsystems)
}

func mountOn(dir, subsystems string) error {
	helper := exec.Command("bin/mount.fuse.rcfs", "none", dir, "-o", subsystems+",base="+base)
	helper.Stderr = os.Stderr
	if err := helper.Run(); err != nil {
		return fmt.Errorf("mount %s: %w", subsystems, err)
	}
	return nil
}

// mounted mounts subsystems with two containers, and returns the directory and its end, which comes by itself, too.
func mounted(subsystems string) (string, func() error, error) {
	dir, err := mount(subsystems)
	if err != nil {
		return "", nil, err
	}
	ended := false
	end := func() error {
		if ended {
			return nil
		}
		ended = true
		return errors.Join(clear(dir), unix.Unmount(dir, unix.MNT_DETACH))
	}
	later(end)
	d, err := theDaemon()
	if err != nil {
		return "", nil, err
	}
	favour(d.PID)
	for _, c := range []string{"/a", "/b"} {
		if err := unix.Mkdir(dir+c, 0o755); err != nil {
			return "", nil, err
		}
	}
	return dir, end, nil
}

// clear removes all containers below a directory.
func clear(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, clear(dir+"/"+e.Name()), unix.Rmdir(dir+"/"+e.Name()))
		}
	}
	return err
}

// names of many containers.
func names(dir string, from, to int) []string {
	var list []string
	for i := from; i < to; i++ {
		list = append(list, fmt.Sprintf("%s/c%d", dir, i))
	}
	return list
}

func mkdirs(names []string) error {
	for _, name := range names {
		if err := unix.Mkdir(name, 0o755); err != nil {
			return fmt.Errorf("mkdir %s: %w", name, err)
		}
	}
	return nil
}

// sleeper starts a single-threaded process that does nothing, until it is killed or the group of measurements ends.
func sleeper() (string, func(), error) {
	pids, kill, err := crowd(1)
	if err != nil {
		return "", nil, err
	}
	return pids[0], kill, nil
}

// crowd starts many of them.
func crowd(n int) ([]string, func(), error) {
	cmd := exec.Command("build/bench-crowd", strconv.Itoa(n))
	in, err := cmd.StdinPipe() // it ends with this
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	lines := bufio.NewScanner(out)
	var pids []string
	for len(pids) < n && lines.Scan() {
		pids = append(pids, lines.Text())
	}
	kill := func() {
		in.Close()
		cmd.Wait()
	}
	later(func() error { kill(); return nil })
	if len(pids) < n {
		return nil, nil, fmt.Errorf("%d of %d processes started", len(pids), n)
	}
	return pids, kill, nil
}

// shell starts a shell that runs a script over and over, once each time the function that is returned is called.
func shell(script string) (func(int) error, error) {
	cmd := exec.Command("sh", "-ec", "while read x; do\n"+script+"\necho\ndone")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	later(func() error { in.Close(); return cmd.Wait() })
	answer := make([]byte, 1)
	return func(int) error {
		if _, err := io.WriteString(in, "\n"); err != nil {
			return err
		}
		_, err := io.ReadFull(out, answer)
		return err
	}, nil
}

// loops is how often a script does its work at a time, so that to ask for it does not count.
const loops = 20

func loop(script string) string {
	words := strings.Fields(strings.Repeat("x ", loops))
	return "for i in " + strings.Join(words, " ") + "; do\n" + script + "\ndone"
}

// writeFile is open, write, close, as a C program does it.
func writeFile(file, data string) error {
	path, err := unix.BytePtrFromString(file)
	if err != nil {
		return err
	}
	fd, err := call(unix.SYS_OPENAT, unix.AT_FDCWD, unsafe.Pointer(path), unix.O_WRONLY|unix.O_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open %s: %w", file, err)
	}
	n, err := call(unix.SYS_WRITE, fd, unsafe.Pointer(unsafe.StringData(data)), len(data))
	_, closed := call(unix.SYS_CLOSE, fd, nil, 0)
	if err != nil || n != len(data) {
		why, _ := os.ReadFile(filepath.Dir(file) + "/rcfs.error")
		return fmt.Errorf("write %s: %d of %d: %w: %s", file, n, len(data), err, why)
	}
	return closed
}

// call is a system call of which Go's scheduler is told nothing: what that does around a call that lasts is not to be
// measured. There are processors enough for it (main).
func call(number, fd int, p unsafe.Pointer, n int) (int, error) {
	r, _, errno := unix.RawSyscall6(uintptr(number), uintptr(fd), uintptr(p), uintptr(n), 0, 0, 0)
	if errno != 0 {
		return int(r), errno
	}
	return int(r), nil
}

func ab(i int) string { return []string{"/a", "/b"}[i%2] }

// other returns /a and /b in turn: what is moved has to come from elsewhere each time.
func other() func() string {
	n := 0
	return func() string {
		n++
		return ab(n)
	}
}
