package main

import (
	"bytes"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sides are where files are read and written: the kernel's directories, rcfs's, and files of servers that do nothing.
type sides struct {
	pids, devices string // the kernel's
	rcfs          string
	c, through    string // files of the C server, the second one passed through to pids.max
	goFuse        string // of go-fuse's server
	blocking      string // of another loop in Go
}

func newSides() (s sides, err error) {
	dir, _, err := mounted("pids,devices,uts,ipc,net")
	if err != nil {
		return s, err
	}
	s = sides{pids: byKernel("pids", "/a/"), devices: byKernel("devices", "/a/"), rcfs: dir + "/a/"}
	if s.c, err = nothing(); err != nil {
		return s, err
	}
	if s.through, err = nothing(s.pids + "pids.max"); err != nil {
		return s, err
	}
	if s.goFuse, err = goFuse(goFuseLoop); err != nil {
		return s, err
	}
	s.blocking, err = goFuse(blockingLoop)
	return s, err
}

// onOpen is a row that does f with a file that is open.
func onOpen(name, file string, flags int, f func(fd int) error, wants ...want) row {
	fd, err := unix.Open(file, flags|unix.O_CLOEXEC, 0)
	later(func() error { return unix.Close(fd) })
	return row{name: name, wants: wants, op: func(int) error {
		if err != nil {
			return fmt.Errorf("open %s: %w", file, err)
		}
		return f(fd)
	}}
}

const (
	pidsOfKernel    = "the kernel's own pids.max"
	pidsOfRcfs      = "rcfs: pids.max, passed through"
	devicesOfKernel = "the kernel's own file of devices"
	devicesOfRcfs   = "rcfs: the file of devices, not passed through"
	inC             = "a C server that does nothing"
	cOpens          = "the C server: open, write, close of a file"
	inGo            = "go-fuse's server, doing nothing"
	inBlocking      = "the same in Go, a loop of read(2) that blocks"
	underC          = "all of them are a round trip, two context switches, whoever serves: the C server is the floor of what is not passed through."
)

// reads are of an open file.
func reads() (*table, error) {
	s, err := newSides()
	if err != nil {
		return nil, err
	}
	var buf [4096]byte
	read := func(fd int) error {
		n, err := call(unix.SYS_PREAD64, fd, unsafe.Pointer(&buf), len(buf))
		if n == 0 && err == nil {
			err = unix.ENODATA
		}
		return err
	}
	t := &table{title: "read(2) of an open file", rows: []row{
		onOpen(pidsOfKernel, s.pids+"pids.max", unix.O_RDONLY, read),
		onOpen(pidsOfRcfs, s.rcfs+"pids.max", unix.O_RDONLY, read, want{1.1, 0}),
		onOpen(devicesOfKernel, s.devices+"devices.list", unix.O_RDONLY, read),
		onOpen(inC, s.c, unix.O_RDONLY, read),
		onOpen(inGo, s.goFuse, unix.O_RDONLY, read),
		onOpen(inBlocking, s.blocking, unix.O_RDONLY, read),
		onOpen(devicesOfRcfs, s.rcfs+"devices.list", unix.O_RDONLY, read, want{1.15, 3}),
		onOpen("rcfs: rcfs.unshare, which is in memory", s.rcfs+"rcfs.unshare", unix.O_RDONLY, read, want{1.15, 3}, want{1, 4}),
	}, note: "What is not passed through: " + underC}
	return t, t.measure()
}

// writes are to an open file.
func writes() (*table, error) {
	s, err := newSides()
	if err != nil {
		return nil, err
	}
	write := func(text string) func(int) error {
		data := []byte(text)
		return func(fd int) error {
			_, err := call(unix.SYS_PWRITE64, fd, unsafe.Pointer(&data[0]), len(data))
			return err
		}
	}
	t := &table{title: "write(2) to an open file", rows: []row{
		onOpen(pidsOfKernel, s.pids+"pids.max", unix.O_WRONLY, write("1000\n")),
		onOpen(pidsOfRcfs, s.rcfs+"pids.max", unix.O_WRONLY, write("1000\n"), want{1.1, 0}),
		onOpen(devicesOfKernel, s.devices+"devices.allow", unix.O_WRONLY, write("c 1:3 r\n")),
		onOpen(inC, s.c, unix.O_WRONLY, write("1\n")),
		onOpen(inGo, s.goFuse, unix.O_WRONLY, write("1\n")),
		onOpen(inBlocking, s.blocking, unix.O_WRONLY, write("1\n")),
		onOpen(devicesOfRcfs, s.rcfs+"devices.allow", unix.O_WRONLY, write("c 1:3 r\n"), want{1.15, 3}),
		onOpen("rcfs: notify_on_release", s.rcfs+"notify_on_release", unix.O_WRONLY, write("0\n"), want{1.15, 3}),
	}, note: "What is not passed through: " + underC + " The file of devices asks besides who the writer is, since the kernel would ask that of the daemon."}
	return t, t.measure()
}

// opens are open, write, close.
func opens() (*table, error) {
	s, err := newSides()
	if err != nil {
		return nil, err
	}
	write := func(name, file string, wants ...want) row {
		return row{name: name, wants: wants, op: func(int) error { return writeFile(file, "1000\n") }}
	}
	t := &table{title: "open, write, close", rows: []row{
		write(pidsOfKernel, s.pids+"pids.max"),
		write("the C server, passing through to it", s.through),
		write(pidsOfRcfs, s.rcfs+"pids.max", want{1.15, 1}),
		write(inC, s.c),
		write(inGo, s.goFuse),
		write(inBlocking, s.blocking),
		write("rcfs: notify_on_release", s.rcfs+"notify_on_release"),
	}, note: "Passed through, open and close are a round trip each, and nobody waits for the second."}
	return t, t.measure()
}

// redirects are the shell's >.
func redirects() (*table, error) {
	s, err := newSides()
	if err != nil {
		return nil, err
	}
	t := &table{title: "echo 1000 > FILE, in a shell that runs"}
	for _, side := range []struct {
		name, file string
		wants      []want
	}{
		{pidsOfKernel, s.pids + "pids.max", nil},
		{"the C server, passing through to it", s.through, nil},
		{pidsOfRcfs, s.rcfs + "pids.max", []want{{1.15, 1}}},
	} {
		op, err := shell(loop("echo 1000 > " + side.file))
		if err != nil {
			return nil, err
		}
		t.rows = append(t.rows, row{name: side.name, op: op, per: loops, wants: side.wants})
	}
	return t, t.measure()
}

// members lists many.
func members() (*table, error) {
	dir, _, err := mounted("cpu")
	if err != nil {
		return nil, err
	}
	n := either(2000, 10_000)
	pid, _, err := threads(n)
	if err != nil {
		return nil, err
	}
	if err := writeFile(dir+"/a/tasks", pid); err != nil {
		return nil, err
	}
	buf := make([]byte, 128<<10) // as cat has
	cat := func(name, file string, wants ...want) row {
		return row{name: name, wants: wants, op: func(int) error {
			fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			lines := 0
			for {
				m, err := unix.Read(fd, buf)
				if err != nil {
					return err
				}
				if m == 0 {
					break
				}
				lines += bytes.Count(buf[:m], []byte{'\n'})
			}
			if lines < n {
				return fmt.Errorf("%s: %d of %d tasks", file, lines, n)
			}
			return nil
		}}
	}
	t := &table{title: fmt.Sprintf("cat tasks of %d", n), rows: []row{
		cat("the kernel's own", byKernel("cpu", "/a/tasks")),
		cat("rcfs", dir+"/a/tasks", want{1.5, 0}),
	}, note: "The kernel makes and sorts the list for either."}
	return t, t.measure()
}
