package inject

import "golang.org/x/sys/unix"

// Namespace is a namespace to enter.
type Namespace struct {
	Type int // one CLONE_NEW* flag
	FD   int // an open nsfs descriptor of ours; stays the caller's to close

	// SplitFS, of a mount namespace, makes each thread stop sharing root,
	// working directory and umask with others first (CLONE_FS of unshare(2)),
	// for good: threads that share them are refused there.
	SplitFS bool
}

// nsTypes maps each namespace type to its name in /proc/PID/ns.
var nsTypes = map[int]string{
	unix.CLONE_NEWCGROUP: "cgroup",
	unix.CLONE_NEWIPC:    "ipc",
	unix.CLONE_NEWNET:    "net",
	unix.CLONE_NEWNS:     "mnt",
	unix.CLONE_NEWPID:    "pid",
	unix.CLONE_NEWTIME:   "time",
	unix.CLONE_NEWUSER:   "user",
	unix.CLONE_NEWUTS:    "uts",
}

// typeName returns the name of a namespace type for messages.
func typeName(typ int) string {
	if name, ok := nsTypes[typ]; ok {
		return name
	}
	return "no"
}
