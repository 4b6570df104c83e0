package fs

import (
	"errors"
	"io/fs"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

type statusCode = fuse.Status

// errnos is the one table from what went wrong to what the caller of a system call sees. The
// first entry that fits counts; an error that fits none has the kernel's own errno in it.
var errnos = []struct {
	err   error
	errno syscall.Errno
}{
	{proxy.ErrNoTask, unix.ESRCH},
	{proxy.ErrKernelThread, unix.EINVAL},
	{proxy.ErrThread, unix.EINVAL},
	{proxy.ErrNotANumber, unix.EINVAL},
	{proxy.ErrNotYours, unix.EACCES},
	{proxy.ErrNotOwned, unix.EACCES},
	{proxy.ErrNotCapable, unix.EPERM},
	{proxy.ErrUnsupported, unix.EPERM},
	{proxy.ErrTraced, unix.EBUSY},
	{proxy.ErrBusy, unix.EBUSY},
	{proxy.ErrNotStopped, unix.EAGAIN},
	{proxy.ErrEnding, unix.EAGAIN},
	{proxy.ErrRemoved, unix.ENODEV},
	{proxy.ErrNotEmpty, unix.EBUSY},
	{proxy.ErrLimit, unix.ENOSPC},
	{proxy.ErrExists, unix.EEXIST},
	{proxy.ErrName, unix.EINVAL},
	{proxy.ErrNameTooLong, unix.ENAMETOOLONG},
	{proxy.ErrBound, unix.EBUSY},
	{proxy.ErrUnknown, unix.EINVAL},
	{proxy.ErrValue, unix.EINVAL},
	{proxy.ErrParent, unix.EIO},
	{proxy.ErrCannotRename, unix.EPERM},
}

// errnoOf returns the errno of an error: EIO where there is none in it.
func errnoOf(err error) syscall.Errno {
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return e.errno
		}
	}
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return errno
	case errors.Is(err, fs.ErrNotExist):
		return unix.ENOENT
	}
	return unix.EIO
}

// errnoFor is errnoOf for the answer to w. A file that is not to block makes EAGAIN another thing: Go's
// os package waits for poll(2) then, in which nothing ever happens. ETIMEDOUT says it as well.
func errnoFor(w proxy.Writer, err error) syscall.Errno {
	errno := errnoOf(err)
	if errno == unix.EAGAIN && w.NonBlock {
		return unix.ETIMEDOUT
	}
	return errno
}

func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	return fuse.Status(errnoOf(err))
}

func errnoName(err error) string { return unix.ErrnoName(errnoOf(err)) }
