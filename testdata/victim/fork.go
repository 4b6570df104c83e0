package victim

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawFork forks without the Go runtime's knowledge; the child exits with the
// code at once.
//
//go:nosplit
//go:norace
func rawFork(flags, code uintptr) (pid uintptr, errno unix.Errno) {
	pid, _, errno = unix.RawSyscall6(unix.SYS_CLONE, flags, 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		for {
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, code, 0, 0)
		}
	}
	return pid, errno
}

// forker forks and reaps.
func forker(p *program) {
	mask := ownThread()
	p.ready()
	for code := uintptr(0); !p.stopped(); code = (code + 1) % 128 {
		pid, errno := rawFork(uintptr(unix.SIGCHLD), code)
		if errno != 0 {
			p.fault("fork: %v", errno)
			continue
		}
		var status unix.WaitStatus
		got, err := unix.Wait4(int(pid), &status, 0, nil)
		if err != nil || got != int(pid) || status.ExitStatus() != int(code) {
			p.fault("wait for %d: %d, %v, status %#x", pid, got, err, status)
		}
	}
	p.checkMask(mask)
}

// spawner starts programs.
func spawner(p *program) {
	self, err := os.Executable()
	p.must("executable", err)
	p.ready()
	for !p.stopped() {
		child, err := os.StartProcess(self, []string{"exit"}, &os.ProcAttr{Env: []string{environment + "=exit"}})
		if err != nil {
			p.fault("start: %v", err)
			continue
		}
		if state, err := child.Wait(); err != nil || !state.Success() {
			p.fault("child: %v, %v", state, err)
		}
	}
}

// execer lives for a moment with several threads and then executes itself from
// one that is not the leader. It says ready once only.
func execer(p *program) {
	for range 3 {
		go func() {
			runtime.LockOSThread()
			select {}
		}()
	}
	again := strings.Contains(os.Getenv(environment), "again")
	if !again {
		fmt.Println("ready")
	}
	time.Sleep(2 * time.Millisecond)
	if polled, _ := unix.Poll([]unix.PollFd{{Fd: 0, Events: unix.POLLIN}}, 0); polled > 0 {
		return
	}
	self, err := os.Executable()
	p.must("executable", err)
	failed := make(chan error)
	go offLeader(func() {
		failed <- unix.Exec(self, []string{"execer"}, []string{environment + "=execer again"})
	})
	p.fault("exec: %v", <-failed)
}

// offLeader runs f in a thread that is not the thread group's leader.
func offLeader(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != os.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // elsewhere: the leader is taken
		f()
	}()
	<-done
}

// vfork waits in vfork(2), which nothing but a fatal signal interrupts, for a
// child that ends when standard input does, or with a line of input. After that
// it says "joined" and waits for the end of input as others do.
func vfork(p *program) {
	fmt.Println("ready")
	pid, errno := vforkReader(0)
	if errno != 0 {
		p.fault("vfork: %v", errno)
		return
	}
	var status unix.WaitStatus
	if got, err := unix.Wait4(int(pid), &status, 0, nil); err != nil || got != int(pid) || !status.Exited() {
		p.fault("wait for %d: %d, %v, status %#x", pid, got, err, status)
	}
	if status.ExitStatus() == sawLine {
		fmt.Println("joined")
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
}

// sawLine is how the child exits that has read a line.
const sawLine = 1

// vforkReader is vfork(2) with a child that reads a file to the end of a line or
// of all, and keeps no other one open. The child has memory of its own (no
// CLONE_VM): ours would be in the way.
//
//go:nosplit
//go:norace
func vforkReader(file uintptr) (pid uintptr, errno unix.Errno) {
	pid, _, errno = unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_VFORK|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_CLOSE_RANGE, file+1, uintptr(^uint32(0)), 0)
		if file > 0 {
			_, _, _ = unix.RawSyscall(unix.SYS_CLOSE_RANGE, 0, file-1, 0)
		}
		var b byte
		for {
			n, _, _ := unix.RawSyscall(unix.SYS_READ, file, uintptr(unsafe.Pointer(&b)), 1)
			if n != 1 {
				_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
			}
			if b == '\n' {
				_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, sawLine, 0, 0)
			}
		}
	}
	return pid, errno
}

// besideVfork has a thread wait in vfork(2) until end is called.
func (p *program) besideVfork() (end func()) {
	// The runtime does not know that the thread waits.
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	debug.SetGCPercent(-1)
	var pipe [2]int
	p.must("pipe", unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	var waits sync.WaitGroup
	waits.Go(func() {
		ownThread()
		pid, errno := vforkReader(uintptr(pipe[0]))
		if errno != 0 {
			p.fault("vfork: %v", errno)
			return
		}
		var status unix.WaitStatus
		if _, err := unix.Wait4(int(pid), &status, 0, nil); err != nil || status.ExitStatus() != 0 {
			p.fault("wait for %d: %v, status %#x", pid, err, status)
		}
	})
	return func() {
		unix.Close(pipe[1])
		waits.Wait()
	}
}
