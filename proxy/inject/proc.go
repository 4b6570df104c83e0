package inject

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// listThreads returns the tids of the threads of process pid.
func listThreads(pid int) ([]int, error) {
	dir, err := os.Open(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, ErrGone
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, ErrGone
	}
	tids := make([]int, 0, len(names))
	for _, name := range names {
		if tid, err := strconv.Atoi(name); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids, nil
}

// Kernel flags of a task, from include/linux/sched.h: the ones that
// ptrace_attach() refuses.
const (
	pfKthread    = 0x00200000
	pfUserWorker = 0x00004000 // an io_uring or vhost worker
	pfIOWorker   = 0x00000010
)

// taskStat is what is needed of /proc/TID/stat.
type taskStat struct {
	state byte
	flags uint64
}

// worker says whether it is a worker the kernel has made for the process.
func (s taskStat) worker() bool {
	return s.flags&pfKthread == 0 && s.flags&(pfUserWorker|pfIOWorker) != 0
}

func (s taskStat) dead() bool { return s.state == 'Z' || s.state == 'X' || s.state == 'x' }

// readStat reads the state and flags of a thread.
func readStat(tid int) (taskStat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", tid))
	if err != nil {
		return taskStat{}, ErrGone
	}
	// The name may hold anything, so count from its closing parenthesis.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 7 {
		return taskStat{}, fmt.Errorf("/proc/%d/stat: %q is too short", tid, text)
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	if err != nil {
		return taskStat{}, fmt.Errorf("/proc/%d/stat: %w", tid, err)
	}
	return taskStat{state: fields[0][0], flags: flags}, nil
}

// readStatus returns the number in a line of /proc/TID/status, -1 if absent.
func readStatus(tid int, key string) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(statusField(string(text), key))
	if err != nil {
		return -1
	}
	return n
}

// statusField returns the value in a line of the text of /proc/TID/status.
func statusField(text, key string) string {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// nsPath is the link in /proc that stands for what setns(2) replaces.
func nsPath(pid, tid, typ int) string {
	name := typeName(typ)
	if typ == unix.CLONE_NEWPID || typ == unix.CLONE_NEWTIME {
		name += "_for_children"
	}
	return filepath.Join("/proc", strconv.Itoa(pid), "task", strconv.Itoa(tid), "ns", name)
}

// identity is what the kernel identifies a namespace by.
type identity struct{ dev, ino uint64 }

func identityOf(st *unix.Stat_t) identity { return identity{uint64(st.Dev), st.Ino} }

// vdsoAddress returns where the vdso of a process lies (AT_SYSINFO_EHDR).
func vdsoAddress(tid int) (uint64, error) {
	const atSysinfoEhdr = 33
	auxv, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", tid))
	if err != nil {
		return 0, ErrGone
	}
	for ; len(auxv) >= 16; auxv = auxv[16:] {
		if binary.NativeEndian.Uint64(auxv) == atSysinfoEhdr {
			return binary.NativeEndian.Uint64(auxv[8:]), nil
		}
	}
	return 0, fmt.Errorf("%w: it has no vdso", ErrUnsupported)
}
