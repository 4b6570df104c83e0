package victim

import (
	"maps"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call is a system call that blocks. It returns what it must when nothing
// disturbs it, or an error. The endless ones are ended by the caller's close of
// the pipe or a futex wake.
type call struct {
	// timeout is how long the call must take at least, 0 for an endless one.
	timeout time.Duration
	// stays says that nothing can end it: the victim ends without it.
	stays bool
	// run makes the call once. quit is the read end of a pipe on which the
	// end is announced; it is the only thing an endless call waits for.
	run func(p *program, quit int, timeout time.Duration) error
}

const blockedFor = 150 * time.Millisecond

// calls are the calls of kind blocked, by name.
var calls = map[string]call{
	"read":        {run: blockRead},
	"write":       {stays: true, run: blockWrite},
	"poll":        {run: blockPoll},
	"ppoll":       {run: blockPpoll},
	"select":      {run: blockSelect},
	"futex":       {run: blockFutex},
	"epoll":       {run: blockEpoll},
	"epoll2":      {run: blockEpoll2},
	"semop":       {run: blockSemop},
	"msgrcv":      {run: blockMsgrcv},
	"sigwait":     {stays: true, run: blockSigtimedwait},
	"recv":        {stays: true, run: blockRecv},
	"accept":      {stays: true, run: blockAccept},
	"connect":     {stays: true, run: blockConnect},
	"io-events":   {stays: true, run: blockGetevents},
	"io-uring":    {stays: true, run: blockUring},
	"nanosleep":   {timeout: blockedFor, run: blockNanosleep},
	"clock":       {timeout: blockedFor, run: blockClockNanosleep},
	"poll-time":   {timeout: blockedFor, run: blockPoll},
	"ppoll-time":  {timeout: blockedFor, run: blockPpoll},
	"select-time": {timeout: blockedFor, run: blockSelect},
	"futex-time":  {timeout: blockedFor, run: blockFutex},
	"epoll-time":  {timeout: blockedFor, run: blockEpoll},
	"epoll2-time": {timeout: blockedFor, run: blockEpoll2},
	"sem-time":    {timeout: blockedFor, run: blockSemop},
	"sig-time":    {timeout: blockedFor, run: blockSigtimedwait},
	"recv-time":   {timeout: blockedFor, run: blockRecv},
}

// blocked runs each call named, or all, in a thread of its own.
func blocked(p *program) {
	names := p.args
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(calls))
	}
	var quit [2]int
	p.must("pipe", unix.Pipe2(quit[:], unix.O_CLOEXEC))
	var set, done sync.WaitGroup
	for _, name := range names {
		c, ok := calls[name]
		if !ok {
			p.must("call "+name, unix.EINVAL)
		}
		set.Add(1)
		stay := func() {
			mask := ownThread()
			set.Done()
			for !p.stopped() {
				p.runBlocked(name, c, quit[0])
			}
			p.checkMask(mask)
		}
		if c.stays {
			go stay()
		} else {
			done.Go(stay)
		}
	}
	set.Wait()
	time.Sleep(20 * time.Millisecond) // into the calls
	p.ready()
	<-p.stop
	unix.Close(quit[1])
	wakeFutex()
	p.removeIPC()
	done.Wait()
}

// runBlocked makes one call and checks errno and duration.
func (p *program) runBlocked(name string, c call, quit int) {
	before := time.Now()
	err := c.run(p, quit, c.timeout)
	took := time.Since(before)
	if err != nil && !(p.stopped() && (err == unix.EIDRM || err == unix.EINVAL)) {
		p.fault("%s: %v after %v", name, err, took)
	}
	if c.timeout == 0 && !p.stopped() {
		p.fault("%s: returned after %v without a reason", name, took)
		time.Sleep(10 * time.Millisecond)
	}
	if c.timeout != 0 && took < c.timeout && !p.stopped() {
		p.fault("%s: took %v, not %v", name, took, c.timeout)
	}
	// A call that was restarted with its whole timeout instead of what
	// remained takes longer with every move; a busy machine adds something, an emulated one
	// much.
	if c.timeout != 0 && took > c.timeout*8*time.Duration(Slow()) {
		p.fault("%s: took %v, not %v", name, took, c.timeout)
	}
}

