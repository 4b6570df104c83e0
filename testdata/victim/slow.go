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

// Times returns how often a test repeats what it would do n times on a real machine: an even number, at least
// two, as what goes there also comes back.
func Times(n int) int {
	if Slow() == 1 {
		return n
	}
	return min(n, max(2, n/Slow()&^1))
}
