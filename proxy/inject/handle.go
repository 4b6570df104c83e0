package inject

import (
	"encoding/binary"
	"sync"

	"golang.org/x/sys/unix"
)

// nsHandle is a struct file_handle of an nsfs file: size, type, and 16 bytes.
type nsHandle [24]byte

// handleOf asks for the handle of an nsfs descriptor (Linux 6.18).
func handleOf(fd int) (h nsHandle, err error) {
	handle, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return h, err
	}
	if handle.Size() > len(h)-8 {
		return h, unix.EOVERFLOW
	}
	binary.NativeEndian.PutUint32(h[:], uint32(handle.Size()))
	binary.NativeEndian.PutUint32(h[4:], uint32(handle.Type()))
	copy(h[8:], handle.Bytes())
	return h, nil
}

// haveHandles says whether this kernel opens namespaces by handle. It is tried.
var haveHandles = sync.OnceValue(func() bool {
	const nsfsRoot = -10003 // FD_NSFS_ROOT
	if len(blobCode) == 0 {
		return false
	}
	own, err := unix.Open("/proc/thread-self/ns/uts", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(own)
	handle, _, err := unix.NameToHandleAt(own, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return false
	}
	fd, err := unix.OpenByHandleAt(nsfsRoot, handle, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
})
