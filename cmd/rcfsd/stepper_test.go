package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stepper watches every system call of the daemon's processes from outside, and kills them all at the
// entry of the n-th one that can change the world: what is killed there has not made that call any more.
type stepper struct {
	daemon []process
	n      int
	ready  chan error   // the daemon is watched
	ended  chan killing // it has been killed
	asked  atomic.Bool  // to kill it wherever it is
}

// process is one of the daemon's.
type process struct {
	pid   int
	pidfd int
}

// killing is what became of the daemon.
type killing struct {
	at    string // the call it was killed at, "" where there were not so many
	calls int    // how many there were
	err   error
}

// stepperPatience bounds the whole of it. A daemon that is watched is slow.
const stepperPatience = 60 * time.Second

// step begins to watch. All that ptrace(2) does is done by one thread, which is never the process's
// first (its death cannot be waited for) and ends afterwards.
func step(pids []int, n int) (*stepper, error) {
	s := &stepper{n: n, ready: make(chan error, 1), ended: make(chan killing, 1)}
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return nil, fmt.Errorf("daemon %d: %w", pid, err)
		}
		s.daemon = append(s.daemon, process{pid, fd})
	}
	var start func()
	start = func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its goroutine
		if unix.Gettid() != os.Getpid() {
			s.run()
			return
		}
		begun := make(chan struct{})
		go func() { close(begun); start() }()
		<-begun
		runtime.UnlockOSThread()
	}
	go start()
	return s, <-s.ready
}

// finish kills the daemon, unless that has been done, and says where that was.
func (s *stepper) finish() killing {
	s.killFromOutside()
	k := <-s.ended
	for _, p := range s.daemon {
		unix.Close(p.pidfd)
	}
	return k
}

func (s *stepper) killFromOutside() {
	s.asked.Store(true)
	s.signal()
}

func (s *stepper) signal() error {
	for _, p := range s.daemon {
		if err := unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
			return fmt.Errorf("kill %d: %w", p.pid, err)
		}
	}
	return nil
}

func (s *stepper) run() {
	late := time.AfterFunc(stepperPatience, s.killFromOutside)
	defer late.Stop()
	err := s.seize()
	s.ready <- err
	var k killing
	if err == nil {
		k.at, err = s.watch(&k.calls)
	}
	k.err = errors.Join(err, s.signal(), s.bury())
	s.ended <- k
}

// seize takes all threads, also those that are being made meanwhile, and stops them.
func (s *stepper) seize() error {
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE
	seized := make(map[int]bool)
	for again := true; again; {
		again = false
		for _, p := range s.daemon {
			tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", p.pid))
			if err != nil {
				return err
			}
			for _, task := range tasks {
				tid, err := strconv.Atoi(filepath.Base(task))
				if err != nil || seized[tid] {
					continue
				}
				again = true
				seized[tid] = true
				if err := ptrace(unix.PTRACE_SEIZE, tid, 0, options); err == unix.ESRCH || err == unix.EPERM {
					continue // it has ended, or its maker was seized before it was made
				} else if err != nil {
					return fmt.Errorf("seize %d: %w", tid, err)
				}
				if err := ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0); err != nil && err != unix.ESRCH {
					return fmt.Errorf("interrupt %d: %w", tid, err)
				}
			}
		}
	}
	return nil
}

// watch lets the threads run from call to call until the n-th one, and returns at the end of one of them
// that it was asked for.
func (s *stepper) watch(calls *int) (at string, err error) {
	for {
		var status unix.WaitStatus
		tid, err := unix.Wait4(-1, &status, unix.WALL|unix.WNOTHREAD, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return "", fmt.Errorf("wait for the daemon: %w", err)
		case !status.Stopped():
			if s.asked.Load() {
				return "", nil
			}
			// Another child of this thread may have ended, too.
			if slices.ContainsFunc(s.daemon, func(p process) bool { return p.pid == tid }) {
				return "", fmt.Errorf("the daemon %d has ended by itself: %#x", tid, status)
			}
			continue // a thread
		}
		signal := status.StopSignal()
		switch {
		case signal == unix.SIGTRAP|0x80:
			call, entry := enteredCall(tid)
			if entry && changes(tid, call) {
				if *calls++; *calls == s.n {
					return call.String(), nil
				}
			}
			signal = 0
		case int(status)>>16 != 0: // an event: a new thread, or the stop that was asked for
			signal = 0
		}
		if err := ptrace(unix.PTRACE_SYSCALL, tid, 0, uintptr(signal)); err != nil && err != unix.ESRCH {
			return "", fmt.Errorf("let %d go on: %w", tid, err)
		}
	}
}

