package inject

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// vector is what a system call destroys of a thread's vector registers: of those
// of the Scalable Vector Extension all but their first 128 bits, and the
// predicates (Documentation/arm64/sve.rst). A thread that the stop did not find in a
// system call still needs them, one in memcpy(3) for example.
type vector struct {
	note  uintptr
	state []byte // nil when there is none
}

// The register sets that hold them: outside and in streaming mode, of which one
// is in use.
const (
	ntARMSVE  = 0x405
	ntARMSSVE = 0x40b
)

// In struct user_sve_header, whose size is 16: the size of the whole, and
// flags, of which the first says that more than the first 128 bits are in use.
const (
	vectorHeader = 16
	vectorFlags  = 12
	vectorLong   = 1
)

func (v *vector) save(tid int) error {
	v.state = nil
	for _, note := range []uintptr{ntARMSVE, ntARMSSVE} {
		header := make([]byte, vectorHeader)
		if _, err := regset(unix.PTRACE_GETREGSET, tid, note, header); err == unix.EINVAL || err == unix.ENODEV {
			continue // this machine has none
		} else if err != nil {
			return err
		}
		if binary.NativeEndian.Uint16(header[vectorFlags:])&vectorLong == 0 {
			continue
		}
		state := make([]byte, binary.NativeEndian.Uint32(header))
		n, err := regset(unix.PTRACE_GETREGSET, tid, note, state)
		if err != nil {
			return err
		}
		v.note, v.state = note, state[:n]
	}
	return nil
}

func (v *vector) restore(tid int) error {
	if v.state == nil {
		return nil
	}
	_, err := regset(unix.PTRACE_SETREGSET, tid, v.note, v.state)
	return err
}

// regset reads or writes a register set, and returns its size.
func regset(request, tid int, note uintptr, b []byte) (n int, err error) {
	iov := unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))}
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid),
		note, uintptr(unsafe.Pointer(&iov)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(iov.Len), nil
}
