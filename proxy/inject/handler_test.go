package inject

import (
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/victim"
)

// TestHandlersInterrupt sends a signal with a handler to a thread in a call, before, in or after a move, and
// the call answers EINTR.
func TestHandlersInterrupt(t *testing.T) {
	calls := []string{"ppoll", "pselect", "sigsuspend", "epoll", "epoll2", "io-pevents"}
	if evidence {
		// Without a mask in the call the kernel runs a handler that comes between two looks on its way out,
		// and then makes the call again. There is no such moment where the thread is led into the call.
		calls = append(calls, "semop", "sigwait", "msgrcv", "io-events", "io-uring",
			"read", "futex", "accept", "recv", "fifo-open", "flock")
	}
	eachWay(t, func(t *testing.T) {
		v := victim.Start(t, "caller")
		tid, err := strconv.Atoi(v.Hear())
		require.NoError(t, err)
		targets := [][]Namespace{newNamespaces(t)[:1], home(t)[:1]}
		moved := make(chan time.Duration)
		took, n := time.Millisecond, 0
		for range victim.Times(20) {
			for _, name := range calls {
				v.Say(name)
				require.Equal(t, "in", v.Hear())
				requireAsleep(t, tid)
				n++
				go func() {
					start := time.Now()
					if err := moveQuietly(v.Pid, targets[n%2]); err != nil {
						t.Error("move:", err)
					}
					moved <- time.Since(start)
				}()
				delay := rand.N(2 * took)
				time.Sleep(delay)
				require.NoError(t, unix.Tgkill(v.Pid, tid, unix.SIGUSR1))
				took = <-moved
				require.Empty(t, eventually(func() string {
					if answer := v.Heard(); answer != unix.EINTR.Error() {
						return strconv.Quote(answer)
					}
					return ""
				}), "answer of %s: signal after %v, move took %v", name, delay, took)
			}
		}
		require.Empty(t, v.Stop())
	})
}

// requireAsleep waits until a thread has slept in a call for a while.
func requireAsleep(t *testing.T, tid int) {
	t.Helper()
	end := time.Now().Add(patience)
	for last, same := "", 0; same < 3; time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(end), "thread %d does not sleep", tid)
		text, err := readFile(proc(tid, "syscall"))
		require.NoError(t, err)
		now := string(text)
		if same++; now != last || now == "running\n" {
			last, same = now, 0
		}
	}
}
