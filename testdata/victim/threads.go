package victim

import (
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func idle(p *program) {
	p.ready()
	<-p.stop
}

// threads runs N threads, each of which sleeps, does I/O, computes, and checks.
func threads(p *program) {
	n := p.number(8)
	if p.has("+onefull") {
		p.limitTable(true)
	}
	var set, done sync.WaitGroup
	for i := range n {
		set.Add(1)
		done.Go(func() {
			restore := ownThread()
			if p.has("+onenocap") && i == n-1 {
				p.must("capset", dropCapabilities())
			}
			if (p.has("+ownfiles") || p.has("+onefull")) && i == n-1 {
				p.must("unshare", unix.Unshare(unix.CLONE_FILES))
			}
			var pipe [2]int
			p.must("pipe", unix.Pipe2(pipe[:], unix.O_CLOEXEC))
			if p.has("+onefull") && i == n-1 {
				p.fill()
			}
			set.Done()
			p.work(i, pipe)
			p.checkMask(restore)
		})
	}
	set.Wait()
	p.ready()
	done.Wait()
}

// ownMask is the mask of threads whose calls must not see a signal, not even the Go runtime's own:
// all but those of job control, which programs seldom block. With +all, all of them.
var ownMask = unix.Sigset_t{Val: [16]uint64{^jobControl}}

const jobControl = uint64(1<<(unix.SIGCONT-1) | 1<<(unix.SIGTSTP-1) | 1<<(unix.SIGTTIN-1) | 1<<(unix.SIGTTOU-1))

// ownThread locks the goroutine to a thread and blocks signals there. The
// thread ends with the goroutine. It returns the mask as the kernel has it.
func ownThread() unix.Sigset_t {
	runtime.LockOSThread()
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &ownMask, nil)
	var now unix.Sigset_t
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, nil, &now)
	return now
}

// checkMask checks that the thread's signal mask has not changed.
func (p *program) checkMask(want unix.Sigset_t) {
	var now unix.Sigset_t
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, nil, &now)
	if now != want {
		p.fault("signal mask %x became %x", want.Val[0], now.Val[0])
	}
}

// work is what one thread does until the end.
func (p *program) work(id int, pipe [2]int) {
	tid := unix.Gettid()
	pid := unix.Getpid()
	for round := uint64(1); !p.stopped(); round++ {
		p.echo(pipe, byte(round))
		if got := unix.Gettid(); got != tid {
			p.fault("thread %d: gettid says %d", tid, got)
		}
		if got := unix.Getpid(); got != pid {
			p.fault("thread %d: getpid says %d, not %d", tid, got, pid)
		}
		if sum := compute(round, 1000); sum != round*1000+499500 {
			p.fault("thread %d: computed %d", tid, sum)
		}
		p.nap(time.Duration(id%4) * time.Millisecond / 2)
	}
	unix.Close(pipe[0])
	unix.Close(pipe[1])
}

// echo sends a byte through a pipe.
func (p *program) echo(pipe [2]int, b byte) {
	buf := []byte{b}
	if n, err := unix.Write(pipe[1], buf); n != 1 || err != nil {
		p.fault("write to pipe: %d, %v", n, err)
		return
	}
	buf[0] = ^b
	if n, err := unix.Read(pipe[0], buf); n != 1 || err != nil || buf[0] != b {
		p.fault("read from pipe: %d, %v, %d instead of %d", n, err, buf[0], b)
	}
}

// compute adds up in registers.
//
//go:noinline
func compute(start uint64, n int) uint64 {
	sum := uint64(0)
	for i := range n {
		sum += start + uint64(i)
	}
	return sum
}

// nap sleeps in nanosleep(2) and checks that it slept long enough.
func (p *program) nap(d time.Duration) {
	before := time.Now()
	ts := unix.NsecToTimespec(int64(d))
	if err := unix.Nanosleep(&ts, nil); err != nil {
		p.fault("nanosleep: %v", err)
	}
	if slept := time.Since(before); slept < d {
		p.fault("nanosleep of %v took %v", d, slept)
	}
}

// churn makes threads and lets them end, without pause.
func churn(p *program) {
	var done sync.WaitGroup
	for range p.number(4) {
		done.Go(func() {
			for !p.stopped() {
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					ownThread() // never unlocked: the thread ends
					p.nap(100 * time.Microsecond)
				}()
				<-ended
			}
		})
	}
	p.ready()
	done.Wait()
}
