package victim

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func blockNanosleep(_ *program, _ int, timeout time.Duration) error {
	return sys(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(timespec(timeout))))
}

func blockClockNanosleep(_ *program, _ int, timeout time.Duration) error {
	return sys(unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_MONOTONIC, 0, uintptr(unsafe.Pointer(timespec(timeout))))
}

func blockClockAbsolute(_ *program, _ int, timeout time.Duration) error {
	const absolute = 1 // TIMER_ABSTIME
	return sys(unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_MONOTONIC, absolute, uintptr(unsafe.Pointer(clockIn(unix.CLOCK_MONOTONIC, timeout))))
}

func blockPpoll(_ *program, quit int, timeout time.Duration) error {
	return ppoll(endless(quit, timeout), timespec(timeout))
}

func ppoll(fd int, timeout *unix.Timespec) error {
	fds := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	return sys(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds)), 1, uintptr(unsafe.Pointer(timeout)))
}

func blockSelect(_ *program, quit int, timeout time.Duration) error {
	var set unix.FdSet
	if timeout == 0 {
		set.Set(quit)
	}
	return pselect(quit, &set, timespec(timeout))
}

func pselect(quit int, set *unix.FdSet, timeout *unix.Timespec) error {
	return sys(unix.SYS_PSELECT6, uintptr(quit)+1, uintptr(unsafe.Pointer(set)), 0, 0, uintptr(unsafe.Pointer(timeout)))
}

// readOnly is a duration in memory that cannot be written.
func readOnly(d time.Duration) (*unix.Timespec, []byte, error) {
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, nil, err
	}
	ts := (*unix.Timespec)(unsafe.Pointer(&page[0]))
	*ts = unix.NsecToTimespec(int64(d))
	return ts, page, unix.Mprotect(page, unix.PROT_READ)
}

func blockPpollReadOnly(_ *program, _ int, timeout time.Duration) error {
	ts, page, err := readOnly(timeout)
	if err != nil {
		return err
	}
	defer unix.Munmap(page)
	return ppoll(-1, ts)
}

func blockSelectReadOnly(_ *program, quit int, timeout time.Duration) error {
	ts, page, err := readOnly(timeout)
	if err != nil {
		return err
	}
	defer unix.Munmap(page)
	return pselect(quit, new(unix.FdSet), ts)
}

// newEpoll makes an epoll that waits for quit, or with a timeout for nothing.
func newEpoll(quit int, timeout time.Duration) (int, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil || timeout != 0 {
		return ep, err
	}
	err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, quit, &unix.EpollEvent{Events: unix.EPOLLIN})
	return ep, err
}

func blockEpoll(_ *program, quit int, timeout time.Duration) error {
	ep, err := newEpoll(quit, timeout)
	if err != nil {
		return err
	}
	defer unix.Close(ep)
	var event unix.EpollEvent
	return sys(unix.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(&event)), 1, milliseconds(timeout))
}

func blockEpoll2(_ *program, quit int, timeout time.Duration) error {
	ep, err := newEpoll(quit, timeout)
	if err != nil {
		return err
	}
	defer unix.Close(ep)
	var event unix.EpollEvent
	return sys(unix.SYS_EPOLL_PWAIT2, uintptr(ep), uintptr(unsafe.Pointer(&event)), 1, uintptr(unsafe.Pointer(timespec(timeout))))
}

// Operations of futex(2).
const (
	futexLockPI  = 6 | 128
	futexAllBits = 1<<32 - 1
)

var futexWord uint32

func blockFutex(_ *program, _ int, timeout time.Duration) error {
	word := &futexWord
	if timeout != 0 {
		word = new(uint32)
	}
	return sys(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWaitPrivate, 0, uintptr(unsafe.Pointer(timespec(timeout))))
}

// wakeFutex ends the endless futex waits.
func wakeFutex() {
	futexWord = 1
	for range 3 {
		_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&futexWord)), futexWakePrivate, 100, 0, 0, 0)
		time.Sleep(time.Millisecond)
	}
}

func blockFutexAbsolute(_ *program, _ int, timeout time.Duration) error {
	return sys(unix.SYS_FUTEX, uintptr(unsafe.Pointer(new(uint32))), futexWaitBitsetPrivate, 0,
		uintptr(unsafe.Pointer(clockIn(unix.CLOCK_MONOTONIC, timeout))), 0, futexAllBits)
}

// blockFutexPI waits for a lock that another thread of the process holds for ever.
func blockFutexPI(_ *program, _ int, timeout time.Duration) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	owner, err := otherThread()
	if err != nil {
		return err
	}
	word := uint32(owner)
	return sys(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&word)), futexLockPI, 0, uintptr(unsafe.Pointer(clockIn(unix.CLOCK_REALTIME, timeout))))
}

// otherThread returns a thread that is not the calling one. The Go runtime ends none of its own.
func otherThread() (tid int, err error) {
	entries, err := os.ReadDir("/proc/self/task")
	for _, e := range entries {
		if tid, err = strconv.Atoi(e.Name()); err != nil || tid != unix.Gettid() {
			return tid, err
		}
	}
	return 0, errors.Join(err, errors.New("no other thread"))
}

// zeroWord is 0 for ever.
var zeroWord uint32

func blockFutexWaitv(_ *program, _ int, timeout time.Duration) error {
	waiter := struct {
		value, address uint64
		flags, _       uint32
	}{address: uint64(uintptr(unsafe.Pointer(&zeroWord))), flags: 2 | 128} // 32 bits, private
	return sys(unix.SYS_FUTEX_WAITV, uintptr(unsafe.Pointer(&waiter)), 1, 0,
		uintptr(unsafe.Pointer(clockIn(unix.CLOCK_MONOTONIC, timeout))), unix.CLOCK_MONOTONIC)
}

// blockSigsuspend lets a signal in that nobody sends.
func blockSigsuspend(*program, int, time.Duration) error {
	set := unix.Sigset_t{Val: [16]uint64{^uint64(0)}}
	set.Val[0] &^= 1 << (uint(unix.SIGUSR2) - 1)
	return sys(unix.SYS_RT_SIGSUSPEND, uintptr(unsafe.Pointer(&set)), 8)
}

func blockSigtimedwait(_ *program, _ int, timeout time.Duration) error {
	set := uint64(1) << (uint(unix.SIGUSR2) - 1)
	return sys(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&set)), 0, uintptr(unsafe.Pointer(timespec(timeout))), 8)
}

// startChild starts a child that lives for as long as this process.
func startChild() (pid int, err error) {
	var alive [2]int
	if err := unix.Pipe2(alive[:], unix.O_CLOEXEC); err != nil {
		return 0, err
	}
	defer unix.Close(alive[0])
	null, err := unix.Open("/dev/null", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(null)
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	pid, err = syscall.ForkExec(self, []string{self}, &syscall.ProcAttr{
		Env:   []string{environment + "=idle"},
		Files: []uintptr{uintptr(alive[0]), uintptr(null), uintptr(null)}, // somebody waits for the end of our output
	})
	return pid, err
}

func blockWait4(*program, int, time.Duration) error {
	pid, err := startChild()
	if err != nil {
		return err
	}
	return sys(unix.SYS_WAIT4, uintptr(pid))
}

func blockWaitid(*program, int, time.Duration) error {
	pid, err := startChild()
	if err != nil {
		return err
	}
	return sys(unix.SYS_WAITID, unix.P_PID, uintptr(pid), 0, unix.WEXITED)
}
