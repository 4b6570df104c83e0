package victim

import (
	"time"

	"golang.org/x/sys/unix"
)

// blockPause is what pause(3) is where there is no pause(2).
func blockPause(*program, int, time.Duration) error { return sys(unix.SYS_PPOLL) }

// There is neither poll(2) nor select(2): the libraries use these.
var blockPoll, blockOldSelect = blockPpoll, blockSelect
