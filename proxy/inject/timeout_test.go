package inject

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"rcfs/testdata/victim"
)

// blockingCalls says of each call that sleeps how it fares when its thread is moved again and
// again: "" is that it neither answers nor ends before its time, and not later either.
var blockingCalls = map[string]string{
	"read": "", "write": "", "poll": "", "ppoll": "", "select": "", "futex": "",
	"epoll": "", "epoll2": "", "semop": "", "msgrcv": "", "sigwait": "",
	"recv": "", "accept": "", "connect": "", "io-events": "", "io-uring": "",
	"nanosleep": "", "clock": "", "poll-time": "", "ppoll-time": "", "select-time": "", "futex-time": "",
	"epoll-time":  "",
	"epoll2-time": "", "sem-time": "", "sig-time": "", "recv-time": "",
}

func TestBlockingCalls(t *testing.T) {
	eachWay(t, func(t *testing.T) {
		v := victim.Start(t, "blocked")
		// A call restarted in another ipc namespace would not find its semaphore.
		there, back := newNamespaces(t)[:1], home(t)[:1]
		for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
			require.NoError(t, move(t, v.Pid, there))
			time.Sleep(10 * time.Millisecond)
			require.NoError(t, move(t, v.Pid, back))
			time.Sleep(10 * time.Millisecond)
		}
		met := map[string]bool{}
		for _, fault := range v.Stop() {
			name, what, _ := strings.Cut(fault, ": ")
			want, known := blockingCalls[name]
			require.True(t, known && want != "", fault)
			if strings.HasPrefix(what, want) {
				met[name] = true
				continue
			}
			require.Regexp(t, "^returned after .* without a reason|^took .*, not", what, name)
		}
		for name, want := range blockingCalls {
			require.Equal(t, want != "", met[name], name)
		}
	})
}

// TestBlockingCallsInPeace moves nobody.
func TestBlockingCallsInPeace(t *testing.T) {
	v := victim.Start(t, "blocked")
	time.Sleep(400 * time.Millisecond)
	require.Empty(t, v.Stop())
}
