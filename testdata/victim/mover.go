package victim

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

func init() {
	kinds["mover"] = mover
	// Only in an init function the main goroutine is sure to be on the first thread.
	if kind, _, _ := strings.Cut(os.Getenv(environment), " "); kind == "mover" {
		runtime.LockOSThread()
	}
}

// mover writes every line of its input to a file, with one write(2) from its
// first thread, and prints what write returned, as writer does. It has another
// thread besides, which +onenocap leaves without capabilities.
func mover(p *program) {
	ownThread()
	other := make(chan error)
	go func() {
		ownThread()
		if p.has("+onenocap") {
			other <- dropCapabilities()
		} else {
			other <- nil
		}
		select {}
	}()
	p.must("drop capabilities", <-other)
	fd, err := unix.Open(p.args[0], unix.O_WRONLY|unix.O_CLOEXEC, 0)
	p.must("open", err)
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		n, err := unix.Write(fd, append(lines.Bytes(), '\n'))
		if err != nil {
			fmt.Println("wrote", -1, unix.ErrnoName(err.(unix.Errno)))
			continue
		}
		fmt.Println("wrote", n)
	}
}
