package subsystems

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// writeMap writes a file of a process in a user namespace that only a process in that namespace or
// in the one above may write (proc_uid_map_write in kernel/user_namespace.c). Where the daemon is
// not in the one above, a scribe does it: a process of ours like a keeper, which enters that
// one, opens the file, writes, and exits.
func writeMap(o *nsObject, file string, text []byte) error {
	fd, err := unix.Open(o.pin, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", o.pin, err)
	}
	defer unix.Close(fd)
	up, err := unix.IoctlRetInt(fd, unix.NS_GET_PARENT)
	if err == unix.EPERM { // our own: none may write its map any more
		return os.WriteFile(file, text, 0)
	}
	if err != nil {
		return fmt.Errorf("parent of %s: %w", o, err)
	}
	above := os.NewFile(uintptr(up), "parent of "+o.String())
	defer above.Close()
	id, err := identify(up)
	if err != nil {
		return err
	}
	if (&nsObject{kind: o.kind, id: id}).ours() {
		return os.WriteFile(file, text, 0)
	}
	// The kernel takes less than a page at once; a scribe's file name is "/proc/PID/…".
	if len(file) >= scribePath || len(text) >= os.Getpagesize() {
		return fmt.Errorf("write %s: %w", file, unix.EINVAL)
	}
	return scribe(above, file, text)
}

const scribePath = 64

func scribe(above *os.File, file string, text []byte) error {
	var path [scribePath]byte
	copy(path[:], file)
	program, err := programOf("rcfs-scribe", scribeCode, uint64(len(text)), path, text)
	if err != nil {
		return fmt.Errorf("scribe: %w", err)
	}
	defer program.Close()
	p, err := os.StartProcess(fmt.Sprintf("/proc/self/fd/%d", program.Fd()), []string{program.Name()}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{},
		Files: []*os.File{nil, nil, above},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("scribe: %w", err)
	}
	state, err := p.Wait()
	switch {
	case err != nil:
		return fmt.Errorf("scribe: %w", err)
	case state.ExitCode() > 0:
		return &os.PathError{Op: "write", Path: file, Err: unix.Errno(state.ExitCode())}
	case !state.Success():
		return errors.New("scribe: " + state.String())
	}
	return nil
}
