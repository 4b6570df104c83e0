package victim

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// execveat executes the program that descriptor fd holds, under a filter if there is one.
func execveat(fd int, empty *byte, filter []unix.SockFilter) error {
	name, _ := unix.BytePtrFromString("single")
	argv := []*byte{name, nil}
	envp := []*byte{nil}
	if filter != nil {
		if err := setFilter(filter, 0); err != nil {
			return err
		}
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(empty)),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envp[0])), unix.AT_EMPTY_PATH, 0)
	return errno
}
