package victim

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// newPair makes two connected sockets. Calls on the first one take no longer than the timeout, if any.
func newPair(kind int, timeout time.Duration) (pair [2]int, err error) {
	pair, err = unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = limitSocket(pair[0], timeout)
	}
	return pair, err
}

// limitSocket sets a timeout, if any.
func limitSocket(fd int, timeout time.Duration) error {
	tv := unix.NsecToTimeval(int64(timeout))
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &tv); err != nil {
			return err
		}
	}
	return nil
}

// withPair runs a call on the first of two sockets.
func withPair(kind int, timeout time.Duration, call func(fd int) error) error {
	pair, err := newPair(kind, timeout)
	if err != nil {
		return err
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	return call(pair[0])
}

func blockRecv(_ *program, _ int, timeout time.Duration) error {
	return withPair(unix.SOCK_DGRAM, timeout, func(fd int) error {
		var b byte
		return sys(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b)), 1)
	})
}

// message is a struct mmsghdr for one byte.
type message struct {
	header unix.Msghdr
	length uint32
}

func newMessage() *message {
	m := &message{}
	m.header.Iov = &unix.Iovec{Base: new(byte), Len: 1}
	m.header.Iovlen = 1
	return m
}

func blockRecvmsg(_ *program, _ int, timeout time.Duration) error {
	return withPair(unix.SOCK_STREAM, timeout, func(fd int) error {
		return sys(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(newMessage())))
	})
}

func blockRecvmmsg(_ *program, _ int, timeout time.Duration) error {
	return withPair(unix.SOCK_DGRAM, timeout, func(fd int) error {
		return sys(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(newMessage())), 1)
	})
}

func blockReadSocket(_ *program, _ int, timeout time.Duration) error {
	return withPair(unix.SOCK_STREAM, timeout, readFrom)
}

func blockSpliceSocket(_ *program, _ int, timeout time.Duration) error {
	to, err := newPipe(false)
	if err != nil {
		return err
	}
	defer unix.Close(to[0])
	defer unix.Close(to[1])
	return withPair(unix.SOCK_STREAM, timeout, func(fd int) error {
		return sys(unix.SYS_SPLICE, uintptr(fd), 0, uintptr(to[1]), 0, 1)
	})
}

// fill sends until there is no more room.
func fill(fd int) error {
	for {
		err := unix.Sendto(fd, make([]byte, 4096), unix.MSG_DONTWAIT, nil)
		if err == unix.EAGAIN {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func blockSend(_ *program, _ int, timeout time.Duration) error {
	return withPair(unix.SOCK_STREAM, timeout, func(fd int) error {
		if err := fill(fd); err != nil {
			return err
		}
		var b [4096]byte
		return sys(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b)), uintptr(len(b)))
	})
}

func blockWriteSocket(_ *program, _ int, timeout time.Duration) error {
	return withPair(unix.SOCK_STREAM, timeout, func(fd int) error {
		if err := fill(fd); err != nil {
			return err
		}
		var b [4096]byte
		return sys(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b)), uintptr(len(b)))
	})
}

// blockSendPart sends more than a socket holds.
func blockSendPart(*program, int, time.Duration) error {
	pair, err := newPair(unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	b := make([]byte, 4<<20)
	n, err := sysValue(unix.SYS_SENDTO, uintptr(pair[0]), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return halfDone(pair[1], n, err)
}

// blockRecvPart receives more than there is.
func blockRecvPart(*program, int, time.Duration) error {
	pair, err := newPair(unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if _, err := unix.Write(pair[1], []byte("half")); err != nil {
		return err
	}
	var b [8]byte
	err = sys(unix.SYS_RECVFROM, uintptr(pair[0]), uintptr(unsafe.Pointer(&b)), uintptr(len(b)), unix.MSG_WAITALL)
	if err == nil && string(b[:4]) == "half" {
		err = errShort
	}
	return err
}

// listener listens at an address that the kernel chooses.
func listener(family int, at unix.Sockaddr, backlog int) (fd int, address unix.Sockaddr, err error) {
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, nil, err
	}
	if err = unix.Bind(fd, at); err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err == nil {
		address, err = unix.Getsockname(fd)
	}
	if err != nil {
		unix.Close(fd)
	}
	return fd, address, err
}

func blockAccept(_ *program, _ int, timeout time.Duration) error {
	fd, _, err := listener(unix.AF_UNIX, &unix.SockaddrUnix{}, 1)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := limitSocket(fd, timeout); err != nil {
		return err
	}
	return sys(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_CLOEXEC)
}

func blockConnect(_ *program, _ int, timeout time.Duration) error {
	return overrun(unix.AF_UNIX, &unix.SockaddrUnix{}, timeout)
}

func blockConnectTCP(_ *program, _ int, timeout time.Duration) error {
	return overrun(unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}, timeout)
}

// overrun connects to a socket that accepts nobody, until one more waits than that holds.
func overrun(family int, at unix.Sockaddr, timeout time.Duration) error {
	server, to, err := listener(family, at, 0)
	if err != nil {
		return err
	}
	defer unix.Close(server)
	var clients []int
	defer func() {
		for _, fd := range clients {
			unix.Close(fd)
		}
	}()
	for len(clients) < 10 { // a queue of 0 holds one
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		clients = append(clients, fd)
		if err := limitSocket(fd, timeout); err != nil {
			return err
		}
		if err := unix.Connect(fd, to); err != nil {
			return err
		}
	}
	return nil
}
