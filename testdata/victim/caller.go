package victim

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() { kinds["caller"] = caller }

// caller makes for every line of input the endless call that it names, in one thread, and prints "in"
// before it and what it has answered after it. SIGUSR1 has a handler that ends calls. The thread
// blocks it, as all others, but lets it come in the call: those that take a mask are given one.
// It says the thread's id first, after ready.
func caller(p *program) {
	signal.Notify(make(chan os.Signal, 1), unix.SIGUSR1)
	p.must("sigaction", endCalls(unix.SIGUSR1))
	ownThread()
	usr1 := unix.Sigset_t{Val: [16]uint64{usr1}}
	fmt.Println("ready")
	fmt.Println(unix.Gettid())
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		name := lines.Text()
		var quit [2]int
		p.must("pipe", unix.Pipe2(quit[:], unix.O_CLOEXEC))
		fmt.Println("in")
		var err error
		if run := maskedCalls[name]; run != nil {
			err = run(quit[0])
		} else {
			c := calls[name]
			_ = unix.PthreadSigmask(unix.SIG_UNBLOCK, &usr1, nil)
			err = c.run(p, quit[0], 0)
			_ = unix.PthreadSigmask(unix.SIG_BLOCK, &usr1, nil)
		}
		fmt.Println(err)
		unix.Close(quit[0])
		unix.Close(quit[1])
	}
	p.removeIPC()
}

const usr1 = uint64(1) << (unix.SIGUSR1 - 1)

// allButUSR1 is the mask in a call, maskInMemory that of a call with too many arguments.
var (
	allButUSR1   = ^usr1
	maskInMemory = struct{ mask, size uintptr }{uintptr(unsafe.Pointer(&allButUSR1)), maskSize}
)

const maskSize = 8

// maskedCalls are calls with a mask.
var maskedCalls = map[string]func(quit int) error{
	"ppoll": func(quit int) error {
		fds := unix.PollFd{Fd: int32(quit), Events: unix.POLLIN}
		return sys(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds)), 1, 0, uintptr(unsafe.Pointer(&allButUSR1)), maskSize)
	},
	"pselect": func(quit int) error {
		var set unix.FdSet
		set.Set(quit)
		return sys(unix.SYS_PSELECT6, uintptr(quit)+1, uintptr(unsafe.Pointer(&set)), 0, 0, 0, uintptr(unsafe.Pointer(&maskInMemory)))
	},
	"sigsuspend": func(int) error {
		return sys(unix.SYS_RT_SIGSUSPEND, uintptr(unsafe.Pointer(&allButUSR1)), maskSize)
	},
	"epoll": func(quit int) error {
		return waitMasked(quit, unix.SYS_EPOLL_PWAIT, ^uintptr(0))
	},
	"epoll2": func(quit int) error {
		return waitMasked(quit, unix.SYS_EPOLL_PWAIT2, 0)
	},
	"io-pevents": func(int) error {
		var context uintptr
		if err := sys(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&context))); err != nil {
			return err
		}
		defer func() { _ = sys(unix.SYS_IO_DESTROY, context) }()
		var event [4]uint64
		return sys(unix.SYS_IO_PGETEVENTS, context, 1, 1, uintptr(unsafe.Pointer(&event)), 0, uintptr(unsafe.Pointer(&maskInMemory)))
	},
}

func waitMasked(quit int, nr, timeout uintptr) error {
	ep, err := newEpoll(quit, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ep)
	var event unix.EpollEvent
	return sys(nr, uintptr(ep), uintptr(unsafe.Pointer(&event)), 1, timeout, uintptr(unsafe.Pointer(&allButUSR1)), maskSize)
}

// endCalls takes SA_RESTART from a signal's action, which the Go runtime gives to all.
func endCalls(sig unix.Signal) error {
	const restart = 0x10000000
	var action [4]uint64 // handler, flags, restorer, mask
	if err := sys(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&action)), maskSize); err != nil {
		return err
	}
	action[1] &^= restart
	return sys(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, maskSize)
}
