package inject

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// readFile reads a small file of /proc. Package os would ask of each of them
// what kind of file it is, and whether it can be polled.
func readFile(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for b := make([]byte, 0, 4096); ; b = slices.Grow(b, 4096) {
		n, err := unix.Read(fd, b[len(b):cap(b)])
		if err != nil {
			return nil, err
		}
		b = b[:len(b)+n]
		if n == 0 || len(b) < cap(b) {
			return b, nil
		}
	}
}

// readInto reads what there is room for of a file of /proc; 0 when it cannot be read.
func readInto(path string, b []byte) (n int) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	n, _ = unix.Read(fd, b)
	return max(n, 0)
}

// proc is the path of a file of a process or thread.
func proc(tid int, file string) string { return "/proc/" + strconv.Itoa(tid) + "/" + file }

// countThreads returns how many threads process pid has, 0 if it is gone. A
// dead leader counts as long as others live.
func countThreads(pid int) int {
	var st unix.Stat_t
	if err := unix.Stat(proc(pid, "task"), &st); err != nil {
		return 0
	}
	return int(st.Nlink) - 2 // proc_task_getattr() in fs/proc/base.c
}

// listThreads returns the tids of the threads of process pid.
func listThreads(pid int) ([]int, error) {
	if countThreads(pid) == 1 {
		return []int{pid}, nil // the leader is the last to go
	}
	dir, err := os.Open(proc(pid, "task"))
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
	cpu   int // the processor that it ran on last
}

// worker says whether it is a worker the kernel has made for the process.
func (s taskStat) worker() bool {
	return s.flags&pfKthread == 0 && s.flags&(pfUserWorker|pfIOWorker) != 0
}

func (s taskStat) dead() bool { return s.state == 'Z' || s.state == 'X' || s.state == 'x' }

// readStat reads the state and flags of a thread.
func readStat(tid int) (taskStat, error) {
	text, err := readFile(proc(tid, "stat"))
	if err != nil {
		return taskStat{}, ErrGone
	}
	// The name may hold anything, so count from its closing parenthesis.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 37 {
		return taskStat{}, fmt.Errorf("/proc/%d/stat: %q is too short", tid, text)
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	if err != nil {
		return taskStat{}, fmt.Errorf("/proc/%d/stat: %w", tid, err)
	}
	cpu, err := strconv.Atoi(fields[36])
	if err != nil {
		return taskStat{}, fmt.Errorf("/proc/%d/stat: %w", tid, err)
	}
	return taskStat{state: fields[0][0], flags: flags, cpu: cpu}, nil
}

// readStatus returns the number in a line of /proc/TID/status, -1 if absent.
func readStatus(tid int, key string) int {
	text, err := readFile(proc(tid, "status"))
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
	return proc(pid, "task/"+strconv.Itoa(tid)+"/ns/"+name)
}

// identity is what the kernel identifies a namespace by.
type identity struct{ dev, ino uint64 }

func identityOf(st *unix.Stat_t) identity { return identity{uint64(st.Dev), st.Ino} }

// vdsoAddress returns where the vdso of a process lies (AT_SYSINFO_EHDR).
func vdsoAddress(tid int) (uint64, error) {
	const atSysinfoEhdr = 33
	auxv, err := readFile(proc(tid, "auxv"))
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
