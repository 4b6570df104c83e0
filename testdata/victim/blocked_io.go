package victim

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readFrom reads from a descriptor.
func readFrom(fd int) error {
	var b [512]byte
	return sys(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b)), uintptr(len(b)))
}

func blockRead(_ *program, quit int, _ time.Duration) error { return readFrom(quit) }

func blockReadv(_ *program, quit int, _ time.Duration) error {
	var b byte
	vector := unix.Iovec{Base: &b, Len: 1}
	return sys(unix.SYS_READV, uintptr(quit), uintptr(unsafe.Pointer(&vector)), 1)
}

// newPipe makes a pipe of one page, full or empty.
func newPipe(full bool) (pipe [2]int, err error) {
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return pipe, err
	}
	size, err := unix.FcntlInt(uintptr(pipe[1]), unix.F_SETPIPE_SZ, 4096)
	if err == nil && full {
		_, err = unix.Write(pipe[1], make([]byte, size))
	}
	return pipe, err
}

func blockWrite(*program, int, time.Duration) error {
	pipe, err := newPipe(true)
	if err != nil {
		return err
	}
	_, err = unix.Write(pipe[1], []byte{1})
	return err
}

// blockWritePart writes more than a pipe holds, so that a part of it is written when it is disturbed.
func blockWritePart(*program, int, time.Duration) error {
	pipe, err := newPipe(false)
	if err != nil {
		return err
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	n, err := unix.Write(pipe[1], make([]byte, 1<<20))
	return halfDone(pipe[0], n, err)
}

// halfDone checks that there are as many bytes to be read from a pipe or socket as a call says it has written.
func halfDone(fd, n int, err error) error {
	if err != nil {
		return err
	}
	there, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err == nil && there != n {
		return fmt.Errorf("it says %d bytes, %d are there", n, there)
	}
	if err == nil {
		err = errShort
	}
	return err
}

func blockEventfd(*program, int, time.Duration) error {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	return readFrom(fd)
}

func blockTimerfd(_ *program, _ int, timeout time.Duration) error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Value: *timespec(timeout)}, nil); err != nil {
		return err
	}
	return readFrom(fd)
}

func blockSignalfd(*program, int, time.Duration) error {
	var set unix.Sigset_t
	set.Val[0] = 1 << (uint(unix.SIGUSR2) - 1)
	fd, err := unix.Signalfd(-1, &set, unix.SFD_CLOEXEC)
	if err != nil {
		return err
	}
	return readFrom(fd)
}

func blockInotify(*program, int, time.Duration) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	return readFrom(fd)
}

// blockTTY reads from the terminal of a pair that nobody types into.
func blockTTY(*program, int, time.Duration) error {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return err
	}
	const openPeer = 0x5441 // TIOCGPTPEER
	terminal, err := sysValue(unix.SYS_IOCTL, uintptr(master), openPeer, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	return readFrom(terminal)
}

