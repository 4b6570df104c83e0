package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Task is one thread, named once. The open directory in /proc holds the kernel's struct pid, as
// a pidfd does, and keeps meaning this very task whatever happens to its number.
type Task struct {
	TID  int // in the daemon's pid namespace
	TGID int

	// Entering are the namespaces that the task enters in the move under way.
	Entering []Object

	dir    int    // descriptor of /proc/TID
	within string // what the names of the task's files begin with there: "task/5/" of a thread of that process

	// What has been read of it, until Forget.
	files  map[string][]byte
	links  map[string]ID
	status *TaskStatus
}

// Flags of a task_struct (include/linux/sched.h), ninth field of proc_pid_stat(5).
const pfKthread = 0x00200000

// FindTask names the task with that id. ErrNoTask: there is none, or all that is left of its
// process is a zombie. ErrKernelThread: it is one of the kernel's own. Close it after use.
func FindTask(tid int) (*Task, error) {
	if tid <= 0 {
		return nil, ErrNoTask
	}
	t, err := openTask(tid)
	if err != nil {
		return nil, err
	}
	if err := t.lives(); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// lives looks anew whether the task can be moved, with FindTask's errors.
func (t *Task) lives() error {
	for {
		t.Forget()
		st, err := t.Status()
		if err != nil {
			return err
		}
		// A leader was read that has been replaced meanwhile: a thread that executes a program takes
		// its leader's id (de_thread in fs/exec.c), and what has been released is of no group.
		if st.Threads == 0 {
			continue
		}
		t.TGID = st.TGID
		return t.movable(st)
	}
}

// openTask names any task, without a look at what it is.
func openTask(tid int) (*Task, error) {
	// For a thread that leads no process /proc/TID is not listed, but it is there (proc(5)).
	dir, err := unix.Open(fmt.Sprintf("/proc/%d", tid), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, noTask(err)
	}
	return &Task{TID: tid, dir: dir}, nil
}

// Thread is a thread of the process that t stands for, without a look at what it is. It needs no closing, and is of no
// use once t is closed.
func (t *Task) Thread(tid int) *Task {
	return &Task{TID: tid, TGID: t.TGID, dir: t.dir, within: "task/" + strconv.Itoa(tid) + "/"}
}

func (t *Task) movable(st TaskStatus) error {
	kernel, err := t.kernelThread(st)
	if err != nil {
		return err
	}
	if kernel {
		return ErrKernelThread
	}
	// A leader that has exited stays a zombie while other threads of it live.
	dead := st.State == 'Z' || st.State == 'X'
	if dead && (t.TID != t.TGID || st.Threads < 2) {
		return ErrNoTask
	}
	return nil
}

// kernelThread asks status, which says so since Linux 6.8, or else the flags in stat.
func (t *Task) kernelThread(st TaskStatus) (bool, error) {
	if st.Kthread != unknown {
		return st.Kthread == 1, nil
	}
	stat, err := t.Read("stat")
	if err != nil {
		return false, err
	}
	flags, err := statField(stat, 9)
	return flags&pfKthread != 0, err
}

// statField returns a numeric field of proc_pid_stat(5), counted from 1 as there. The second
// field is the command in parentheses and may contain anything, so counting starts after it.
func statField(stat []byte, n int) (uint64, error) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, fmt.Errorf("stat without a command: %q", stat)
	}
	fields := strings.Fields(string(stat[end+1:]))
	if n-3 >= len(fields) {
		return 0, fmt.Errorf("stat with %d fields", len(fields)+2)
	}
	return strconv.ParseUint(fields[n-3], 10, 64)
}

// tick is what the kernel counts a process's start time in, nanoseconds: USER_HZ is 100 on every
// architecture that we build for.
const tick = 10_000_000

// born returns when the task was born, in nanoseconds of CLOCK_BOOTTIME, rounded down to a tick.
func (t *Task) born() (uint64, error) {
	stat, err := t.Read("stat")
	if err != nil {
		return 0, err
	}
	ticks, err := statField(stat, 22)
	return ticks * tick, err
}

// noTask turns what /proc says of a task that has gone into ErrNoTask.
func noTask(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return ErrNoTask
	}
	return err
}

// Close gives the task up.
func (t *Task) Close() error { return unix.Close(t.dir) }

