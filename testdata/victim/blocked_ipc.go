package victim

import (
	"strconv"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// removeIPC ends the calls that wait for a semaphore or a message.
func (p *program) removeIPC() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, remove := range p.remove {
		remove()
	}
}

// atEnd notes what removes an object that outlives the process.
func (p *program) atEnd(remove func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove = append(p.remove, remove)
}

// blockSemop waits for a semaphore of its own. Restarted in another ipc namespace it would not find it.
func blockSemop(p *program, _ int, timeout time.Duration) error {
	id, err := sysValue(unix.SYS_SEMGET, unix.IPC_PRIVATE, 1, 0o600)
	if err != nil {
		return err
	}
	remove := func() { _ = sys(unix.SYS_SEMCTL, uintptr(id), 0, unix.IPC_RMID) }
	if timeout != 0 {
		defer remove()
	} else {
		p.atEnd(remove)
	}
	op := struct {
		number     uint16
		add, flags int16
	}{0, -1, 0}
	return sys(unix.SYS_SEMTIMEDOP, uintptr(id), uintptr(unsafe.Pointer(&op)), 1, uintptr(unsafe.Pointer(timespec(timeout))))
}

// newQueue makes a queue of System V messages, which is removed at the end.
func newQueue(p *program) (id uintptr, err error) {
	n, err := sysValue(unix.SYS_MSGGET, unix.IPC_PRIVATE, 0o600)
	id = uintptr(n)
	if err == nil {
		p.atEnd(func() { _ = sys(unix.SYS_MSGCTL, id, unix.IPC_RMID) })
	}
	return id, err
}

func blockMsgrcv(p *program, _ int, _ time.Duration) error {
	id, err := newQueue(p)
	if err != nil {
		return err
	}
	var message [2]uint64
	return sys(unix.SYS_MSGRCV, id, uintptr(unsafe.Pointer(&message)), 8)
}

// blockMsgsnd sends to a queue that is full.
func blockMsgsnd(p *program, _ int, _ time.Duration) error {
	id, err := newQueue(p)
	if err != nil {
		return err
	}
	message := [512]uint64{1}
	const noWait, size = 0o4000, 4000
	for err == nil {
		err = sys(unix.SYS_MSGSND, id, uintptr(unsafe.Pointer(&message)), size, noWait)
	}
	if err != unix.EAGAIN {
		return err
	}
	return sys(unix.SYS_MSGSND, id, uintptr(unsafe.Pointer(&message)), size)
}

var mqCount atomic.Int64

// newMq opens a queue of POSIX messages without a name, for one message.
func newMq() (fd int, err error) {
	name, err := unix.BytePtrFromString("victim-" + strconv.Itoa(unix.Getpid()) + "-" + strconv.FormatInt(mqCount.Add(1), 10))
	if err != nil {
		return -1, err
	}
	attributes := struct{ flags, most, size, _ int64 }{most: 1, size: 8}
	fd, err = sysValue(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(name)), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC,
		0o600, uintptr(unsafe.Pointer(&attributes)))
	if err != nil {
		return -1, err
	}
	return fd, sys(unix.SYS_MQ_UNLINK, uintptr(unsafe.Pointer(name)))
}

func blockMqReceive(_ *program, _ int, timeout time.Duration) error {
	fd, err := newMq()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var message [8]byte
	return sys(unix.SYS_MQ_TIMEDRECEIVE, uintptr(fd), uintptr(unsafe.Pointer(&message)), 8, 0,
		uintptr(unsafe.Pointer(clockIn(unix.CLOCK_REALTIME, timeout))))
}

func blockMqSend(_ *program, _ int, timeout time.Duration) error {
	fd, err := newMq()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var message [8]byte
	send := func(deadline *unix.Timespec) error {
		return sys(unix.SYS_MQ_TIMEDSEND, uintptr(fd), uintptr(unsafe.Pointer(&message)), 8, 0, uintptr(unsafe.Pointer(deadline)))
	}
	if err := send(nil); err != nil {
		return err
	}
	return send(clockIn(unix.CLOCK_REALTIME, timeout))
}