// errno turns the result of a raw call into an error.
func errno(n uintptr, e unix.Errno) error {
	if e != 0 {
		return e
	}
	return nil
}

func timespec(d time.Duration) unsafe.Pointer {
	if d == 0 {
		return nil
	}
	ts := unix.NsecToTimespec(int64(d))
	return unsafe.Pointer(&ts)
}

func milliseconds(d time.Duration) uintptr {
	if d == 0 {
		return ^uintptr(0)
	}
	return uintptr(d / time.Millisecond)
}

// endless is the descriptor to wait for: none when the time shall run out.
func endless(quit int, timeout time.Duration) int {
	if timeout != 0 {
		return -1
	}
	return quit
}

func blockRead(_ *program, quit int, _ time.Duration) error {
	var b byte
	n, _, e := unix.Syscall(unix.SYS_READ, uintptr(quit), uintptr(unsafe.Pointer(&b)), 1)
	return errno(n, e)
}

func blockPoll(_ *program, quit int, timeout time.Duration) error {
	ms := -1
	if timeout != 0 {
		ms = int(timeout / time.Millisecond)
	}
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(endless(quit, timeout)), Events: unix.POLLIN}}, ms)
	return err
}

func blockPpoll(_ *program, quit int, timeout time.Duration) error {
	fds := unix.PollFd{Fd: int32(endless(quit, timeout)), Events: unix.POLLIN}
	n, _, e := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds)), 1, uintptr(timespec(timeout)), 0, 0, 0)
	return errno(n, e)
}

func blockSelect(_ *program, quit int, timeout time.Duration) error {
	var set unix.FdSet
	if timeout == 0 {
		set.Set(quit)
	}
	n, _, e := unix.Syscall6(unix.SYS_PSELECT6, uintptr(quit)+1, uintptr(unsafe.Pointer(&set)), 0, 0, uintptr(timespec(timeout)), 0)
	return errno(n, e)
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

func blockEpoll2(_ *program, quit int, timeout time.Duration) error {
	ep, err := newEpoll(quit, timeout)
	if err != nil {
		return err
	}
	defer unix.Close(ep)
	var event unix.EpollEvent
	n, _, e := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(ep), uintptr(unsafe.Pointer(&event)), 1, uintptr(timespec(timeout)), 0, 0)
	return errno(n, e)
}

func blockEpoll(_ *program, quit int, timeout time.Duration) error {
	ep, err := newEpoll(quit, timeout)
	if err != nil {
		return err
	}
	defer unix.Close(ep)
	var event unix.EpollEvent
	n, _, e := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(&event)), 1, milliseconds(timeout), 0, 0)
	return errno(n, e)
}

var futexWord uint32

func blockFutex(p *program, _ int, timeout time.Duration) error {
	const wait, private = 0, 128
	word := &futexWord
	if timeout != 0 {
		word = new(uint32)
	}
	n, _, e := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), wait|private, 0, uintptr(timespec(timeout)), 0, 0)
	if e == unix.ETIMEDOUT && timeout != 0 || e == unix.EAGAIN && p.stopped() {
		return nil
	}
	return errno(n, e)
}

// wakeFutex ends the endless futex waits.
func wakeFutex() {
	const wake, private = 1, 128
	futexWord = 1
	for range 3 {
		_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&futexWord)), wake|private, 100, 0, 0, 0)
		time.Sleep(time.Millisecond)
	}
}

func blockNanosleep(_ *program, _ int, timeout time.Duration) error {
	n, _, e := unix.Syscall(unix.SYS_NANOSLEEP, uintptr(timespec(timeout)), 0, 0)
	return errno(n, e)
}

func blockClockNanosleep(_ *program, _ int, timeout time.Duration) error {
	n, _, e := unix.Syscall6(unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_MONOTONIC, 0, uintptr(timespec(timeout)), 0, 0, 0)
	return errno(n, e)
}

func blockSigtimedwait(_ *program, _ int, timeout time.Duration) error {
	set := uint64(1) << (uint(unix.SIGUSR2) - 1)
	n, _, e := unix.Syscall6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&set)), 0, uintptr(timespec(timeout)), 8, 0, 0)
	if e == unix.EAGAIN {
		return nil
	}
	return errno(n, e)
}