// Alive reports whether the task's process has not been reaped yet.
func (t *Task) Alive() bool { return unix.PidfdSendSignal(t.dir, 0, nil, 0) == nil }

// Whole reports whether t stands for its process: t is the thread group's leader.
func (t *Task) Whole() bool { return t.TID == t.TGID }

// Read returns the contents of a file in the task's /proc directory, once: the first answer
// is kept until Forget. ErrNoTask when the task has gone.
func (t *Task) Read(name string) ([]byte, error) {
	if b, ok := t.files[name]; ok {
		return b, nil
	}
	fd, err := unix.Openat(t.dir, t.within+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("task %d: open %s: %w", t.TID, name, noTask(err))
	}
	defer unix.Close(fd)
	b, err := readAll(fd)
	if err != nil {
		return nil, fmt.Errorf("task %d: read %s: %w", t.TID, name, noTask(err))
	}
	if t.files == nil {
		t.files = make(map[string][]byte)
	}
	t.files[name] = b
	return b, nil
}

// readAll reads a file of /proc to its end. All of them that we read are made as one piece, so the
// end is where a read(2) leaves room (seq_read_iter in fs/seq_file.c).
func readAll(fd int) ([]byte, error) {
	b := make([]byte, 4096)
	for n := 0; ; {
		m, err := unix.Read(fd, b[n:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, err
		}
		if n += m; n < len(b) {
			return b[:n], nil
		}
		b = append(b, make([]byte, len(b))...)
	}
}

// Forget drops what Read, Stat and Status have kept: the task may have changed.
func (t *Task) Forget() { t.files, t.links, t.status = nil, nil, nil }

// Stat returns what a link in the task's /proc directory ("ns/net") leads to, once, like Read.
func (t *Task) Stat(name string) (ID, error) {
	if id, ok := t.links[name]; ok {
		return id, nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(t.dir, t.within+name, &st, 0); err != nil {
		return ID{}, fmt.Errorf("task %d: stat %s: %w", t.TID, name, t.noLink(err))
	}
	if t.links == nil {
		t.links = make(map[string]ID)
	}
	id := IDOf(&st)
	t.links[name] = id
	return id, nil
}

// noLink turns what a link in /proc says of a task that has gone into ErrNoTask. If the task goes
// while the link is being followed that is EACCES (proc_ns_get_link in fs/proc/namespaces.c).
func (t *Task) noLink(err error) error {
	if err == unix.EACCES && unix.Faccessat(t.dir, t.within+"stat", unix.F_OK, 0) != nil {
		return ErrNoTask
	}
	return noTask(err)
}

// Open opens what a link in the task's /proc directory leads to, read-only.
func (t *Task) Open(name string) (*os.File, error) {
	fd, err := unix.Openat(t.dir, t.within+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("task %d: open %s: %w", t.TID, name, t.noLink(err))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Has reports whether tid is a thread of t's process.
func (t *Task) Has(tid int) bool {
	return unix.Faccessat(t.dir, "task/"+strconv.Itoa(tid), unix.F_OK, 0) == nil
}

// Threads returns the ids of the threads of t's process, ascending.
func (t *Task) Threads() ([]int, error) { return numericDir(fmt.Sprintf("/proc/%d/task", t.TGID)) }

func numericDir(path string) ([]int, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, noTask(err)
	}
	var ids []int
	for _, e := range entries {
		if id, err := strconv.Atoi(e.Name()); err == nil {
			ids = append(ids, id)
		}
	}
	sort.Ints(ids)
	return ids, nil
}

// TaskStatus is what rcfs needs of proc_pid_status(5).
type TaskStatus struct {
	State           byte
	TGID            int
	Threads         int
	TracerPID       int
	UID, EUID, SUID uint32
	GID, EGID, SGID uint32
	EffectiveCaps   uint64
	Kthread         int // 1: a kernel thread, 0: none, unknown: the kernel does not say
}

// Status reads the task's status, once, like Read.
func (t *Task) Status() (TaskStatus, error) {
	if t.status != nil {
		return *t.status, nil
	}
	b, err := t.Read("status")
	if err != nil {
		return TaskStatus{}, err
	}
	st, err := parseStatus(string(b))
	if err == nil {
		t.status = &st
	}
	return st, err
}

const unknown = -1

func parseStatus(text string) (TaskStatus, error) {
	st := TaskStatus{Kthread: unknown}
	var err error
	num := func(s string, base int) uint64 {
		n, e := strconv.ParseUint(s, base, 64)
		err = errors.Join(err, e)
		return n
	}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		f := strings.Fields(value)
		if len(f) == 0 {
			continue
		}
		switch key {
		case "State":
			st.State = f[0][0]
		case "Tgid":
			st.TGID = int(num(f[0], 10))
		case "Threads":
			st.Threads = int(num(f[0], 10))
		case "TracerPid":
			st.TracerPID = int(num(f[0], 10))
		case "Kthread":
			st.Kthread = int(num(f[0], 10))
		case "CapEff":
			st.EffectiveCaps = num(f[0], 16)
		case "Uid", "Gid":
			if len(f) < 3 {
				return st, fmt.Errorf("status: line %q", line)
			}
			real, effective, saved := uint32(num(f[0], 10)), uint32(num(f[1], 10)), uint32(num(f[2], 10))
			if key == "Uid" {
				st.UID, st.EUID, st.SUID = real, effective, saved
			} else {
				st.GID, st.EGID, st.SGID = real, effective, saved
			}
		}
	}
	if err == nil && st.TGID == 0 {
		err = fmt.Errorf("status without Tgid: %q", text)
	}
	return st, err
}

// Writer is who asks: the thread that wrote to a file, as the kernel told it.
type Writer struct {
	TID int // in the daemon's pid namespace; 0 where the writer has no number there
	Owner
	// NonBlock is set where the file is open with O_NONBLOCK, as Go's os package has all of its
	// files: EAGAIN would then mean that poll(2) tells when to try again.
	NonBlock bool
}

// mayMove is cgroup v1's rule (cgroup1_procs_write_permission in kernel/cgroup/cgroup-v1.c):
// root, or the real or saved user of the target.
func (w Writer) mayMove(st TaskStatus) error {
	if w.UID == 0 || w.UID == st.UID || w.UID == st.SUID {
		return nil
	}
	return ErrNotYours
}

// owns is the stricter rule for a move into namespaces. A program that has changed its user or
// group (set-user-ID, set-group-ID) must not find itself in a world that its caller arranged. So
// it is asked what ptrace(2) asks of a tracer (__ptrace_may_access in kernel/ptrace.c): all of the
// target's ids are the writer's, and it is dumpable, which a program is not that has had others.
func (w Writer) owns(t *Task, st TaskStatus) error {
	if w.UID == 0 {
		return nil
	}
	if w.UID != st.UID || w.UID != st.EUID || w.UID != st.SUID ||
		w.GID != st.GID || w.GID != st.EGID || w.GID != st.SGID {
		return ErrNotYours
	}
	// /proc gives the files of a program that is not dumpable to root (proc(5)).
	var status unix.Stat_t
	if err := unix.Fstatat(t.dir, "status", &status, 0); err != nil {
		return noTask(err)
	}
	if status.Uid != st.EUID {
		return fmt.Errorf("the task is not dumpable: %w", ErrNotYours)
	}
	return nil
}

// ownUserNamespace is the daemon's, which it does not change.
var ownUserNamespace = sync.OnceValues(func() (ID, error) {
	t, err := openTask(os.Getpid())
	if err != nil {
		return ID{}, err
	}
	defer t.Close()
	return t.Stat("ns/user")
})

// Admin returns an error unless the writer has CAP_SYS_ADMIN in our user namespace. Some values
// are for such writers only, and the kernel would look at the daemon's capabilities instead.
func (w Writer) Admin() error { return w.Capable(unix.CAP_SYS_ADMIN) }

// Capable returns an error unless the writer has a capability in our user namespace.
func (w Writer) Capable(capability int) error {
	var theirs unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/user", w.TID), &theirs); err != nil {
		return fmt.Errorf("the writer's user namespace: %w", noTask(err))
	}
	ours, err := ownUserNamespace()
	if err != nil {
		return err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3, Pid: int32(w.TID)}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("the writer's capabilities: %w", noTask(err))
	}
	if IDOf(&theirs) != ours || data[capability/32].Effective&(1<<(capability%32)) == 0 {
		return ErrNotCapable
	}
	return nil
}
