package victim

import (
	"bufio"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// writer writes 5 bytes to a file, for every line of input, with one write(2)
// in a thread of its own, and prints what write returned: "wrote 5" or
// "wrote -1 EIO". It says the thread's id first, after ready.
func writer(p *program) {
	if len(p.args) != 1 {
		p.must("argument", os.ErrInvalid)
	}
	ownThread()
	fd, err := unix.Open(p.args[0], unix.O_WRONLY|unix.O_CLOEXEC, 0)
	p.must("open", err)
	fmt.Println("ready")
	fmt.Println(unix.Gettid())
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		n, err := unix.Write(fd, []byte("hello"))
		if err != nil {
			fmt.Println("wrote", -1, unix.ErrnoName(err.(unix.Errno)))
			continue
		}
		fmt.Println("wrote", n)
	}
}
