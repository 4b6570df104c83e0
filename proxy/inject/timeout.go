package inject

import (
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// An epoll_wait(2) or epoll_pwait(2) that a stop has ended with EINTR is made to
// go on with what remains of its timeout. When it began, the kernel tells
// nobody; but since then the thread has slept, so it was when the thread last
// ran (se.exec_start of /proc/TID/sched), read before it is seized. One that
// was woken meanwhile for nothing sleeps longer by the time before that.
//
// That clock is one of the processor's, and does not count its interrupts. So it is
// compared with what it shows to the tracer on the same processor.

// sleep is such a call of a thread.
type sleep struct {
	nr     int64
	sp, ip uint64
	began  time.Duration // by the clock of the processor cpu
	slept  int           // how often the thread has gone to sleep so far
	cpu    int
	seen   time.Duration // when it was read, by CLOCK_MONOTONIC

	dated    bool
	deadline time.Duration // by CLOCK_MONOTONIC, once dated
	resumed  bool          // the registers make it go on
}

// sleepOf looks whether a running thread is in such a call. Nil: no, or not known.
func sleepOf(tid int) *sleep {
	text, err := readFile(proc(tid, "syscall"))
	if err != nil {
		return nil
	}
	number, _, _ := strings.Cut(string(text), " ")
	nr, err := strconv.ParseInt(number, 10, 64)
	if err != nil || !millisecondCall(nr) {
		return nil
	}
	sl := &sleep{nr: nr}
	stat, err := readStat(tid)
	sl.cpu = stat.cpu
	var ok, began bool
	sl.sp, sl.ip, ok = parseSyscall(string(text))
	sl.began, sl.slept, began = lastRan(tid)
	if err != nil || stat.state != 'S' || !ok || !began {
		return nil
	}
	sl.seen = monotonic()
	return sl
}

// overtaken says whether a thread that has stopped has slept once more before: then it may be in
// a later call.
func (sl *sleep) overtaken(tid int) bool {
	_, slept, ok := lastRan(tid)
	return !ok || slept > sl.slept+1 // the stop counts, as soon as it is complete
}

// lastRan is when a thread that sleeps last ran, and how often it has gone to sleep.
func lastRan(tid int) (at time.Duration, slept int, ok bool) {
	text, err := os.ReadFile(proc(tid, "sched"))
	if err != nil {
		return 0, 0, false // a kernel without CONFIG_SCHED_DEBUG
	}
	found := 0
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); strings.TrimSpace(key) {
		case "se.exec_start":
			ms, err := strconv.ParseFloat(value, 64)
			if at = time.Duration(ms * float64(time.Millisecond)); err == nil {
				found++
			}
		case "nr_voluntary_switches":
			if slept, err = strconv.Atoi(value); err == nil {
				found++
			}
		}
	}
	return at, slept, found == 2
}

// monotonic is the time of CLOCK_MONOTONIC.
func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return time.Duration(ts.Nano())
}

// clockBehind is by how much a processor's clock is behind CLOCK_MONOTONIC.
func clockBehind(cpu int) (behind time.Duration, ok bool) {
	var before, only unix.CPUSet
	if unix.SchedGetaffinity(0, &before) != nil {
		return 0, false
	}
	only.Set(cpu)
	if unix.SchedSetaffinity(0, &only) != nil {
		return 0, false
	}
	defer func() { _ = unix.SchedSetaffinity(0, &before) }()
	// Whatever comes between the two clocks makes the answer too great, and a
	// timeout too long, never too short.
	behind = math.MaxInt64
	for range 2 {
		ts := unix.NsecToTimespec(1)
		_ = unix.Nanosleep(&ts, nil) // so that it has just begun to run
		ran, _, ok := lastRan(unix.Gettid())
		if !ok {
			return 0, false
		}
		behind = min(behind, monotonic()-ran)
	}
	return behind, true
}

// implausible is how long a timeout may be over while the call still sleeps: more, and the
// clocks are not what they are taken for.
const implausible = 100 * time.Millisecond

// resumeSleep makes the call of a stopped thread go on that the stop has ended,
// and says whether it changed the registers.
func (th *thread) resumeSleep() bool {
	sl, r := th.sleep, &th.regs
	if sl == nil || r.callNumber() != sl.nr || r.stack() != sl.sp || r.ip() != sl.ip || r.result() != -int64(unix.EINTR) {
		return false
	}
	ms := r.milliseconds()
	if ms <= 0 {
		return false
	}
	if !sl.dated {
		behind, ok := clockBehind(sl.cpu)
		if !ok {
			return false
		}
		began := min(sl.began+behind, sl.seen)
		if sl.overtaken(th.tid) {
			began = monotonic() // perhaps too long, but never too short
			sl.seen = began
		}
		sl.dated = true
		sl.deadline = began + time.Duration(ms)*time.Millisecond
		if sl.seen-sl.deadline > implausible {
			th.sleep = nil
			return false
		}
	}
	sl.resumed = true
	r.resumeWith(sl.remaining())
	return true
}

// remaining is what remains of the timeout, rounded up.
func (sl *sleep) remaining() int32 {
	left := max(sl.deadline-monotonic(), 0)
	return int32(min((left+time.Millisecond-1)/time.Millisecond, math.MaxInt32))
}

// refreshSleep takes from the timeout what the stop has lasted.
func (th *thread) refreshSleep() error {
	if th.sleep == nil || !th.sleep.resumed || th.regs.result() != erestartNoHand {
		return nil
	}
	th.regs.resumeWith(th.sleep.remaining())
	return ptraceSetRegs(th.tid, &th.regs)
}
