package victim

import (
	"bytes"
	"encoding/binary"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// single replaces the victim by a program of one thread that has neither libc
// nor Go runtime: it says ready, reads standard input byte by byte, says done
// at its end, and calls any other result of read(2) a fault.
func single(p *program) { p.become(singleCode()) }

// become executes a program of machine code.
func (p *program) become(code []byte) {
	runtime.LockOSThread()
	fd, err := unix.MemfdCreate("single", 0) // inherited: the exec is by number
	if err == unix.EMFILE {
		// +fullfds: the last of the table's copies gives way. The first are Go's own.
		unix.Close(tableSize - 1)
		fd, err = unix.MemfdCreate("single", 0)
	}
	p.must("memfd", err)
	_, err = unix.Write(fd, singleELF(code))
	p.must("write", err)
	for n := 3; p.has("+fullfds") || p.has("+softfds"); n++ { // the table stays full across exec
		if _, err := unix.FcntlInt(uintptr(n), unix.F_SETFD, 0); err != nil {
			break
		}
	}
	empty, _ := unix.BytePtrFromString("")
	var filter []unix.SockFilter
	if p.has("+strict") {
		filter = onlyPermitted(unix.SYS_EXECVEAT, unix.SYS_RT_SIGRETURN, unix.SYS_READ, unix.SYS_WRITE, unix.SYS_EXIT_GROUP)
	}
	p.must("execveat", execveat(fd, empty, filter))
	os.Exit(2)
}

// singleELF builds the program: one segment, loaded as it is.
func singleELF(code []byte) []byte {
	const base, header = 0x400000, 64 + 56
	var b bytes.Buffer
	b.Write([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	put := func(values ...any) {
		for _, v := range values {
			_ = binary.Write(&b, binary.LittleEndian, v)
		}
	}
	put(uint16(2), uint16(machineELF), uint32(1), uint64(base+header), uint64(64), uint64(0),
		uint32(0), uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0))
	size := uint64(header + len(code))
	put(uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(4096))
	b.Write(code)
	return b.Bytes()
}

// The texts the program prints, in the order in which they follow its code.
var singleTexts = []string{"ready\n", "done\n", "read(2) returned neither 0 nor 1\n"}
