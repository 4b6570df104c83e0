package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"rcfs/fs"
)

const fsType = "fuse.rcfs"

// helperArgs are the helper's command line, see "External helpers" in mount(8).
type helperArgs struct {
	dir     string
	options string
	fake    bool
}

// helperMain mounts, or says in one line why not.
func helperMain(name string, args []string, stderr io.Writer) int {
	return report(stderr, name, runHelper(args))
}

func runHelper(args []string) error {
	a, err := parseHelperArgs(args)
	if err != nil {
		return exit(exitUsage, err)
	}
	o, err := parseOptions(a.options)
	if err != nil {
		return exit(exitUsage, err)
	}
	if a.fake {
		return nil
	}
	if os.Geteuid() != 0 {
		return exit(exitUsage, errors.New("only root can mount"))
	}
	target, err := openTarget(a.dir)
	if err != nil {
		return exit(exitMount, err)
	}
	defer target.Close()
	if o.remount {
		return remount(target, &o)
	}
	return mount(target, &o)
}

// parseHelperArgs reads SOURCE DIR [-nvsf] [-o OPTIONS] [-t TYPE], in any order. The source has
// no meaning: mount(8) may have turned it into a path.
func parseHelperArgs(args []string) (helperArgs, error) {
	var a helperArgs
	var operands, lists []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			operands = append(operands, args[i+1:]...)
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			operands = append(operands, arg)
			continue
		}
		for letters := arg[1:]; letters != ""; {
			letter := letters[0]
			letters = letters[1:]
			switch letter {
			case 'f':
				a.fake = true
			case 'n', 'v', 's':
			case 'o', 't':
				value := letters
				if letters = ""; value == "" {
					if i++; i == len(args) {
						return a, fmt.Errorf("-%c needs a value", letter)
					}
					value = args[i]
				}
				if letter == 'o' {
					lists = append(lists, value)
				}
			default:
				return a, fmt.Errorf("unknown option -%c; usage: SOURCE DIR [-nvsf] [-o OPTIONS]", letter)
			}
		}
	}
	if len(operands) != 2 {
		return a, fmt.Errorf("%d operands; usage: SOURCE DIR [-nvsf] [-o OPTIONS]", len(operands))
	}
	a.dir, a.options = operands[1], strings.Join(lists, ",")
	return a, nil
}

// target is the directory to mount on. It is resolved once, here, in the caller's mount
// namespace; the daemon only shows its name.
type target struct {
	*os.File
	path string
}

// openTarget opens dir, after taking away the views there that no daemon serves any more: they
// answer nothing but ENOTCONN.
func openTarget(dir string) (*target, error) {
	for range 100 {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		t := &target{File: os.NewFile(uintptr(fd), dir)}
		if t.path, err = os.Readlink(t.link()); err != nil {
			t.Close()
			return nil, err
		}
		dead, err := t.detachDead()
		if err == nil && !dead {
			return t, nil
		}
		t.Close()
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s: too many dead mounts", dir)
}

// link is a path that leads to the directory whatever happens to its name.
func (t *target) link() string { return fmt.Sprintf("/proc/self/fd/%d", t.Fd()) }

// mountinfo returns the mount that the directory is in.
func (t *target) mountinfo() (*mountinfo.Info, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", t.Fd()))
	if err != nil {
		return nil, err
	}
	id := -1
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			if id, err = strconv.Atoi(strings.TrimSpace(value)); err != nil {
				return nil, err
			}
		}
	}
	mounts, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return i.ID != id, i.ID == id })
	if err != nil {
		return nil, err
	}
	if len(mounts) == 0 {
		return nil, fmt.Errorf("%s: not in this mount namespace", t.path)
	}
	return mounts[0], nil
}

// detachDead unmounts a view that nobody serves, and reports whether it did.
func (t *target) detachDead() (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(t.Fd()), &st); err != unix.ENOTCONN {
		return false, nil
	}
	info, err := t.mountinfo()
	if err != nil {
		return false, err
	}
	if info.FSType != fsType || info.Mountpoint != t.path {
		return false, fmt.Errorf("%s is in a dead mount of type %s: %w", t.path, info.FSType, unix.ENOTCONN)
	}
	if err := unix.Unmount(t.path, unix.MNT_DETACH); err != nil {
		return false, fmt.Errorf("detach the dead mount on %s: %w", t.path, err)
	}
	return true, nil
}

// remount changes the flags of a mount. Its subsystems stay.
func remount(t *target, o *options) error {
	info, err := t.mountinfo()
	if err != nil {
		return exit(exitMount, err)
	}
	if info.FSType != fsType || info.Mountpoint != t.path {
		return exit(exitMount, fmt.Errorf("remount %s: not a mount of rcfs: %w", t.path, unix.EINVAL))
	}
	if more := o.added(info.Source); len(more) > 0 {
		return exit(exitUsage, &optionError{more[0], fmt.Errorf("adding subsystems on remount: %w", errNotYet)})
	}
	if err := unix.Mount("", t.link(), "", o.flags|unix.MS_REMOUNT, ""); err != nil {
		return exit(exitMount, fmt.Errorf("remount %s: %w", t.path, err))
	}
	return nil
}

// mount mounts what o asks for.
func mount(t *target, o *options) (err error) {
	c, offer, err := connect(&request{Op: opMount, Spec: &o.spec, Dir: t.path})
	if err != nil {
		return exit(exitSystem, err)
	}
	defer c.Close()
	// Not os.OpenFile, which makes the open file, and so the daemon's reads of it, non-blocking.
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return exit(exitSystem, fmt.Errorf("open /dev/fuse: %w", err))
	}
	// From here on a mount could be left behind by a signal. What follows has deadlines.
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE)
	err = unix.Mount(offer.Source, t.link(), fsType, o.flags, fs.MountData(fd))
	if err != nil {
		unix.Close(fd)
		return exit(exitMount, fmt.Errorf("mount on %s: %w", t.path, err))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unmount(t.path))
		}
	}()
	_, err = c.call(&request{Op: opServe}, fd)
	// While ours is open, a mount whose daemon dies hangs instead of saying ENOTCONN.
	unix.Close(fd)
	if err != nil {
		return exit(exitMount, fmt.Errorf("mount on %s: %w", t.path, err))
	}
	if err := checkAnswers(t.path); err != nil {
		return exit(exitMount, err)
	}
	return nil
}

func unmount(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}

// checkAnswers asks the mount something that only the daemon can answer.
func checkAnswers(path string) error {
	done := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		done <- unix.Statfs(path, &st)
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%s does not answer: %w", path, err)
		}
		return nil
	case <-time.After(callPatience):
		return fmt.Errorf("%s does not answer within %s", path, callPatience)
	}
}
