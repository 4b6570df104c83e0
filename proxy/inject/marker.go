package inject

import (
	"fmt"
	"math/bits"
	"strconv"

	"golang.org/x/sys/unix"
)

// marker chooses the signal that marks the end of the blob: one that does
// nothing to the program when the tracer is dead and it is delivered. It is 0
// when the program catches every signal that might do.
func (s *tracer) marker(th *thread) (int, error) {
	const winch = uint64(1) << (unix.SIGWINCH - 1)
	if !s.asked {
		caught, ignored, err := dispositions(th.tid)
		if err != nil {
			return 0, err
		}
		ignored |= winch | uint64(1)<<(unix.SIGURG-1) | uint64(1)<<(unix.SIGCHLD-1)
		s.quiet = ignored &^ caught &^ unblockable &^ jobControl
		s.asked = true
	}
	for _, fit := range []uint64{s.quiet &^ th.mask, s.quiet} {
		switch {
		case fit&winch != 0:
			return int(unix.SIGWINCH), nil
		case fit != 0:
			return bits.TrailingZeros64(fit) + 1, nil
		}
	}
	return 0, nil
}

// jobControl are the signals that do something when they are sent, even to a
// process that ignores them (prepare_signal() in kernel/signal.c).
const jobControl = uint64(1)<<(unix.SIGCONT-1) | uint64(1)<<(unix.SIGTSTP-1) |
	uint64(1)<<(unix.SIGTTIN-1) | uint64(1)<<(unix.SIGTTOU-1)

// dispositions reads which signals a process catches and ignores.
func dispositions(tid int) (caught, ignored uint64, err error) {
	text, err := readFile(proc(tid, "status"))
	if err != nil {
		return 0, 0, fmt.Errorf("signals of thread %d: %w", tid, ErrGone)
	}
	for key, set := range map[string]*uint64{"SigCgt": &caught, "SigIgn": &ignored} {
		if *set, err = strconv.ParseUint(statusField(string(text), key), 16, 64); err != nil {
			return 0, 0, fmt.Errorf("signals of thread %d: %w", tid, err)
		}
	}
	return caught, ignored, nil
}
