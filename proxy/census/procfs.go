package census

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

var (
	// ErrNoTask says that no task has an id.
	ErrNoTask = errors.New("no such task")
	// ErrZombie says that the task that has it has ended, and has no proxy any more.
	ErrZombie = errors.New("a zombie, which has no namespaces any more")

	// errGone is both.
	errGone = errors.New("the task has gone")
)

// why says which of the two it is.
func why(tid int) error {
	var st unix.Stat_t
	if unix.Stat(taskDir(tid), &st) != nil {
		return fmt.Errorf("task %d: %w", tid, ErrNoTask)
	}
	return fmt.Errorf("task %d: %w", tid, ErrZombie)
}

// taskDir is a task's directory: for a thread that leads no process it is not listed, but there (proc(5)).
func taskDir(tid int) string { return "/proc/" + strconv.Itoa(tid) }

// present says which of namespaces this kernel has.
var present = sync.OnceValue(func() []bool {
	has := make([]bool, len(namespaces))
	for i, ns := range namespaces {
		var st unix.Stat_t
		has[i] = unix.Lstat("/proc/self/"+ns.file, &st) == nil
	}
	return has
})

// readTask reads what parseReading takes.
func readTask(tid int) (string, error) {
	text, err := new(reader).task(taskDir(tid), nil)
	return string(text), err
}

// readAll reads every task and counts equal readings.
func readAll() (map[string]int, error) {
	processes, err := numbers("/proc")
	if err != nil {
		return nil, err
	}
	var r reader
	counts := make(map[string]*int)
	for _, process := range processes {
		threads := "/proc/" + process + "/task"
		tids, err := numbers(threads)
		if err != nil && gone(err) != errGone {
			return nil, err
		}
		for _, tid := range tids {
			text, err := r.task(threads+"/"+tid, counts)
			if err == errGone {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("task %s: %w", tid, err)
			}
			if n := counts[string(text)]; n != nil {
				*n++
			} else {
				n := 1
				counts[string(text)] = &n
			}
		}
	}
	total := make(map[string]int, len(counts))
	for text, n := range counts {
		total[text] = *n
	}
	return total, nil
}

// numbers lists the names in a directory that are numbers.
func numbers(path string) ([]string, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	return slices.DeleteFunc(names, func(name string) bool {
		_, err := strconv.Atoi(name)
		return err != nil
	}), err
}

// reader reads tasks, one after the other, into the same buffers.
type reader struct {
	text, groups []byte
}

// task reads a task; what it returns is good until the next call. errGone: the task is not there any more, or
// is a zombie. The directory that is held open stands for this very task, whatever happens to its number.
//
// On v1 a task that is ending is in the root to those who ask (proc_cgroup_show in kernel/cgroup/cgroup.c), though it still has
// its namespaces for a moment. Such tuples are nobody's; so a reading that is not known yet is looked into.
func (r *reader) task(path string, known map[string]*int) ([]byte, error) {
	dir, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, gone(err)
	}
	defer unix.Close(dir)
	// The groups first: a task that has namespaces afterwards was in them, unless it was ending already.
	if err := r.readGroups(dir); err != nil {
		return nil, gone(err)
	}
	if r.text == nil {
		r.text = make([]byte, 0, 4096)
	}
	r.text = r.text[:0]
	const longest = 64 // "cgroup:[4026531835]"
	has := present()
	for i, ns := range namespaces {
		if has[i] {
			r.text = slices.Grow(r.text, longest)
			n, err := unix.Readlinkat(dir, ns.file, r.text[len(r.text):len(r.text)+longest])
			switch {
			case err == unix.ENOENT && ns.subsystem == "pid":
				// So it is with a pid namespace that has no first process yet. What comes next tells it from a task
				// that has gone.
				r.text = append(r.text, Empty...)
			case err == unix.EACCES && ending(dir):
				return nil, errGone // while the link was being followed
			case err == unix.EACCES:
				r.text = append(r.text, Unknown...)
			case err != nil:
				return nil, gone(fmt.Errorf("read %s: %w", ns.file, err))
			default:
				r.text = r.text[:len(r.text)+n]
			}
		}
		r.text = append(r.text, '\n')
	}
	r.text = append(r.text, r.groups...)
	if known[string(r.text)] == nil && ending(dir) {
		return nil, errGone
	}
	return r.text, nil
}

// readGroups reads the cgroup file.
func (r *reader) readGroups(dir int) (err error) {
	r.groups, err = readFile(dir, "cgroup", r.groups[:0])
	return err
}

// pfExiting is the flag of a task_struct (include/linux/sched.h) that is set as soon as it begins to end.
const pfExiting = 0x4

// ending reports whether a task ends, or has ended.
func ending(dir int) bool {
	stat, err := readFile(dir, "stat", nil)
	return err != nil || hasEnded(string(stat))
}

// hasEnded reads state and flags in proc_pid_stat(5), which come after the command in parentheses.
func hasEnded(stat string) bool {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 7 {
		return true
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	return err != nil || flags&pfExiting != 0 || strings.Contains("ZXx", fields[0])
}

// readFile appends a file of /proc to b. It is made as one piece, so its end is where a read leaves room.
func readFile(dir int, name string, b []byte) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return b, err
	}
	defer unix.Close(fd)
	for {
		b = slices.Grow(b, 4096)
		room := b[len(b):cap(b)]
		n, err := unix.Read(fd, room)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return b, err
		}
		if b = b[:len(b)+n]; n < len(room) {
			return b, nil
		}
	}
}

// gone turns what /proc says of a task that is not there into errGone.
func gone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return errGone
	}
	return err
}
