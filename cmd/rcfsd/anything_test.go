package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// daemonKills is how often the daemon is killed in anything.
func daemonKills() int {
	if n, err := strconv.Atoi(os.Getenv("RCFS_STORM_KILLS")); err == nil {
		return n
	}
	if rig.Guest() || victim.Slow() > 1 {
		return 2
	}
	return 5
}

// ends is where a client has ended.
type ends struct {
	done int   // the last that was done, -1 for none
	err  error // of the next one
}

// Keeper and worker are killed at random moments while clients work: they hear that the mount is dead, and when it
// is mounted again each operation has been done or not done at all, and nothing is left of the half of one.
func TestDaemonKilledInAnything(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, mixOptions)
	for i := range daemonKills() {
		if !t.Run(strconv.Itoa(i), func(t *testing.T) { killInAnything(t, dir) }) {
			break
		}
		removeContainers(t, dir)
		requireNothingElse(t, dir)
	}
}

func killInAnything(t *testing.T, dir string) {
	all := clients(t, dir)
	where := make(map[string]*ends)
	var count atomic.Int64
	var group sync.WaitGroup
	for _, c := range all {
		end := &ends{done: -1}
		where[c.name] = end
		group.Go(func() {
			for i := 0; end.err == nil; i++ {
				if end.err = c.do(i); end.err == nil {
					end.done = i
					count.Add(1)
				}
			}
		})
	}
	func() {
		defer group.Wait() // a dead mount ends them
		defer killDaemon(t)
		requireProgress(t, &count)
		time.Sleep(time.Duration(rand.IntN(100000)) * time.Microsecond)
	}()
	mountOn(t, dir, mixOptions)
	defer func() {
		if t.Failed() {
			log, _ := os.ReadFile(logPath)
			t.Logf("%s", log[max(0, len(log)-20000):])
		}
	}()
	var said []string
	for _, c := range all {
		end := where[c.name]
		said = append(said, fmt.Sprintf("%s %d", c.name, end.done+1))
		require.True(t, slices.ContainsFunc([]error{unix.ENOTCONN, unix.ECONNABORTED, unix.ECONNREFUSED, unix.EIO},
			func(err error) bool { return errors.Is(end.err, err) }), "%s: %v", c.name, end.err)
	}
	t.Logf("%d operations: %s", count.Load(), strings.Join(said, ", "))

	requireNothingElse(t, dir)
	require.Equal(t, []string{"c0", "c1", "c2", "c3", "c4", "c5", "c6"}, containersIn(t, dir))
	for i, name := range []string{"write", "write another"} {
		value := func(i int) string {
			if i < 0 {
				return "max\n"
			}
			return fmt.Sprintln(1000 + i%1000)
		}
		have, err := os.ReadFile(fmt.Sprintf("%s/c%d/pids.max", dir, i))
		require.NoError(t, err)
		n := where[name].done
		require.Contains(t, []string{value(n), value(n + 1)}, string(have), name)
	}
	for i, name := range []string{"move a thread", "move threads"} {
		home := fmt.Sprintf("/c%d", i+2)
		require.Equal(t, []string{"x"}, containersIn(t, dir+home), name)
		at := func(i int) string {
			if i < 0 {
				return "/"
			}
			return []string{home, home + "/x"}[i%2]
		}
		n := where[name].done
		members := ""
		for _, path := range []string{home, home + "/x"} {
			procs, err := os.ReadFile(dir + path + "/cgroup.procs")
			require.NoError(t, err)
			if len(procs) == 0 {
				continue
			}
			require.Empty(t, members, "%s: it is in two", name)
			members = string(procs)
			pid, err := strconv.Atoi(strings.TrimSpace(members))
			require.NoError(t, err, name)
			require.Equal(t, path, requireWhole(t, dir, pid), name)
			require.Contains(t, []string{at(n), at(n + 1)}, path, name)
		}
		require.True(t, members != "" || n < 0, "%s: it is nowhere", name)
	}
	for i, name := range []string{"make", "make others"} {
		if list := containersIn(t, fmt.Sprintf("%s/c%d", dir, i+4)); len(list) > 0 {
			require.Equal(t, []string{strconv.Itoa(where[name].done + 1)}, list, name)
		}
	}
	list := containersIn(t, dir+"/c6")
	require.Len(t, list, 1)
	if end := where["rename"]; end != nil {
		require.Contains(t, []string{strconv.Itoa(end.done + 1), strconv.Itoa(end.done + 2)}, list[0], "rename")
	}
}

// containersIn lists the containers in one.
func containersIn(t *testing.T, dir string) []string {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}
