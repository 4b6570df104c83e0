package inject

import (
	"fmt"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// alarm ends the waits of one OS thread after a tick: waitid(2) has no timeout, a
// target may never stop, and to ask again and again costs more than the stop.
type alarm struct {
	timer int32
	made  bool
}

// tick is how long a wait lasts at most, in nanoseconds.
const tick = 1_000_000

// alarmSignal ends the waits. The Go runtime catches and ignores it, like all that nobody asks for.
const alarmSignal = unix.Signal(62)

// Flags of sigaction(2).
const (
	saNoCldStop = 0x00000001
	saRestart   = 0x10000000
)

// Kernel structures: include/uapi/asm-generic/siginfo.h, include/linux/signal_types.h.
type (
	sigevent struct {
		value         uint64
		signo, notify int32
		tid           int32
		_             [44]byte
	}
	sigaction struct {
		handler  uintptr
		flags    uint64
		restorer uintptr
		mask     uint64
	}
	itimerspec struct{ interval, value unix.Timespec }
)

// letInterrupt has the alarm's signal end a system call. The runtime installs its handlers so
// that calls are made again (SA_RESTART); this one signal is to be without.
var letInterrupt = sync.OnceValue(func() error {
	return changeAction(alarmSignal, func(flags uint64) uint64 { return flags &^ saRestart })
})

// ignoreStops spares this process a SIGCHLD at each stop of a tracee. That of an exit still comes.
var ignoreStops = sync.OnceValue(func() error {
	return changeAction(unix.SIGCHLD, func(flags uint64) uint64 { return flags | saNoCldStop })
})

// changeAction changes the flags of what a signal does, and nothing else of it.
func changeAction(signal unix.Signal, change func(flags uint64) uint64) error {
	var act sigaction
	call := func(act, old *sigaction) error {
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(signal),
			uintptr(unsafe.Pointer(act)), uintptr(unsafe.Pointer(old)), sigmaskSize, 0, 0)
		if errno != 0 {
			return fmt.Errorf("action of %v: %w", signal, errno)
		}
		return nil
	}
	if err := call(nil, &act); err != nil {
		return err
	}
	act.flags = change(act.flags)
	return call(&act, nil)
}

// make makes the timer of the calling OS thread.
func (a *alarm) make() error {
	if a.made {
		return nil
	}
	if err := letInterrupt(); err != nil {
		return err
	}
	const toThread = 4 // SIGEV_THREAD_ID
	event := sigevent{signo: int32(alarmSignal), notify: toThread, tid: int32(unix.Gettid())}
	if _, _, errno := unix.RawSyscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC,
		uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&a.timer))); errno != 0 {
		return fmt.Errorf("timer_create: %w", errno)
	}
	a.made = true
	return nil
}

func (a *alarm) close() {
	if a.made {
		_, _, _ = unix.RawSyscall(unix.SYS_TIMER_DELETE, uintptr(a.timer), 0, 0)
	}
}

// set has the alarm ring after a tick, and again after every other: one that comes before the wait
// has begun ends nothing. With 0 it is silent.
func (a *alarm) set(ns int64) {
	t := unix.NsecToTimespec(ns)
	spec := itimerspec{t, t}
	_, _, _ = unix.RawSyscall6(unix.SYS_TIMER_SETTIME, uintptr(a.timer), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
}

// stopOf is stopOf, but waits for the stop, a tick at most.
func (a *alarm) stopOf(tid int) (ev event, ok bool, err error) {
	if ev, ok, err = stopOf(tid); ok || err != nil {
		return ev, ok, err
	}
	if err := a.make(); err != nil {
		return ev, false, err
	}
	a.set(tick)
	info, err := waitid(syscall.Syscall6, unix.P_PID, tid, stops)
	a.set(0)
	if err == unix.EINTR {
		return ev, false, nil
	}
	return info.event(), err == nil, err
}
