package victim

import (
	"os"
	"strconv"
)

// slowVariable says how many times slower than a real machine this one is: an emulated one.
const slowVariable = "RCFS_TEST_SLOW"

// Slow returns that, 1 on a real machine.
func Slow() int {
	n, err := strconv.Atoi(os.Getenv(slowVariable))
	if err != nil || n < 1 {
		return 1
	}
	return n
}

// Times returns how often a test repeats what it would do n times on a real machine, at least
// twice: there and back.
func Times(n int) int { return min(n, max(2, n/Slow())) }
