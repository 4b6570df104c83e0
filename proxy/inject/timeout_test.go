package inject

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/victim"
)

// blockingCalls says of each call that sleeps how it fares when its thread is moved again and
// again: "" is that it neither answers nor ends before its time, and not later either. The
// others have what they may do instead, for the reasons in doc.go.
var blockingCalls = map[string]string{
	"nanosleep": "", "clock": "", "clock-abs": "",

	"poll": "", "ppoll": "", "select": "", "epoll": "", "epoll2": "",
	"poll-time": "", "ppoll-time": "", "ppoll-readonly": "", "select-time": "", "select-old": "", "epoll-time": "", "epoll2-time": "",
	"io-events": "", "io-events-time": "", "io-pevents-time": "",
	"io-uring": "", "io-uring-time": "", "io-uring-abs": "",

	"futex": "", "futex-time": "", "futex-abs": "", "futex-pi": "", "futex-pi-abs": "", "futex-waitv": "",

	"pause": "", "sigsuspend": "", "sigwait": "", "sig-time": "", "wait4": "", "waitid": "",

	"semop": "", "sem-time": "", "msgrcv": "", "msgsnd": "",
	"mq-recv": "", "mq-recv-time": "", "mq-send": "", "mq-send-time": "",

	"read": "", "readv": "", "write": "", "eventfd": "", "timerfd": "", "signalfd": "", "inotify": "", "tty": "",
	"fifo-open": "", "flock": "", "setlkw": "", "ofd-lock": "", "splice": "", "tee": "", "sendfile": "",

	"accept": "", "accept-time": "", "connect": "", "connect-time": "", "tcp-connect": "",
	"recv": "", "recv-time": "", "recvmsg-time": "", "recvmmsg": "", "read-time": "", "splice-time": "",
	"send": "", "send-time": "", "write-time": "",

	// The kernel cannot note what remains of its time, nor can anybody give its answer.
	"select-readonly": late,

	// When it ends by itself, before anybody has ended it in time, it has been made twice.
	"tcp-con-time": "operation already in progress",

	// Half done: the program learns how much.
	"write-part":    "short count",
	"send-part":     "short count",
	"recv-part":     "short count",
	"sendfile-part": "short count",
}

// late says that a call may end later.
const late = "later"

// exact are the calls that go on exactly.
func exact() (names []string) {
	for name, otherwise := range blockingCalls {
		if otherwise == "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// anywhere are those of them that find what they wait for in other ipc and net namespaces too.
func anywhere() []string {
	return slices.DeleteFunc(exact(), func(name string) bool {
		return strings.HasPrefix(name, "mq-") ||
			slices.Contains([]string{"semop", "sem-time", "msgrcv", "msgsnd",
				"connect", "connect-time", "tcp-connect"}, name)
	})
}

// TestBlockingCalls moves threads in all calls that sleep. With -test.v it prints how often each
// has answered what, and after how long at least and at most.
func TestBlockingCalls(t *testing.T) {
	eachWay(t, func(t *testing.T) {
		v := victim.Start(t, "blocked", "+report")
		// A call made again in another ipc or net namespace may not find its semaphore or address.
		there, back := newNamespaces(t)[:1], home(t)[:1]
		// First many moves in each call, then a few, after which the call ends by itself.
		for _, pause := range []time.Duration{10 * time.Millisecond, 100 * time.Millisecond} {
			for end := time.Now().Add(time.Second); time.Now().Before(end); {
				require.NoError(t, move(t, v.Pid, there))
				time.Sleep(pause)
				require.NoError(t, move(t, v.Pid, back))
				time.Sleep(pause)
			}
		}
		requireAsKnown(t, undisturbed(t, v.Stop()), true)
	})
}

// entering is how many calls may answer EINTR in a test where it takes evidence that a thread was in its call:
// those which the thread was just entering when it was stopped. Were none made again, it would be more with
// every move.
const entering = 10

// undisturbed takes those from what a victim says of its calls.
func undisturbed(t *testing.T, lines []string) []string {
	t.Helper()
	if !evidence {
		return lines
	}
	entered := func(line string) bool { return strings.Contains(line, ": "+unix.EINTR.Error()+" after") }
	others := slices.DeleteFunc(slices.Clone(lines), entered)
	require.LessOrEqual(t, len(lines)-len(others), entering, lines)
	return others
}

// TestBlockingCallsInPeace moves nobody.
func TestBlockingCallsInPeace(t *testing.T) {
	v := victim.Start(t, "blocked", "+report")
	time.Sleep(400 * time.Millisecond)
	requireAsKnown(t, v.Stop(), false)
}

// requireAsKnown checks what a victim says about its calls, and prints its report.
func requireAsKnown(t *testing.T, lines []string, moved bool) {
	t.Helper()
	reported, ended := map[string]string{}, map[string]int{}
	for _, line := range lines {
		if words := strings.Fields(line); words[0] == victim.ReportPrefix {
			require.Len(t, words, 6, line)
			times, err := strconv.Atoi(words[3])
			require.NoError(t, err)
			reported[words[1]] += fmt.Sprintf("  %-32s %5d times  %8s to %8s", words[2], times, words[4], words[5])
			ended[words[1]] += times
			continue
		}
		name, what, _ := strings.Cut(line, ": ")
		otherwise := blockingCalls[name]
		require.True(t, moved && otherwise != "" && strings.HasPrefix(what, otherwise), line)
	}
	for _, name := range slices.Sorted(maps.Keys(reported)) {
		t.Logf("%-16s%s", name, reported[name])
	}
	for name, otherwise := range blockingCalls {
		require.Contains(t, reported, name)
		// A call that begins anew with every move ends only after the last. How long others take
		// depends on the machine, for all of them alike; on one that is too slow or too busy for more
		// than a handful nothing can be said.
		if moved && victim.Slow() == 1 && victim.Timed(name) && otherwise != late {
			require.GreaterOrEqual(t, 5*ended[name]+5, ended["nanosleep"], "%s ended too late", name)
		}
	}
	require.Len(t, reported, len(blockingCalls))
}

// TestReleaseBeforeStop lets a process go that has been told to stop, and not been waited for.
func TestReleaseBeforeStop(t *testing.T) {
	v := victim.Start(t, "blocked", exact()...)
	for range victim.Times(50) {
		tr, err := seize(v.Pid)
		require.NoError(t, err)
		require.NoError(t, tr.Release())
		requireUntraced(t, v.Pid)
	}
	require.Empty(t, undisturbed(t, v.Stop()))
}

func TestMark(t *testing.T) {
	for _, now := range []time.Duration{time.Second, 30 * 24 * time.Hour, 1<<31*time.Millisecond - 1, 1 << 31 * time.Millisecond, 1<<32*time.Millisecond + 1} {
		for _, away := range []time.Duration{-time.Second, -1, 0, 1, time.Millisecond, time.Hour, longest - 2*time.Millisecond} {
			m := markOf(now + away)
			require.Positive(t, m)
			require.Zero(t, m>>31)
			late := m.time(now) - (now + away)
			require.GreaterOrEqual(t, late, time.Duration(0), "%v %v", now, away)
			require.LessOrEqual(t, late, 2*time.Millisecond, "%v %v", now, away)
		}
	}
}
