package inject

import (
	"bytes"
	"debug/elf"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// code is the target's memory, and where in it there is an instruction we need.
type code struct {
	mem  int    // /proc/TID/mem
	insn uint64 // address of a syscall instruction in the vdso
	slot uint64 // address of the room for the blob
	room int    // its size in bytes

	owner     int           // the thread that may be in the slot, or come back to it; or 0
	left      int           // the owner that has been seen not to come back
	ownerMask uint64        // its signal mask outside
	ownerTime time.Duration // its processor time when it was asked for first
}

// vdsoMax bounds what is read of a vdso; it has two to four pages.
const vdsoMax = 4 * 4096

// openCode finds the code in the process of thread tid.
func openCode(tid int) (*code, error) {
	vdso, err := vdsoAddress(tid)
	if err != nil {
		return nil, err
	}
	mem, err := unix.Open(proc(tid, "mem"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == unix.ESRCH || err == unix.ENOENT {
		err = ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("open memory of thread %d: %w", tid, err)
	}
	c := &code{mem: mem}
	text := make([]byte, vdsoMax)
	n, err := unix.Pread(mem, text, int64(vdso))
	if err != nil || !bytes.HasPrefix(text[:max(n, 0)], []byte(elf.ELFMAG)) {
		c.close()
		return nil, fmt.Errorf("%w: its vdso is not at %#x (%v)", ErrUnsupported, vdso, err)
	}
	at := bytes.Index(text[:n], syscallInsn)
	if at < 0 {
		c.close()
		return nil, fmt.Errorf("%w: no syscall instruction in its vdso", ErrUnsupported)
	}
	c.insn = vdso + uint64(at)
	c.slot, c.room = findSlot(vdso, text[:n])
	c.readOwner(vdso, text[:n])
	return c, nil
}

func (c *code) close() {
	if c != nil && c.mem >= 0 {
		unix.Close(c.mem)
		c.mem = -1
	}
}

func (c *code) read(at uint64, p []byte) error {
	n, err := unix.Pread(c.mem, p, int64(at))
	return c.short(n, len(p), at, err)
}

func (c *code) write(at uint64, p []byte) error {
	n, err := unix.Pwrite(c.mem, p, int64(at))
	return c.short(n, len(p), at, err)
}

func (c *code) short(n, want int, at uint64, err error) error {
	switch {
	case err != nil:
		return fmt.Errorf("target memory at %#x: %w", at, err)
	case n != want:
		return fmt.Errorf("target memory at %#x: %w", at, ErrGone)
	}
	return nil
}