// bury waits until nothing of the killed is left. This thread may have other children, which live.
func (s *stepper) bury() error {
	left := make(map[int]bool)
	for _, p := range s.daemon {
		left[p.pid] = true
	}
	for deadline := time.Now().Add(10 * time.Second); len(left) > 0; {
		var status unix.WaitStatus
		tid, err := unix.Wait4(-1, &status, unix.WALL|unix.WNOTHREAD|unix.WNOHANG, nil)
		switch {
		case err == unix.ECHILD:
			return nil
		case err != nil && err != unix.EINTR:
			return fmt.Errorf("wait for the killed daemon: %w", err)
		case tid > 0 && status.Stopped(): // on its way to death
			ptrace(unix.PTRACE_CONT, tid, 0, 0)
		case tid > 0:
			delete(left, tid) // a process's first thread is the last that can be waited for
		case time.Now().After(deadline):
			return fmt.Errorf("killed, and still there: %v", left)
		default:
			time.Sleep(500 * time.Microsecond)
		}
	}
	return nil
}

// syscallEntry is a system call that is being entered: struct ptrace_syscall_info in linux/ptrace.h.
type syscallEntry struct {
	op   uint8
	_    [3]byte
	arch uint32
	_, _ uint64 // instruction and stack pointer
	nr   uint64
	args [6]uint64
	_    [8]byte
}

func enteredCall(tid int) (c syscallEntry, entry bool) {
	const getSyscallInfo, atEntry = 0x420e, 1
	err := ptrace(getSyscallInfo, tid, unsafe.Sizeof(c), uintptr(unsafe.Pointer(&c)))
	return c, err == nil && c.op == atEntry
}

func (c syscallEntry) String() string {
	if name := changing[c.nr]; name != "" {
		return fmt.Sprintf("%s(%#x, %#x, %#x)", name, c.args[0], c.args[1], c.args[2])
	}
	return fmt.Sprint("call ", c.nr)
}

// changing are the system calls that can change what others see, by number. On some machines there are
// more of them than on others; Go uses those that all have.
var changing = map[uint64]string{
	unix.SYS_MKDIRAT: "mkdirat", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2",
	unix.SYS_SYMLINKAT: "symlinkat", unix.SYS_LINKAT: "linkat", unix.SYS_MKNODAT: "mknodat", unix.SYS_OPENAT: "openat",
	unix.SYS_MOUNT: "mount", unix.SYS_UMOUNT2: "umount2", unix.SYS_MOVE_MOUNT: "move_mount", unix.SYS_OPEN_TREE: "open_tree",
	unix.SYS_FSOPEN: "fsopen", unix.SYS_FSCONFIG: "fsconfig", unix.SYS_FSMOUNT: "fsmount",
	unix.SYS_SETXATTR: "setxattr", unix.SYS_FSETXATTR: "fsetxattr", unix.SYS_FREMOVEXATTR: "fremovexattr",
	unix.SYS_FCHOWN: "fchown", unix.SYS_FCHOWNAT: "fchownat", unix.SYS_FCHMOD: "fchmod", unix.SYS_FCHMODAT: "fchmodat",
	unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "pwrite64", unix.SYS_WRITEV: "writev", unix.SYS_PWRITEV: "pwritev",
	unix.SYS_SENDMSG: "sendmsg", unix.SYS_SENDTO: "sendto", unix.SYS_IOCTL: "ioctl",
	unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_FALLOCATE: "fallocate", unix.SYS_FLOCK: "flock",
	unix.SYS_SETNS: "setns", unix.SYS_UNSHARE: "unshare", unix.SYS_CLONE: "clone", unix.SYS_CLONE3: "clone3",
	unix.SYS_SETHOSTNAME: "sethostname", unix.SYS_SETDOMAINNAME: "setdomainname",
	unix.SYS_PTRACE: "ptrace", unix.SYS_PROCESS_VM_WRITEV: "process_vm_writev",
	unix.SYS_KILL: "kill", unix.SYS_PIDFD_SEND_SIGNAL: "pidfd_send_signal", unix.SYS_CLOSE: "close",
}

// changes reports whether a call is one that counts.
func changes(tid int, c syscallEntry) bool {
	if changing[c.nr] == "" {
		return false
	}
	switch c.nr {
	case unix.SYS_OPENAT:
		return c.args[2]&unix.O_CREAT != 0
	case unix.SYS_WRITE, unix.SYS_CLOSE, unix.SYS_IOCTL:
		// Go's runtime wakes itself by writing to an eventfd; a closed mount or device is the end of something.
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, int32(c.args[0])))
		if err != nil || strings.HasPrefix(target, "anon_inode:[event") {
			return false
		}
		return c.nr != unix.SYS_CLOSE || target == "/" || strings.HasPrefix(target, "socket:") || target == "/dev/fuse"
	}
	return true
}

func ptrace(request, tid int, addr, data uintptr) error {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
