package victim

import (
	"os"
	"os/signal"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// signals sends itself signals and gets SIGCHLD and timer signals. SIGUSR1 is
// sent only after the last has arrived, so every one must arrive exactly once.
func signals(p *program) {
	usr := make(chan os.Signal, 100)
	signal.Notify(usr, unix.SIGUSR1)
	var children, alarms atomic.Int64
	others := make(chan os.Signal, 1000)
	signal.Notify(others, unix.SIGCHLD, unix.SIGALRM)
	go func() {
		for sig := range others {
			if sig == unix.SIGCHLD {
				children.Add(1)
			} else {
				alarms.Add(1)
			}
		}
	}()
	interval := unix.Itimerval{Interval: unix.NsecToTimeval(3e6), Value: unix.NsecToTimeval(3e6)}
	_, err := unix.Setitimer(unix.ITIMER_REAL, interval)
	p.must("setitimer", err)
	p.ready()
	sent, forks := 0, int64(0)
	for !p.stopped() {
		p.must("kill", unix.Kill(os.Getpid(), unix.SIGUSR1))
		sent++
		select {
		case <-usr:
		case <-time.After(20 * time.Second):
			p.fault("SIGUSR1 number %d was lost", sent)
		}
		if sent%16 == 0 {
			p.childSignal(&children, &forks)
		}
	}
	_, _ = unix.Setitimer(unix.ITIMER_REAL, unix.Itimerval{})
	time.Sleep(10 * time.Millisecond)
	if len(usr) != 0 {
		p.fault("%d SIGUSR1 came twice", len(usr))
	}
	if alarms.Load() == 0 && sent > 1000 {
		p.fault("no SIGALRM at all")
	}
}

// childSignal has a child end and expects its SIGCHLD, exactly one.
func (p *program) childSignal(children *atomic.Int64, forks *int64) {
	pid, errno := rawFork(uintptr(unix.SIGCHLD), 0)
	if errno != 0 {
		p.fault("fork: %v", errno)
		return
	}
	if _, err := unix.Wait4(int(pid), nil, 0, nil); err != nil {
		p.fault("wait: %v", err)
	}
	*forks++
	for range 20000 {
		if children.Load() == *forks {
			return
		}
		time.Sleep(time.Millisecond)
	}
	p.fault("%d SIGCHLD for %d children", children.Load(), *forks)
}
