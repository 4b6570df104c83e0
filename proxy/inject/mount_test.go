package inject

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/victim"
)

// newMountNamespace makes a mount namespace; in it an empty file system hides each of the
// directories.
func newMountNamespace(t testing.TB, hide ...string) Namespace {
	t.Helper()
	ns := Namespace{Type: unix.CLONE_NEWNS}
	failed := make(chan error)
	go onOwnThread(func() { // never unlocked: the thread must not be used again
		failed <- func() (err error) {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			for _, dir := range hide {
				if err := unix.Mount("hide", dir, "tmpfs", 0, ""); err != nil {
					return err
				}
			}
			ns.FD, err = unix.Open(nsPath(os.Getpid(), unix.Gettid(), ns.Type), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			return err
		}()
	})
	require.NoError(t, <-failed)
	t.Cleanup(func() { unix.Close(ns.FD) })
	return ns
}

// ownNamespace opens a namespace of the test itself.
func ownNamespace(t testing.TB, typ int) Namespace {
	t.Helper()
	fd, err := unix.Open(nsPath(os.Getpid(), os.Getpid(), typ), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return Namespace{Type: typ, FD: fd}
}

// whereIs tells root and working directory of a thread: their names, and what they are.
func whereIs(t testing.TB, tid int) (names, identity string) {
	t.Helper()
	for _, link := range []string{"root", "cwd"} {
		name, err := os.Readlink(proc(tid, link))
		require.NoError(t, err)
		fd, err := unix.Open(proc(tid, link), unix.O_PATH|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		var st unix.Statx_t
		require.NoError(t, unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_MNT_ID, &st))
		unix.Close(fd)
		names += name + " "
		identity += fmt.Sprint(st.Mnt_id, " ", st.Dev_major, ":", st.Dev_minor, " ", st.Ino, " ")
	}
	return names, identity
}

// A name longer than the slot has room for.
var longName = strings.Repeat(strings.Repeat("n", 240)+"/", 8)

// A thread that enters a mount namespace stays in its working directory, where there is one of that
// name, and no descriptor stays with it.
func TestMountKeepsWorkingDirectory(t *testing.T) {
	eachWay(t, func(t *testing.T) {
		for name, below := range map[string]string{"short": "x/y", "long": longName} {
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir() + "/" + strings.TrimSuffix(below, "/")
				require.NoError(t, os.MkdirAll(dir, 0o755))
				there, back := newMountNamespace(t), ownNamespace(t, unix.CLONE_NEWNS)
				for _, word := range []string{"", "+seccomp", "+softfds"} {
					v := victim.Start(t, "single", strings.Fields("+in="+dir+" "+word)...)
					files := countFiles(t, v.Pid)
					for range 3 {
						for _, to := range []Namespace{there, back} {
							require.NoError(t, move(t, v.Pid, []Namespace{to}))
							requireIn(t, v.Pid, []Namespace{to})
							names, _ := whereIs(t, v.Pid)
							require.Equal(t, "/ "+dir+" ", names)
						}
					}
					require.Equal(t, files, countFiles(t, v.Pid))
					require.Empty(t, v.Stop())
				}
			})
		}
	})
}

// Where there is no such directory it is the root.
func TestMountWithoutWorkingDirectory(t *testing.T) {
	eachWay(t, func(t *testing.T) {
		dir := t.TempDir() + "/x"
		require.NoError(t, os.Mkdir(dir, 0o755))
		there := newMountNamespace(t, dir+"/..")
		v := victim.Start(t, "single", "+in="+dir)
		require.NoError(t, move(t, v.Pid, []Namespace{there}))
		names, _ := whereIs(t, v.Pid)
		require.Equal(t, "/ / ", names)
		require.Empty(t, v.Stop())
	})
}

// Undo brings back exactly the directory, even one that has no name any more, or whose name has
// passed to another.
func TestMountUndo(t *testing.T) {
	eachWay(t, func(t *testing.T) {
		for name, change := range map[string]func(dir string) error{
			"there":   func(string) error { return nil },
			"removed": os.Remove,
			"replaced": func(dir string) error {
				if err := os.Rename(dir, dir+".old"); err != nil {
					return err
				}
				return os.Mkdir(dir, 0o755)
			},
		} {
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir() + "/x"
				require.NoError(t, os.Mkdir(dir, 0o755))
				v := victim.Start(t, "single", "+in="+dir)
				files := countFiles(t, v.Pid)
				require.NoError(t, change(dir))
				names, identity := whereIs(t, v.Pid)
				tr := stop(t, v.Pid)
				require.NoError(t, tr.Enter([]Namespace{newMountNamespace(t)}))
				_, moved := whereIs(t, v.Pid)
				require.NotEqual(t, identity, moved)
				require.NoError(t, tr.Undo())
				nowNames, now := whereIs(t, v.Pid)
				require.Equal(t, names, nowNames)
				require.Equal(t, identity, now)
				require.NoError(t, tr.Release())
				require.Equal(t, files, countFiles(t, v.Pid))
				require.Empty(t, v.Stop())
			})
		}
	})
}

