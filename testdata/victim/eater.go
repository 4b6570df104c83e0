package victim

import (
	"bufio"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// eater takes as many MiB of memory as each line of input says, keeps them, and says "has N" of all
// it has.
func eater(p *program) {
	fmt.Println("ready")
	has := 0
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		n, err := strconv.Atoi(lines.Text())
		p.must("number", err)
		b, err := unix.Mmap(-1, 0, n<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		p.must("mmap", err)
		for i := 0; i < len(b); i += os.Getpagesize() {
			b[i] = 1
		}
		has += n
		fmt.Println("has", has)
	}
}
