package fs_test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// The memory limit of a container holds for it and what is below it together. Whoever goes beyond
// is killed inside; nobody else is.
func TestMemoryLimit(t *testing.T) {
	if !rig.Guest() {
		t.Skip("memory is a hierarchy that a shared machine needs itself")
	}
	sys := rig.System(t)
	require.True(t, controller(sys, "memory"))
	dir := mount(t, sys, rig.Spec("memory"))
	a := mkdir(t, dir+"/a")
	b := mkdir(t, a+"/b")
	other := mkdir(t, dir+"/other")
	limit, usage, kills := "/memory.limit_in_bytes", "/memory.usage_in_bytes", "/memory.oom_control"
	if onV2(t, sys, "memory") {
		limit, usage, kills = "/memory.max", "/memory.current", "/memory.events"
	}
	const mib = 1 << 20
	used := func(container string) int { return atoi(strings.TrimSpace(read(t, container+usage))) }
	require.NoError(t, write(a+limit, fmt.Sprint(64*mib)))

	outer, inner, bystander := victim.Start(t, "eater"), victim.Start(t, "eater"), victim.Start(t, "eater")
	eat := func(v *victim.Victim, n int) string {
		v.Say(fmt.Sprint(n))
		return v.Hear()
	}
	move(t, a, fmt.Sprint(outer.Pid))
	move(t, b, fmt.Sprint(inner.Pid))
	move(t, other, fmt.Sprint(bystander.Pid))
	require.Equal(t, "has 20", eat(outer, 20))
	require.Equal(t, "has 24", eat(inner, 24))
	require.Equal(t, "has 80", eat(bystander, 80), "the limit is not for it")
	require.Greater(t, used(a), 44*mib, "both together")
	require.Greater(t, used(b), 24*mib)
	require.Less(t, used(b), 44*mib)

	require.Empty(t, eat(inner, 30), "it has no limit of its own")
	require.Contains(t, fmt.Sprint(inner.Stop()), "signal: killed")
	require.Contains(t, read(t, b+kills), "oom_kill 1\n")
	require.Equal(t, "has 21", eat(outer, 1))
	require.Equal(t, "has 81", eat(bystander, 1))

	require.Empty(t, eat(outer, 60))
	require.Contains(t, fmt.Sprint(outer.Stop()), "signal: killed")
	require.Equal(t, "has 82", eat(bystander, 1))
	require.Empty(t, bystander.Stop())
}

// A fork bomb in a container in a container stops at the limit, and its surroundings go on forking.
func TestForkBombStopsAtTheLimit(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("pids"))
	a := mkdir(t, dir+"/a")
	b := mkdir(t, a+"/b")
	const most = 40
	require.NoError(t, write(b+"/pids.max", fmt.Sprint(most)))
	bomb := exec.Command("bash", "-c", "read; bomb() { bomb & bomb; }; bomb 2>/dev/null")
	stdin, err := bomb.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, bomb.Start())
	t.Cleanup(func() { write(b+"/rcfs.kill", "1") }) // of a test that has failed
	move(t, b, fmt.Sprint(bomb.Process.Pid))
	_, err = fmt.Fprintln(stdin)
	require.NoError(t, err)
	rig.Eventually(t, func() string {
		n := atoi(strings.TrimSpace(read(t, b+"/pids.current")))
		require.LessOrEqual(t, n, most)
		if events := read(t, b+"/pids.events"); n < most || strings.HasPrefix(events, "max 0\n") {
			return fmt.Sprintf("%d processes, %s", n, events)
		}
		return ""
	})
	for _, c := range []string{a, dir} {
		require.Equal(t, "forked", shell(t, fmt.Sprintf("sh -c 'echo $$ > %s/tasks; /bin/true && echo forked'", c)))
	}
	require.LessOrEqual(t, len(strings.Fields(read(t, b+"/tasks"))), most)
	require.NoError(t, write(b+"/rcfs.kill", "1"))
	bomb.Wait()
	rig.Eventually(t, func() string {
		for { // the orphans are ours, and the controller counts them until they are reaped
			if pid, _ := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 {
				break
			}
		}
		return strings.Trim(read(t, a+"/pids.current"), "0\n")
	})
}

// A tree is only so deep, and a path so long: ENOSPC, and nothing has been made.
func TestLimitsOfTheTree(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec())
	at := dir
	for range proxy.MaxDepth {
		at = mkdir(t, at+"/d")
	}
	require.Equal(t, unix.ENOSPC, unix.Mkdir(at+"/e", 0o755))
	require.Contains(t, read(t, at+"/rcfs.error"), "containers deep")
	wide, name := dir, strings.Repeat("x", 255)
	var err error
	for err == nil {
		wide += "/" + name
		err = unix.Mkdir(wide, 0o755)
	}
	require.Equal(t, unix.ENOSPC, err)
}