// again is a path at which a file is opened once more.
func again(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// blockOpenFifo opens a fifo that nobody writes, and that has no name any more.
func blockOpenFifo(p *program, _ int, _ time.Duration) error {
	path := fmt.Sprintf("/tmp/victim-fifo-%d", unix.Getpid())
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if e := unix.Unlink(path); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	_, err = unix.Open(again(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return err
}

// newFile makes a file without a name and opens it twice.
func newFile() (fd, other int, err error) {
	if fd, err = unix.MemfdCreate("victim", unix.MFD_CLOEXEC); err != nil {
		return -1, -1, err
	}
	other, err = unix.Open(again(fd), unix.O_RDWR|unix.O_CLOEXEC, 0)
	return fd, other, err
}

func blockFlock(*program, int, time.Duration) error {
	fd, other, err := newFile()
	if err == nil {
		err = unix.Flock(other, unix.LOCK_EX)
	}
	if err != nil {
		return err
	}
	return sys(unix.SYS_FLOCK, uintptr(fd), unix.LOCK_EX)
}

func blockSetlkw(*program, int, time.Duration) error { return waitForLock(unix.F_SETLKW) }

func blockOFDLock(*program, int, time.Duration) error { return waitForLock(unix.F_OFD_SETLKW) }

// waitForLock waits for a lock that another open file has.
func waitForLock(command uintptr) error {
	fd, other, err := newFile()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err == nil {
		err = unix.FcntlFlock(uintptr(other), unix.F_OFD_SETLK, &lock)
	}
	if err != nil {
		return err
	}
	return sys(unix.SYS_FCNTL, uintptr(fd), command, uintptr(unsafe.Pointer(&lock)))
}

func blockSplice(*program, int, time.Duration) error {
	from, err := newPipe(false)
	if err != nil {
		return err
	}
	to, err := newPipe(false)
	if err != nil {
		return err
	}
	return sys(unix.SYS_SPLICE, uintptr(from[0]), 0, uintptr(to[1]), 0, 1)
}

func blockTee(*program, int, time.Duration) error {
	from, err := newPipe(false)
	if err != nil {
		return err
	}
	to, err := newPipe(false)
	if err != nil {
		return err
	}
	return sys(unix.SYS_TEE, uintptr(from[0]), uintptr(to[1]), 1)
}

// blockSendfile sends a file into a pipe that is full.
func blockSendfile(*program, int, time.Duration) error {
	pipe, err := newPipe(true)
	if err != nil {
		return err
	}
	_, err = sendFile(pipe[1], 1)
	return err
}

// blockSendfilePart sends more of a file than a socket holds.
func blockSendfilePart(*program, int, time.Duration) error {
	pair, err := newPair(unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	n, err := sendFile(pair[0], 4<<20)
	return halfDone(pair[1], n, err)
}

// sendFile sends a file of some size.
func sendFile(to, size int) (n int, err error) {
	fd, err := unix.MemfdCreate("victim", unix.MFD_CLOEXEC)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return 0, err
	}
	return sysValue(unix.SYS_SENDFILE, uintptr(to), uintptr(fd), 0, uintptr(size))
}

func blockGetevents(_ *program, _ int, timeout time.Duration) error {
	return getEvents(unix.SYS_IO_GETEVENTS, timeout)
}

func blockPgetevents(_ *program, _ int, timeout time.Duration) error {
	return getEvents(unix.SYS_IO_PGETEVENTS, timeout)
}

func getEvents(nr uintptr, timeout time.Duration) error {
	var context uintptr
	if err := sys(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&context))); err != nil {
		return err
	}
	defer func() { _ = sys(unix.SYS_IO_DESTROY, context) }()
	var event [4]uint64
	return sys(nr, context, 1, 1, uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(timespec(timeout))))
}

func blockUring(_ *program, _ int, timeout time.Duration) error {
	return enterUring(timespec(timeout), 0)
}

func blockUringAbsolute(_ *program, _ int, timeout time.Duration) error {
	const absolute = 1 << 5 // IORING_ENTER_ABS_TIMER, Linux 6.12
	err := enterUring(clockIn(unix.CLOCK_MONOTONIC, timeout), absolute)
	if err == unix.EINVAL {
		time.Sleep(timeout)
		return unix.ETIME
	}
	return err
}

func enterUring(timeout *unix.Timespec, flags uintptr) error {
	var parameters [120]byte
	fd, err := sysValue(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&parameters)))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const getEvents, extended = 1, 1 << 3
	if timeout == nil {
		return sys(unix.SYS_IO_URING_ENTER, uintptr(fd), 0, 1, getEvents)
	}
	argument := struct {
		mask        uint64
		size, least uint32
		timeout     *unix.Timespec
	}{size: 8, timeout: timeout}
	return sys(unix.SYS_IO_URING_ENTER, uintptr(fd), 0, 1, getEvents|extended|flags,
		uintptr(unsafe.Pointer(&argument)), unsafe.Sizeof(argument))
}
