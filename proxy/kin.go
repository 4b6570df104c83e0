package proxy

import (
	"slices"

	"golang.org/x/sys/unix"
)

// kin returns which of the processes that were born around a move may have inherited from its target: its children,
// those of its children and, of parents that have ended, what its ancestors took in; and what it made its parent's
// child. Most of what is born on a busy machine is somebody else's, and a look at each would take longer than the move. A
// kernel that does not tell a process's parent for little, as it does since 6.13, has all looked at.
func (a *Attach) kin(born []int) []int {
	if len(born) == 0 {
		return nil
	}
	line := ancestors(a.task.TGID)
	if line == nil {
		return born
	}
	parents := make(map[int]int)
	for _, pid := range born {
		parent, err := parentOf(pid)
		switch err {
		case unix.ESRCH, unix.EINVAL, unix.ENOENT: // nobody, or a thread
		default: // 0 where it is not known
			parents[pid] = parent
		}
	}
	var kin []int
	for _, pid := range born {
		parent, there := parents[pid]
		if _, young := parents[parent]; there && (parent == 0 || young || slices.Contains(line, parent)) {
			kin = append(kin, pid)
		}
	}
	return kin
}

// ancestors returns a process and those that it descends from, nil if the kernel does not tell, or it has ended: its children
// are whose it was then.
func ancestors(pid int) []int {
	var line []int
	for pid != 0 && !slices.Contains(line, pid) { // a number can be used again meanwhile
		line = append(line, pid)
		parent, err := parentOf(pid)
		if err != nil {
			return nil
		}
		pid = parent
	}
	return line
}

// parentOf returns the parent of a process, 0 where it has none in our pid namespace. ESRCH: there is none of that
// number; EINVAL, ENOENT: a thread has it (pidfd_open(2)); ENOTTY: the kernel does not tell (PIDFD_GET_INFO, ioctl_pidfd(2)).
func parentOf(pid int) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var info unix.PidfdInfo
	switch err := unix.IoctlPidfdInfo(fd, &info); err {
	case nil:
		return int(info.Ppid), nil
	case unix.EINVAL: // from 6.11 on, when pidfds got their first ioctls
		return 0, unix.ENOTTY
	default:
		return 0, err
	}
}
