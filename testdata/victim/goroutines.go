package victim

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func init() { kinds["goroutines"] = goroutines }

// goroutines is a Go program as they are: N pairs of goroutines that talk over sockets by the
// runtime's poller, timers, channels and the garbage collector. The threads are the runtime's, which
// sends itself signals to interrupt them.
func goroutines(p *program) {
	var done sync.WaitGroup
	for range p.number(16) {
		near, far, err := socketPair()
		p.must("socketpair", err)
		done.Go(func() {
			defer far.Close()
			if _, err := io.Copy(far, far); err != nil { // until the near end closes
				p.fault("echo: %v", err)
			}
		})
		done.Go(func() {
			defer near.Close()
			p.talk(near)
		})
	}
	done.Go(p.tick)
	done.Go(p.collect)
	p.ready()
	done.Wait()
}

// socketPair makes two connected sockets that the runtime polls.
func socketPair() (near, far net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		end, e := net.FileConn(f) // of its own
		ends[i], err = end, errors.Join(err, e, f.Close())
	}
	return ends[0], ends[1], err
}

// talk sends numbers and wants each back, now and then past a deadline on which nothing comes.
func (p *program) talk(c net.Conn) {
	for round := 0; !p.stopped(); round++ {
		sent, back := []byte{byte(round), byte(round >> 8)}, make([]byte, 2)
		if _, err := c.Write(sent); err != nil {
			p.fault("write to a socket: %v", err)
			return
		}
		if _, err := io.ReadFull(c, back); err != nil || [2]byte(back) != [2]byte(sent) {
			p.fault("read from a socket: %v instead of %v, %v", back, sent, err)
			return
		}
		if round%16 == 0 {
			const moment = 3 * time.Millisecond
			begin := time.Now()
			_ = c.SetReadDeadline(begin.Add(moment))
			_, err := c.Read(back)
			if took := time.Since(begin); !errors.Is(err, os.ErrDeadlineExceeded) || took < moment {
				p.fault("read with a deadline: %v after %v", err, took)
			}
			_ = c.SetReadDeadline(time.Time{})
		}
	}
}

// tick checks that no timer fires too early.
func (p *program) tick() {
	for d := time.Millisecond; !p.stopped(); d = d%(8*time.Millisecond) + time.Millisecond {
		begin := time.Now()
		<-time.After(d)
		if took := time.Since(begin); took < d {
			p.fault("timer of %v fired after %v", d, took)
		}
	}
}

// collect makes garbage and has it collected: the world stops, by signals.
func (p *program) collect() {
	for !p.stopped() {
		list := make([][]byte, 64)
		for i := range list {
			list[i] = make([]byte, 4096)
			list[i][i] = byte(i)
		}
		runtime.GC()
		for i := range list {
			if list[i][i] != byte(i) {
				p.fault("memory: %d instead of %d", list[i][i], i)
			}
		}
	}
}
