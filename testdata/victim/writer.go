package victim

import (
	"bufio"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// writer writes N bytes to a file, for every line of input, with one write(2)
// in a thread of its own, and prints what write returned: "wrote N" or
// "wrote -1 EIO". It says the thread's id first, after ready.
func writer(p *program) {
	if len(p.args) != 2 {
		p.must("arguments", os.ErrInvalid)
	}
	size, err := strconv.Atoi(p.args[1])
	p.must("argument", err)
	ownThread()
	fd, err := unix.Open(p.args[0], unix.O_WRONLY|unix.O_CLOEXEC, 0)
	p.must("open", err)
	fmt.Println("ready")
	fmt.Println(unix.Gettid())
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		n, err := unix.Write(fd, make([]byte, size))
		if err != nil {
			fmt.Println("wrote", -1, unix.ErrnoName(err.(unix.Errno)))
			continue
		}
		fmt.Println("wrote", n)
	}
}
