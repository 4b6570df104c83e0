package inject

import (
	"fmt"
	"math/bits"
	"strconv"

	"golang.org/x/sys/unix"
)

// marker chooses the signal that marks the end of the blob: one that does
// nothing to the program when the tracer is dead and it is delivered. It is 0
// when no signal will do.
func (s *tracer) marker(th *thread) (int, error) {
	if !s.asked {
		sets, err := signalSets(th.tid)
		if err != nil {
			return 0, err
		}
		nothing := sets["SigIgn"] | winch | uint64(1)<<(unix.SIGURG-1) | uint64(1)<<(unix.SIGCHLD-1)
		s.quiet = nothing &^ sets["SigCgt"] &^ unblockable &^ jobControl
		s.mayContinue = sets["SigCgt"]&cont == 0 && sets["ShdPnd"]&stopping == 0
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
	if s.mayContinue && !s.jobControlled() {
		return int(unix.SIGCONT), nil
	}
	return 0, nil
}

// jobControlled says whether a SIGCONT would change something: it ends a group stop, and takes
// from all threads the signals that would begin one (prepare_signal() in kernel/signal.c). A
// program that catches all signals otherwise, as any of Go does, mostly leaves it alone.
func (s *tracer) jobControlled() bool {
	for _, th := range s.threads {
		if th.groupStop || th.mask&(stopping|cont) != 0 {
			return true
		}
	}
	return false
}

const (
	winch = uint64(1) << (unix.SIGWINCH - 1)
	cont  = uint64(1) << (unix.SIGCONT - 1)
	// stopping are the signals that begin a group stop, but for SIGSTOP, which no mask holds.
	stopping = uint64(1)<<(unix.SIGTSTP-1) | uint64(1)<<(unix.SIGTTIN-1) | uint64(1)<<(unix.SIGTTOU-1)
	// jobControl are the signals that do something when they are sent, even to a process that
	// ignores them.
	jobControl = cont | stopping
)

// catches says whether a process has a handler for a signal.
func catches(tid, sig int) bool {
	sets, err := signalSets(tid)
	return err == nil && sets["SigCgt"]&(uint64(1)<<(sig-1)) != 0
}

// signalSets reads which signals a process catches, ignores, and has waiting.
func signalSets(tid int) (map[string]uint64, error) {
	text, err := readFile(proc(tid, "status"))
	if err != nil {
		return nil, fmt.Errorf("signals of thread %d: %w", tid, ErrGone)
	}
	sets := map[string]uint64{}
	for _, key := range []string{"SigCgt", "SigIgn", "ShdPnd"} {
		if sets[key], err = strconv.ParseUint(statusField(string(text), key), 16, 64); err != nil {
			return nil, fmt.Errorf("signals of thread %d: %w", tid, err)
		}
	}
	return sets, nil
}
