package inject

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A thread that enters a mount namespace leaves its root and its working
// directory for the root there (mntns_install() in fs/namespace.c). It opens
// both before, so that undo brings it back to exactly them, whatever has become
// of their names; and it goes at once to the directory that has, in the new
// namespace, the name of the one it was in, if there is one that it may enter.
//
// The descriptors stay open until Undo or Release. A tracer that dies between
// the two leaves them open: they are closed by the program's next execve(2).
// One that dies between the entering and the going, where the slot has room for one of
// the two only (the vdso of Linux 6.1 on arm64), leaves the thread in the root.

// enterMount adds to the step into a mount namespace what has to be done around it.
func (s *tracer) enterMount(tid int, enter step) []step {
	open := func(path string) step {
		return step{to: enter.to, call: &call{nr: unix.SYS_OPENAT, keep: true, text: path, textArg: 1,
			args: [3]uint64{atFDCWD, 0, unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC}}}
	}
	var steps []step
	if enter.to.SplitFS {
		steps = append(steps, step{to: enter.to, call: &call{nr: unix.SYS_UNSHARE, args: [3]uint64{unix.CLONE_FS}}})
	}
	steps = append(steps, open("/"), open("."), enter)
	if dir := s.workingDirectory(tid); dir != "" && dir != "/" {
		steps = append(steps, step{to: enter.to, call: &call{nr: unix.SYS_CHDIR, optional: true, text: dir}})
	}
	return steps
}

// atFDCWD is AT_FDCWD as the argument of a system call.
const atFDCWD = 1<<64 - 100

// workingDirectory returns the name of a thread's working directory, "" where
// it has none.
func (s *tracer) workingDirectory(tid int) string {
	buf := make([]byte, pageSize)
	n, err := unix.Readlink(proc(s.pid, "task/"+strconv.Itoa(tid)+"/cwd"), buf)
	if err != nil || n == len(buf) || !strings.HasPrefix(string(buf[:n]), "/") {
		return ""
	}
	return string(buf[:n])
}

// back are the steps that take a step back. Root and working directory are
// those that k keeps; the second is opened last.
func (st step) back(k kept) []step {
	switch {
	case st.undo != nil:
		return []step{{call: st.undo}}
	case st.call != nil:
		return nil
	}
	steps := []step{{from: st.to, to: st.from}}
	if st.to.Type != unix.CLONE_NEWNS {
		return steps
	}
	fchdir := func(fd int) step {
		return step{to: st.from, call: &call{nr: unix.SYS_FCHDIR, args: [3]uint64{uint64(fd)}}}
	}
	chroot := step{to: st.from, call: &call{nr: unix.SYS_CHROOT, text: "."}}
	return append(steps, fchdir(k[1]), chroot, fchdir(k[0]))
}

// close are the steps that close what is kept.
func (k kept) close() []step {
	var steps []step
	for _, fd := range k {
		if fd >= 0 {
			steps = append(steps, step{call: &call{nr: unix.SYS_CLOSE, args: [3]uint64{uint64(fd)}}})
		}
	}
	return steps
}