// When a later namespace refuses, it is undone too.
func TestMountUndoneByLaterRefusal(t *testing.T) {
	eachWay(t, func(t *testing.T) {
		dir := t.TempDir()
		v := victim.Start(t, "single", "+in="+dir)
		files := countFiles(t, v.Pid)
		_, identity := whereIs(t, v.Pid)
		// An ipc namespace is no uts namespace: setns(2) says EINVAL.
		wrong := ownNamespace(t, unix.CLONE_NEWIPC)
		wrong.Type = unix.CLONE_NEWUTS
		require.ErrorIs(t, move(t, v.Pid, []Namespace{newMountNamespace(t), wrong}), unix.EINVAL)
		_, now := whereIs(t, v.Pid)
		require.Equal(t, identity, now)
		requireIn(t, v.Pid, []Namespace{ownNamespace(t, unix.CLONE_NEWNS)})
		require.Equal(t, files, countFiles(t, v.Pid))
		require.Empty(t, v.Stop())
	})
}

// Threads that share root and working directory are refused, unless they shall not share them any
// more: each is in its directory afterwards.
func TestMountSplitsThreads(t *testing.T) {
	eachWay(t, func(t *testing.T) {
		dir := t.TempDir()
		v := victim.Start(t, "threads", "8", "+in="+dir)
		there, back := newMountNamespace(t), ownNamespace(t, unix.CLONE_NEWNS)
		files := countFiles(t, v.Pid)
		require.ErrorIs(t, move(t, v.Pid, []Namespace{there}), unix.EINVAL)
		requireIn(t, v.Pid, []Namespace{back})
		there.SplitFS, back.SplitFS = true, true
		for range 3 {
			for _, to := range []Namespace{there, back} {
				require.NoError(t, move(t, v.Pid, []Namespace{to}))
				requireIn(t, v.Pid, []Namespace{to})
				tids, err := listThreads(v.Pid)
				require.NoError(t, err)
				for _, tid := range tids {
					names, _ := whereIs(t, tid)
					require.Equal(t, "/ "+dir+" ", names)
				}
			}
		}
		tr := stop(t, v.Pid)
		require.NoError(t, tr.Enter([]Namespace{there}))
		require.ErrorContains(t, tr.Undo(), "do not share root, working directory and umask any more")
		require.NoError(t, tr.Release())
		requireIn(t, v.Pid, []Namespace{back})
		require.Equal(t, files, countFiles(t, v.Pid))
		require.Empty(t, v.Stop())
	})
}

// A killed tracer leaves the program alive and in its directory, in one namespace or the other.
func TestMountTracerIsKilled(t *testing.T) { eachSafeWay(t, testMountTracerIsKilled) }

func testMountTracerIsKilled(t *testing.T) {
	dir := t.TempDir()
	v := victim.Start(t, "single", "+in="+dir)
	there, back := []Namespace{newMountNamespace(t)}, []Namespace{ownNamespace(t, unix.CLONE_NEWNS)}
	for range 4 * kills() {
		mover := startMover(t, v.Pid, there, back)
		time.Sleep(time.Duration(rand.IntN(5000)) * time.Microsecond)
		require.NoError(t, mover.Process.Kill())
		require.EqualError(t, mover.Wait(), "signal: killed")
		require.NoError(t, move(t, v.Pid, back), "it drains the slot first")
		names, _ := whereIs(t, v.Pid)
		if names == "/ / " && stepsAtATime(t) < 2 {
			return // a limit, see mount.go
		}
		require.Equal(t, "/ "+dir+" ", names)
	}
	require.Empty(t, v.Stop())
}

// stepsAtATime is for how many steps the slot has room.
func stepsAtATime(t *testing.T) int {
	c, err := openCode(os.Getpid())
	require.NoError(t, err)
	defer c.close()
	return (c.room - blobSteps - stepEnd) / stepSize
}
