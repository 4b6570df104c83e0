package victim

import (
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
	id, _, e := unix.Syscall(unix.SYS_SEMGET, unix.IPC_PRIVATE, 1, 0o600)
	if e != 0 {
		return e
	}
	remove := func() { _, _, _ = unix.Syscall(unix.SYS_SEMCTL, id, 0, unix.IPC_RMID) }
	if p.atEnd(remove); timeout != 0 {
		defer remove()
	}
	op := struct {
		number     uint16
		add, flags int16
	}{0, -1, 0}
	n, _, e := unix.Syscall6(unix.SYS_SEMTIMEDOP, id, uintptr(unsafe.Pointer(&op)), 1, uintptr(timespec(timeout)), 0, 0)
	if e == unix.EAGAIN && timeout != 0 {
		return nil
	}
	return errno(n, e)
}

func blockMsgrcv(p *program, _ int, _ time.Duration) error {
	id, _, e := unix.Syscall(unix.SYS_MSGGET, unix.IPC_PRIVATE, 0o600, 0)
	if e != 0 {
		return e
	}
	p.atEnd(func() { _, _, _ = unix.Syscall(unix.SYS_MSGCTL, id, unix.IPC_RMID, 0) })
	var message [2]uint64
	n, _, e := unix.Syscall6(unix.SYS_MSGRCV, id, uintptr(unsafe.Pointer(&message)), 8, 0, 0, 0)
	return errno(n, e)
}
