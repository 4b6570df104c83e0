package victim

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
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

// mover writes every line of its input to a file with one write(2), and prints
// what write returned, as writer does. The file is that of its argument, or for
// a line "@NAME TEXT" the one of that name beside it. It writes from its first
// thread, with +second from another one, and has both. The other one +onenocap
// leaves without capabilities.
func mover(p *program) {
	ownThread()
	ready := make(chan error)
	ended := make(chan struct{})
	go func() {
		ownThread()
		var err error
		if p.has("+onenocap") {
			err = dropCapabilities()
		}
		ready <- err
		if p.has("+second") {
			defer close(ended)
			p.moveItself()
			return
		}
		select {}
	}()
	p.must("drop capabilities", <-ready)
	if p.has("+vfork") {
		defer p.besideVfork()()
	}
	fmt.Println("ready")
	if p.has("+second") {
		<-ended
	} else {
		p.moveItself()
	}
}

func (p *program) moveItself() {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		path, text := p.args[0], lines.Text()
		if rest, ok := strings.CutPrefix(text, "@"); ok {
			var name string
			name, text, _ = strings.Cut(rest, " ")
			path = filepath.Join(filepath.Dir(path), name)
		}
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		p.must("open", err)
		n, err := unix.Write(fd, []byte(text+"\n"))
		unix.Close(fd)
		if err != nil {
			fmt.Println("wrote", -1, unix.ErrnoName(err.(unix.Errno)))
			continue
		}
		fmt.Println("wrote", n)
	}
}
