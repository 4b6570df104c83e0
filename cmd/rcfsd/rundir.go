package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Files of the daemon. The directory also has the pins of namespaces (package subsystems), which
// are mounts and have to outlive the daemon.
const (
	runDir     = "/run/rcfs"
	socketPath = runDir + "/rcfsd.sock"
	lockPath   = runDir + "/lock"
	logPath    = runDir + "/log"
)

// runSource is what our mount on runDir shows as its source.
const runSource = "rcfs"

// errRunning says that another daemon has the run directory.
var errRunning = errors.New("another rcfsd is running")

// heldLock is the name under which the keeper holds the lock.
const heldLock = "lock"

// rundir is the run directory, held by the one daemon that may use it.
type rundir struct{ lock *os.File }

// openRundir makes the run directory a mount of its own and takes its lock. Pins must not
// propagate to other mount namespaces: they would keep namespaces alive there.
func openRundir(held *store) (*rundir, error) {
	lock, err := held.take(heldLock)
	if err != nil {
		return nil, err
	}
	if lock != nil {
		if isAt(lock, lockPath) {
			return &rundir{lock}, nil
		}
		lock.Close() // of a run directory that has gone
	}
	// The directory can be taken away by a daemon that ends; whoever finds that it has been
	// looks again.
	for range 100 {
		if err := os.Mkdir(runDir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		mounted, err := prepareMount()
		if errors.Is(err, os.ErrNotExist) || err == nil && !mounted {
			continue
		}
		if err != nil {
			return nil, err
		}
		lock, err := os.OpenFile(lockPath, os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			lock.Close()
			if err == unix.EWOULDBLOCK {
				return nil, errRunning
			}
			return nil, fmt.Errorf("lock %s: %w", lockPath, err)
		}
		if isAt(lock, lockPath) {
			return &rundir{lock}, held.hold(heldLock, int(lock.Fd()))
		}
		lock.Close()
	}
	return nil, fmt.Errorf("%s keeps disappearing", runDir)
}

// prepareMount mounts a small file system of our own on runDir, unless something is mounted
// there. It returns whether something was.
func prepareMount() (bool, error) {
	dir, err := os.Open(runDir)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	// Two daemons that start at once must not both mount; this lock is on the directory below.
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return false, fmt.Errorf("lock %s: %w", runDir, err)
	}
	if !isAt(dir, runDir) {
		return false, nil
	}
	mounted, err := mountinfo.Mounted(runDir)
	if err != nil {
		return false, err
	}
	if !mounted {
		const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
		if err := unix.Mount(runSource, runDir, "tmpfs", flags, "mode=0755,size=64m,nr_inodes=0"); err != nil {
			return false, fmt.Errorf("mount a tmpfs on %s: %w", runDir, err)
		}
	}
	// Also where it was mounted: by a daemon that was killed before this, perhaps.
	if err := unix.Mount("", runDir, "", unix.MS_PRIVATE, ""); err != nil {
		return false, fmt.Errorf("make %s private: %w", runDir, err)
	}
	return mounted, nil
}

// isAt reports whether f is what path leads to.
func isAt(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// close gives the directory up. Where nothing that has to outlive the daemon is left in it, it
// goes altogether.
func (r *rundir) close() error {
	defer r.lock.Close()
	entries, err := os.ReadDir(runDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if p := filepath.Join(runDir, e.Name()); p != lockPath && p != logPath {
			return nil
		}
	}
	ours, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.Mountpoint != runDir || i.Source != runSource || i.FSType != "tmpfs", false
	})
	if err != nil || len(ours) == 0 {
		// Somebody else's mount stays, without our files. The lock goes last.
		return errors.Join(err, removeIfThere(logPath), removeIfThere(lockPath))
	}
	if err := unix.Unmount(runDir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", runDir, err)
	}
	if err := os.Remove(runDir); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
