package inject

import (
	"bytes"
	"math"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// When a call that the stop ends began, the kernel tells nobody; but since then the
// thread has slept, so it was when the thread last ran (se.exec_start of
// /proc/TID/sched), read before it is interrupted. One that was woken meanwhile for
// nothing sleeps longer by the time before that.
//
// That clock is one of the processor's, and does not count its interrupts. So it is
// compared with what it shows to the tracer on the same processor.

// pendingCall is a system call that a thread is in.
type pendingCall struct {
	nr     int64
	sp, ip uint64
}

// pendingOf is the call that a thread sleeps in, if that is one of eintrCalls. It is asked of every
// thread that is moved.
func pendingOf(tid int) (c pendingCall, args [6]uint64, ok bool) {
	var text [256]byte
	n := readInto(proc(tid, "syscall"), text[:])
	number, rest, _ := bytes.Cut(text[:n], []byte(" "))
	var err error
	if c.nr, err = strconv.ParseInt(string(number), 10, 64); err != nil {
		return c, args, false // it runs
	}
	if _, ok := eintrCalls[c.nr]; !ok {
		return c, args, false
	}
	fields := strings.Fields(string(rest))
	if len(fields) != len(args)+2 {
		return c, args, false
	}
	for i := range args {
		if args[i], err = strconv.ParseUint(fields[i], 0, 64); err != nil {
			return c, args, false
		}
	}
	c.sp, c.ip, ok = parseSyscall(string(text[:n]))
	return c, args, ok
}

// sleep is a call in which a thread sleeps: one with a timeout, or any where that is evidence.
type sleep struct {
	call    pendingCall
	timeout time.Duration // 0 for none, or one of which the kernel tells what remains
	began   time.Duration // by the clock of the processor cpu
	slept   int           // how often the thread has gone to sleep so far
	cpu     int
	seen    time.Duration // when it was read, by CLOCK_MONOTONIC
}

// sleepOf looks whether a thread sleeps in such a call, one that the stop will end.
// Nil: no, or not known.
func (s *tracer) sleepOf(tid int) *sleep {
	call, args, ok := pendingOf(tid)
	if !ok {
		return nil
	}
	sl := &sleep{call: call}
	if _, noted := notedIn[call.nr]; !noted {
		t, _ := s.timeoutOf(tid, call.nr, &args)
		sl.timeout = t.time
	}
	if sl.timeout == 0 && !evidence {
		return nil
	}
	stat, err := readStat(tid)
	if err != nil || stat.state != 'S' {
		return nil
	}
	sl.cpu = stat.cpu
	if sl.began, sl.slept, ok = lastRan(tid); !ok {
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
	text, err := readFile(proc(tid, "sched"))
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

// clockBehind is by how much a processor's clock is behind CLOCK_MONOTONIC; it asks each once.
func (s *tracer) clockBehind(cpu int) (behind time.Duration, ok bool) {
	if behind, ok = s.behind[cpu]; ok {
		return behind, true
	}
	if behind, ok = clockBehind(cpu); ok {
		if s.behind == nil {
			s.behind = map[int]time.Duration{}
		}
		s.behind[cpu] = behind
	}
	return behind, ok
}

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
