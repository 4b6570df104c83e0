package victim

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// call is a system call that blocks. The endless ones are ended by the caller's close of
// the pipe or a futex wake.
type call struct {
	// timeout is how long the call must take at least, 0 for an endless one.
	timeout time.Duration
	// ticks says that it counts its time in ticks of the kernel, from the last one. An emulated machine
	// loses some, and makes up for them all at once.
	ticks bool
	// answer is what it then answers; 0 for no error.
	answer unix.Errno
	// stays says that nothing can end it: the victim ends without it.
	stays bool
	// run makes the call once. quit is the read end of a pipe on which the
	// end is announced; it is the only thing an endless call waits for.
	run func(p *program, quit int, timeout time.Duration) error
}

const blockedFor = 150 * time.Millisecond

// endlessCall, stayingCall, timedCall and tickedCall make calls.
func endlessCall(run func(*program, int, time.Duration) error) call { return call{run: run} }

func stayingCall(run func(*program, int, time.Duration) error) call {
	return call{stays: true, run: run}
}

// end is what it answers at its end.
func (c *call) end() error {
	if c.answer == 0 {
		return nil
	}
	return c.answer
}

func timedCall(answer unix.Errno, run func(*program, int, time.Duration) error) call {
	return call{timeout: blockedFor, answer: answer, run: run}
}

func tickedCall(answer unix.Errno, run func(*program, int, time.Duration) error) call {
	return call{timeout: blockedFor, ticks: true, answer: answer, run: run}
}

// calls are the calls of kind blocked, by name.
var calls = map[string]call{
	// Sleeps.
	"nanosleep": timedCall(0, blockNanosleep),
	"clock":     timedCall(0, blockClockNanosleep),
	"clock-abs": timedCall(0, blockClockAbsolute),

	// Waits for one of several descriptors.
	"poll":            endlessCall(blockPoll),
	"ppoll":           endlessCall(blockPpoll),
	"select":          endlessCall(blockSelect),
	"epoll":           endlessCall(blockEpoll),
	"epoll2":          endlessCall(blockEpoll2),
	"poll-time":       timedCall(0, blockPoll),
	"ppoll-time":      timedCall(0, blockPpoll),
	"ppoll-readonly":  timedCall(0, blockPpollReadOnly),
	"select-time":     timedCall(0, blockSelect),
	"select-old":      timedCall(0, blockOldSelect),
	"select-readonly": timedCall(0, blockSelectReadOnly),
	"epoll-time":      timedCall(0, blockEpoll),
	"epoll2-time":     timedCall(0, blockEpoll2),
	"io-events":       stayingCall(blockGetevents),
	"io-events-time":  timedCall(0, blockGetevents),
	"io-pevents-time": timedCall(0, blockPgetevents),
	"io-uring":        stayingCall(blockUring),
	"io-uring-time":   timedCall(unix.ETIME, blockUring),
	"io-uring-abs":    timedCall(unix.ETIME, blockUringAbsolute),

	// Futexes.
	"futex":        endlessCall(blockFutex),
	"futex-time":   timedCall(unix.ETIMEDOUT, blockFutex),
	"futex-abs":    timedCall(unix.ETIMEDOUT, blockFutexAbsolute),
	"futex-pi":     stayingCall(blockFutexPI),
	"futex-pi-abs": timedCall(unix.ETIMEDOUT, blockFutexPI),
	"futex-waitv":  timedCall(unix.ETIMEDOUT, blockFutexWaitv),

	// Signals and children.
	"pause":      stayingCall(blockPause),
	"sigsuspend": stayingCall(blockSigsuspend),
	"sigwait":    stayingCall(blockSigtimedwait),
	"sig-time":   timedCall(unix.EAGAIN, blockSigtimedwait),
	"wait4":      stayingCall(blockWait4),
	"waitid":     stayingCall(blockWaitid),

	// System V and POSIX messages, semaphores.
	"semop":        endlessCall(blockSemop),
	"sem-time":     timedCall(unix.EAGAIN, blockSemop),
	"msgrcv":       endlessCall(blockMsgrcv),
	"msgsnd":       endlessCall(blockMsgsnd),
	"mq-recv":      stayingCall(blockMqReceive),
	"mq-recv-time": timedCall(unix.ETIMEDOUT, blockMqReceive),
	"mq-send":      stayingCall(blockMqSend),
	"mq-send-time": timedCall(unix.ETIMEDOUT, blockMqSend),

	// Files.
	"read":      endlessCall(blockRead),
	"readv":     endlessCall(blockReadv),
	"write":     stayingCall(blockWrite),
	"eventfd":   stayingCall(blockEventfd),
	"timerfd":   timedCall(0, blockTimerfd),
	"signalfd":  stayingCall(blockSignalfd),
	"inotify":   stayingCall(blockInotify),
	"tty":       stayingCall(blockTTY),
	"fifo-open": stayingCall(blockOpenFifo),
	"flock":     stayingCall(blockFlock),
	"setlkw":    stayingCall(blockSetlkw),
	"ofd-lock":  stayingCall(blockOFDLock),
	"splice":    stayingCall(blockSplice),
	"tee":       stayingCall(blockTee),
	"sendfile":  stayingCall(blockSendfile),

	// Sockets.
	"accept":       stayingCall(blockAccept),
	"accept-time":  tickedCall(unix.EAGAIN, blockAccept),
	"connect":      stayingCall(blockConnect),
	"connect-time": tickedCall(unix.EAGAIN, blockConnect),
	"tcp-connect":  stayingCall(blockConnectTCP),
	"tcp-con-time": tickedCall(unix.EINPROGRESS, blockConnectTCP),
	"recv":         stayingCall(blockRecv),
	"recv-time":    tickedCall(unix.EAGAIN, blockRecv),
	"recvmsg-time": tickedCall(unix.EAGAIN, blockRecvmsg),
	"recvmmsg":     tickedCall(unix.EAGAIN, blockRecvmmsg),
	"read-time":    tickedCall(unix.EAGAIN, blockReadSocket),
	"splice-time":  tickedCall(unix.EAGAIN, blockSpliceSocket),
	"send":         stayingCall(blockSend),
	"send-time":    tickedCall(unix.EAGAIN, blockSend),
	"write-time":   tickedCall(unix.EAGAIN, blockWriteSocket),

	// Calls that are half done.
	"write-part":    stayingCall(blockWritePart),
	"send-part":     stayingCall(blockSendPart),
	"recv-part":     stayingCall(blockRecvPart),
	"sendfile-part": stayingCall(blockSendfilePart),
}

