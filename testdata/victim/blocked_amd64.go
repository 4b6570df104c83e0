package victim

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blockPause returns only after a signal's handler. The thread blocks all signals.
func blockPause(*program, int, time.Duration) error { return sys(unix.SYS_PAUSE) }

func blockPoll(_ *program, quit int, timeout time.Duration) error {
	fds := unix.PollFd{Fd: int32(endless(quit, timeout)), Events: unix.POLLIN}
	return sys(unix.SYS_POLL, uintptr(unsafe.Pointer(&fds)), 1, milliseconds(timeout))
}

// blockOldSelect is select(2), whose timeout is a timeval.
func blockOldSelect(_ *program, _ int, timeout time.Duration) error {
	tv := unix.NsecToTimeval(int64(timeout))
	return sys(unix.SYS_SELECT, 0, 0, 0, 0, uintptr(unsafe.Pointer(&tv)))
}
