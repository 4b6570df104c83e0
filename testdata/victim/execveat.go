package victim

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// execveat executes the program that descriptor fd holds.
func execveat(fd int, empty *byte) error {
	name, _ := unix.BytePtrFromString("single")
	argv := []*byte{name, nil}
	envp := []*byte{nil}
	_, _, errno := unix.Syscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(empty)),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envp[0])), unix.AT_EMPTY_PATH, 0)
	return errno
}