// Timed says whether a call of kind blocked ends by itself.
func Timed(name string) bool { return calls[name].timeout != 0 }

// errShort is what a call answers that is half done.
var errShort = errors.New("short count")

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
	if p.has("+vfork") {
		defer p.besideVfork()()
	}
	time.Sleep(time.Duration(20*Slow()) * time.Millisecond) // into the calls
	p.ready()
	<-p.stop
	unix.Close(quit[1])
	wakeFutex()
	p.removeIPC()
	done.Wait()
	if p.has("+report") {
		p.report(names)
	}
}

// runBlocked makes one call, and checks errno and that it has not ended before its time. Whether it has ended too late
// depends on the machine: the report tells.
func (p *program) runBlocked(name string, c call, quit int) {
	before := time.Now()
	err := c.run(p, quit, c.timeout)
	took := time.Since(before)
	if p.stopped() {
		return
	}
	p.note(name, took, err)
	least := c.timeout
	if c.ticks && Slow() > 1 {
		least /= 3
	}
	switch {
	case err != c.end():
		p.fault("%s: %v after %v", name, err, took)
	case c.timeout == 0:
		p.fault("%s: returned after %v without a reason", name, took)
	case took < least:
		p.fault("%s: took %v, not %v", name, took, c.timeout)
	default:
		return
	}
	time.Sleep(10 * time.Millisecond)
}

// note notes for the report what a call has answered.
func (p *program) note(name string, took time.Duration, err error) {
	result := "0"
	if err != nil {
		result = strings.ReplaceAll(err.Error(), " ", "_")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.noted == nil {
		p.noted = map[noted]span{}
	}
	key := noted{name, result}
	s, ok := p.noted[key]
	if !ok || took < s.least {
		s.least = took
	}
	s.most = max(s.most, took)
	s.times++
	p.noted[key] = s
}

// noted is a call and its answer, span how often it took how long.
type (
	noted struct{ name, result string }
	span  struct {
		times       int
		least, most time.Duration
	}
)

// report prints what has been noted, a line for each call and answer, and a line for
// each call that has not answered.
func (p *program) report(names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	answered := map[string]bool{}
	for key, s := range p.noted {
		answered[key.name] = true
		fmt.Printf("%s %s %s %d %v %v\n", ReportPrefix, key.name, key.result, s.times,
			s.least.Round(time.Millisecond/10), s.most.Round(time.Millisecond/10))
	}
	for _, name := range names {
		if !answered[name] {
			fmt.Printf("%s %s - 0 - -\n", ReportPrefix, name)
		}
	}
}

// ReportPrefix begins the lines of the report (+report).
const ReportPrefix = "report"

// sys makes a system call. Pointers are converted in the call itself, so that what they point to lives as long.
//
//go:uintptrescapes
func sys(nr uintptr, args ...uintptr) error {
	_, err := sysValue(nr, args...)
	return err
}

// sysValue makes a system call that returns something.
//
//go:uintptrescapes
func sysValue(nr uintptr, args ...uintptr) (int, error) {
	var a [6]uintptr
	copy(a[:], args)
	n, _, e := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if e != 0 {
		return -1, e
	}
	return int(n), nil
}

// timespec is a duration in memory, nil for none.
func timespec(d time.Duration) *unix.Timespec {
	if d == 0 {
		return nil
	}
	ts := unix.NsecToTimespec(int64(d))
	return &ts
}

// clockIn is the time in that long of a clock, nil for never.
func clockIn(clock int32, d time.Duration) *unix.Timespec {
	if d == 0 {
		return nil
	}
	var now unix.Timespec
	_ = unix.ClockGettime(clock, &now)
	return timespec(time.Duration(now.Nano()) + d)
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
