package victim

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blockWrite writes more than a pipe holds, so that a part of it is written when it is disturbed.
// The signal ends the call with the count of that part, as write(2) says of any.
func blockWrite(p *program, _ int, _ time.Duration) error {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	size, err := unix.FcntlInt(uintptr(pipe[1]), unix.F_SETPIPE_SZ, 4096)
	if err != nil {
		return err
	}
	if _, err := unix.Write(pipe[1], make([]byte, size)); err != nil {
		return err
	}
	_, err = unix.Write(pipe[1], []byte{1})
	return err
}

// blockRecv receives from a socket to which nobody sends.
func blockRecv(_ *program, _ int, timeout time.Duration) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if timeout != 0 {
		tv := unix.NsecToTimeval(int64(timeout))
		if err := unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return err
		}
	}
	var b byte
	n, _, e := unix.Syscall6(unix.SYS_RECVFROM, uintptr(pair[0]), uintptr(unsafe.Pointer(&b)), 1, 0, 0, 0)
	if e == unix.EAGAIN && timeout != 0 {
		return nil
	}
	return errno(n, e)
}

// listener listens at an address that the kernel chooses.
func listener(backlog int) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{}); err != nil {
		return -1, err
	}
	return fd, unix.Listen(fd, backlog)
}

func blockAccept(*program, int, time.Duration) error {
	fd, err := listener(1)
	if err != nil {
		return err
	}
	n, _, e := unix.Syscall(unix.SYS_ACCEPT, uintptr(fd), 0, 0)
	return errno(n, e)
}

// blockConnect connects to a socket that accepts nobody, once more than that holds.
func blockConnect(*program, int, time.Duration) error {
	server, err := listener(0)
	if err != nil {
		return err
	}
	to, err := unix.Getsockname(server)
	for range 2 {
		var fd int
		if err == nil {
			fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		}
		if err == nil {
			err = unix.Connect(fd, to)
		}
	}
	return err
}

func blockGetevents(*program, int, time.Duration) error {
	var context uintptr
	if n, _, e := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&context)), 0); e != 0 {
		return errno(n, e)
	}
	var event [4]uint64
	n, _, e := unix.Syscall6(unix.SYS_IO_GETEVENTS, context, 1, 1, uintptr(unsafe.Pointer(&event)), 0, 0)
	return errno(n, e)
}

func blockUring(*program, int, time.Duration) error {
	var parameters [120]byte
	fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&parameters)), 0)
	if e != 0 {
		return e
	}
	defer unix.Close(int(fd))
	const getEvents = 1
	n, _, e := unix.Syscall6(unix.SYS_IO_URING_ENTER, fd, 0, 1, getEvents, 0, 0)
	return errno(n, e)
}
