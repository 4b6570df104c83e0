package victim

import (
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() { kinds["futex"] = futexes }

// Operations of futex(2), all FUTEX_PRIVATE_FLAG.
const (
	futexWaitPrivate       = 0 | 128
	futexWakePrivate       = 1 | 128
	futexWaitBitsetPrivate = 9 | 128
)

// futexWait sleeps while the word has a value. It may return without a reason, as in any program that
// waits so, but not with an error that none of them expects.
func futexWait(word *atomic.Uint32, value uint32) error {
	_, _, errno := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWaitPrivate, uintptr(value), 0, 0, 0)
	if errno != 0 && errno != unix.EAGAIN {
		return errno
	}
	return nil
}

// futexWaitUntil is futexWait up to a time of CLOCK_MONOTONIC: ETIMEDOUT then.
func futexWaitUntil(word *atomic.Uint32, value uint32, until unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWaitBitsetPrivate, uintptr(value),
		uintptr(unsafe.Pointer(&until)), 0, 0xffffffff)
	if errno != 0 && errno != unix.EAGAIN {
		return errno
	}
	return nil
}

func futexWakeOne(word *atomic.Uint32) {
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWakePrivate, 1, 0, 0, 0)
}

// A lock is a mutex as Rust's std has it: 0 free, 1 taken, 2 taken and waited for.
type lock struct{ word atomic.Uint32 }

func (l *lock) take() error {
	if l.word.CompareAndSwap(0, 1) {
		return nil
	}
	for l.word.Swap(2) != 0 {
		if err := futexWait(&l.word, 2); err != nil {
			return err
		}
	}
	return nil
}

func (l *lock) give() {
	if l.word.Swap(0) == 2 {
		futexWakeOne(&l.word)
	}
}

// A parker is a thread's token, as Rust's std has it: unpark gives it, park waits for it and takes it.
type parker struct{ word atomic.Uint32 }

const (
	parkerEmpty    = 0
	parkerNotified = 1
	parkerParked   = 2
)

// parkFor is how long a token may be on its way before it counts as lost.
const parkFor = 20 * time.Second

// park takes the token. ETIMEDOUT: it was lost, or the time has run out too early.
func (k *parker) park() error {
	if k.word.CompareAndSwap(parkerNotified, parkerEmpty) {
		return nil
	}
	if !k.word.CompareAndSwap(parkerEmpty, parkerParked) {
		k.word.Store(parkerEmpty) // it has just come
		return nil
	}
	for until := later(parkFor * time.Duration(Slow())); ; {
		if err := futexWaitUntil(&k.word, parkerParked, until); err != nil {
			return err
		}
		if k.word.CompareAndSwap(parkerNotified, parkerEmpty) {
			return nil
		}
	}
}

func (k *parker) unpark() {
	if k.word.Swap(parkerNotified) == parkerParked {
		futexWakeOne(&k.word)
	}
}

// later is a time of CLOCK_MONOTONIC.
func later(d time.Duration) unix.Timespec {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return unix.NsecToTimespec(now.Nano() + int64(d))
}

// futexes runs N threads in rings of eight that pass a token around, and count under one lock who has
// had it; besides, each now and then waits for a word that nobody wakes, and must do so long enough.
func futexes(p *program) {
	const ring = 8
	n := max(ring, p.number(32)/ring*ring)
	parkers := make([]parker, n)
	var all lock
	total, passed := 0, make([]int, n)
	var set, done sync.WaitGroup
	for i := range n {
		next := &parkers[i/ring*ring+(i+1)%ring]
		set.Add(1)
		done.Go(func() {
			mask := ownThread()
			set.Done()
			for {
				if err := parkers[i].park(); err != nil {
					p.fault("thread %d: park: %v", i, err)
					return
				}
				if p.stopped() {
					next.unpark() // that it may end too
					break
				}
				if err := all.take(); err != nil {
					p.fault("thread %d: lock: %v", i, err)
					return
				}
				total++
				all.give()
				if passed[i]++; passed[i]%64 == i%64 {
					p.waitInVain(i)
				}
				next.unpark()
			}
			p.checkMask(mask)
		})
	}
	set.Wait()
	for i := 0; i < n; i += ring {
		parkers[i].unpark()
	}
	p.ready()
	done.Wait()
	sum := 0
	for _, count := range passed {
		sum += count
	}
	if sum != total || total == 0 {
		p.fault("%d were counted where %d passed", total, sum)
	}
}

// waitInVain waits a moment for a word that nobody changes.
func (p *program) waitInVain(thread int) {
	const moment = 2 * time.Millisecond
	var word atomic.Uint32
	begin := time.Now()
	err := futexWaitUntil(&word, 0, later(moment))
	if took := time.Since(begin); err != unix.ETIMEDOUT || took < moment {
		p.fault("thread %d: futex for %v: %v after %v", thread, moment, err, took)
	}
}
