package proxy

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Ids in the data of reads and writes are those of the client's pid namespace, as they are for
// the kernel's own cgroup files. The daemon's own is the one in which everything else is named.

// foreign returns an open descriptor of the writer's pid namespace, -1 if it is the daemon's own.
// A writer that has no number in the daemon's namespace is not below it, so no id of its means
// anything here: ErrNoTask.
func (w Writer) foreign() (int, error) {
	if w.TID == 0 {
		return -1, fmt.Errorf("the writer's pid namespace is not below the daemon's: %w", ErrNoTask)
	}
	path := fmt.Sprintf("/proc/%d/ns/pid", w.TID)
	var theirs unix.Stat_t
	if err := unix.Stat(path, &theirs); err != nil {
		return -1, fmt.Errorf("stat %s: %w", path, noTask(err))
	}
	ours, err := ownPidNS()
	if err != nil || ours == IDOf(&theirs) {
		return -1, err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, noTask(err))
	}
	return fd, nil
}

// ownPidNS is the pid namespace of the daemon, which it never changes.
var ownPidNS = sync.OnceValues(func() (ID, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil {
		return ID{}, fmt.Errorf("stat /proc/self/ns/pid: %w", err)
	}
	return IDOf(&st), nil
})

// global turns an id of the writer's pid namespace into the daemon's.
func (w Writer) global(id int) (int, error) { return w.translate(nsGetPidFrom, id) }

// local turns an id of the daemon's pid namespace into one of the reader's. ErrNoTask: the task has
// none there.
func (w Writer) local(id int) (int, error) { return w.translate(nsGetPidIn, id) }

func (w Writer) translate(request uint, id int) (int, error) {
	if w == (Writer{}) {
		return id, nil // the daemon itself
	}
	ns, err := w.foreign()
	if err != nil || ns < 0 {
		return id, err
	}
	defer unix.Close(ns)
	return translate(ns, request, id)
}

// ReadFor reads a control file, of which o is the object, as pread(2) of r does.
func (f *File) ReadFor(r Writer, o Object, buf []byte, off int64) (int, error) {
	if f.Task == nil {
		return f.Read(o, buf, off)
	}
	return Text(func(o Object) (string, error) {
		id, err := f.Task(o)
		if err != nil {
			return "", err
		}
		if id, err = r.local(id); errors.Is(err, ErrNoTask) {
			id, err = 0, nil
		}
		return fmt.Sprintln(id), err
	})(o, buf, off)
}

// ListFor returns the text of "tasks" or "cgroup.procs" with the ids of the reader's pid
// namespace. Tasks that have no number there are left out.
func (c *Container) ListFor(r Writer, file string) (string, error) {
	ns, err := r.foreign()
	if errors.Is(err, ErrNoTask) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if ns < 0 {
		return c.list(file)
	}
	defer unix.Close(ns)
	ids, err := c.ids(file)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for _, id := range ids {
		id, err := translate(ns, nsGetPidIn, id)
		if errors.Is(err, ErrNoTask) {
			continue
		}
		if err != nil {
			return "", err
		}
		fmt.Fprintln(&text, id)
	}
	return text.String(), nil
}

// Requests of ioctl_nsfs(2), since Linux 6.11: a thread's number in our pid namespace from the one
// in that of the descriptor, and the other way round.
const (
	nsGetPidFrom = 0x8004b706
	nsGetPidIn   = 0x8004b708
)

func translate(ns int, request uint, id int) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(ns), uintptr(request), uintptr(id))
	switch errno {
	case 0:
		return int(n), nil
	case unix.ESRCH:
		return 0, ErrNoTask
	case unix.ENOTTY, unix.EINVAL:
		return translateByStatus(ns, request, id)
	}
	return 0, fmt.Errorf("translate id %d: %w", id, errno)
}

// translateByStatus reads the line NSpid of proc_pid_status(5): a task's numbers from our pid
// namespace down to its own.
func translateByStatus(ns int, request uint, id int) (int, error) {
	depth, err := depthOf(ns)
	if err != nil {
		return 0, err
	}
	if request == nsGetPidIn {
		numbers, err := numbersIn(ns, id, depth)
		if err != nil {
			return 0, err
		}
		return numbers[depth], nil
	}
	pids, err := numericDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		tids, err := numericDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			continue
		}
		for _, tid := range tids {
			if numbers, err := numbersIn(ns, tid, depth); err == nil && numbers[depth] == id {
				return tid, nil
			}
		}
	}
	return 0, ErrNoTask
}

// numbersIn returns the numbers of a task, if it is in the pid namespace ns or below it.
func numbersIn(ns, tid, depth int) ([]int, error) {
	t, err := openTask(tid)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	text, err := t.Read("status")
	if err != nil {
		return nil, err
	}
	var numbers []int
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			for _, f := range strings.Fields(rest) {
				n, err := strconv.Atoi(f)
				if err != nil {
					return nil, err
				}
				numbers = append(numbers, n)
			}
		}
	}
	if len(numbers) <= depth {
		return nil, ErrNoTask
	}
	fd, err := unix.Openat(t.dir, "ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, noTask(err)
	}
	for range len(numbers) - 1 - depth {
		up, err := unix.IoctlRetInt(fd, unix.NS_GET_PARENT)
		unix.Close(fd)
		if err != nil {
			return nil, ErrNoTask
		}
		fd = up
	}
	defer unix.Close(fd)
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &a), unix.Fstat(ns, &b)); err != nil {
		return nil, err
	}
	if a.Dev != b.Dev || a.Ino != b.Ino {
		return nil, ErrNoTask
	}
	return numbers, nil
}

// depthOf returns how many pid namespaces below ours ns is.
func depthOf(ns int) (int, error) {
	ours, err := os.Open("/proc/self/ns/pid")
	if err != nil {
		return 0, err
	}
	defer ours.Close()
	var top, st unix.Stat_t
	if err := unix.Fstat(int(ours.Fd()), &top); err != nil {
		return 0, err
	}
	fd, err := unix.FcntlInt(uintptr(ns), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return 0, err
	}
	for depth := 0; ; depth++ {
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return 0, err
		}
		if st.Dev == top.Dev && st.Ino == top.Ino {
			unix.Close(fd)
			return depth, nil
		}
		up, err := unix.IoctlRetInt(fd, unix.NS_GET_PARENT)
		unix.Close(fd)
		if err != nil {
			return 0, fmt.Errorf("parent of a pid namespace: %w", err)
		}
		fd = up
	}
}
