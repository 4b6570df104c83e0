package inject

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// code is the target's memory, and where in it there is an instruction we need.
type code struct {
	mem  int    // /proc/TID/mem
	insn uint64 // address of a syscall instruction in the vdso
	slot uint64 // address of the room for the blob
	room int    // its size in bytes

	installed bool    // whether the slot has the blob's code
	owners    [2]int  // the threads that may be in the slot, by state, or come back to it; or 0
	noted     [2]bool // which states name an owner in the slot
	current   bool    // nobody can have written to the slot since it was read
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
	if c.room == 0 {
		return c, nil
	}
	c.readOwners(text[c.slot-vdso : n])
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

// findSlot finds room for the blob behind the end of the vdso's ELF image, in
// the unused rest of its last page: nobody looks at it, and writing to it gives
// the process a copy of its own. Room is 0 when there is none.
func findSlot(vdso uint64, image []byte) (slot uint64, room int) {
	if len(image) < 64 || !bytes.HasPrefix(image, []byte("\x7fELF\x02")) {
		return 0, 0
	}
	// The section headers are the end of the image.
	sections := binary.NativeEndian.Uint64(image[0x28:])
	size := uint64(binary.NativeEndian.Uint16(image[0x3a:])) * uint64(binary.NativeEndian.Uint16(image[0x3c:]))
	end := (sections + size + 15) &^ 15
	if sections == 0 || end >= uint64(len(image)) {
		return 0, 0
	}
	return vdso + end, int(pageSize - end%pageSize)
}
