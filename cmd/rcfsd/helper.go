package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"rcfs/fs"
	"rcfs/proxy"
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

// mount mounts what o asks for. The mount can be seen from the moment on in which it answers.
func mount(t *target, o *options) error {
	return makeView(&o.spec, t.path, o.flags, func(fd int) error {
		const flags = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
		if err := unix.MoveMount(fd, "", int(t.Fd()), "", flags); err != nil {
			return exit(exitMount, fmt.Errorf("mount on %s: %w", t.path, err))
		}
		return nil
	})
}

// makeView makes a mount of the hierarchy of spec, and has attach put it where it is to be. What
// is not attached in the end goes with the descriptor: also one whose worker has ended meanwhile, and another is made.
func makeView(spec *proxy.Spec, dir string, flags uintptr, attach func(fd int) error) error {
	return untilAnswered(func() error { return tryView(spec, dir, flags, attach) })
}

func tryView(spec *proxy.Spec, dir string, flags uintptr, attach func(fd int) error) error {
	c, offer, err := connect(&request{Op: opMount, Spec: spec, Dir: dir})
	if err != nil {
		return exit(exitSystem, err)
	}
	defer c.Close()
	// Not os.OpenFile, which makes the open file, and so the daemon's reads of it, non-blocking.
	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return exit(exitSystem, fmt.Errorf("open /dev/fuse: %w", err))
	}
	fd, err := newMount(offer.Source, fuse, flags)
	if err == nil {
		defer unix.Close(fd)
		var id uint64
		if id, err = deviceOf(fd); err == nil {
			_, err = c.call(&request{Op: opServe, Device: id}, fuse)
		}
	}
	// While ours is open, a mount whose daemon dies hangs instead of saying ENOTCONN.
	unix.Close(fuse)
	if err == nil {
		err = checkAnswers(fd)
	}
	if err != nil {
		return exit(exitMount, fmt.Errorf("mount on %s: %w", dir, err))
	}
	return attach(fd)
}

// superFlags are the flags of mount(2) that are a file system's own, by fsconfig(2)'s names.
var superFlags = map[uintptr]string{
	unix.MS_RDONLY:      "ro",
	unix.MS_SYNCHRONOUS: "sync",
	unix.MS_DIRSYNC:     "dirsync",
	unix.MS_LAZYTIME:    "lazytime",
}

// mountAttrs are those that each mount has for itself, by fsmount(2)'s names.
var mountAttrs = map[uintptr]int{
	unix.MS_RDONLY:      unix.MOUNT_ATTR_RDONLY,
	unix.MS_NOSUID:      unix.MOUNT_ATTR_NOSUID,
	unix.MS_NODEV:       unix.MOUNT_ATTR_NODEV,
	unix.MS_NOEXEC:      unix.MOUNT_ATTR_NOEXEC,
	unix.MS_NOATIME:     unix.MOUNT_ATTR_NOATIME,
	unix.MS_NODIRATIME:  unix.MOUNT_ATTR_NODIRATIME,
	unix.MS_STRICTATIME: unix.MOUNT_ATTR_STRICTATIME,
	unix.MS_NOSYMFOLLOW: unix.MOUNT_ATTR_NOSYMFOLLOW,
}

// newMount mounts an open /dev/fuse, nowhere yet, and returns a descriptor of the mount.
func newMount(source string, fuse int, flags uintptr) (int, error) {
	fsfd, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen fuse: %w", err)
	}
	defer unix.Close(fsfd)
	set := []string{"source=" + source, "subtype=" + strings.TrimPrefix(fsType, "fuse.")}
	set = append(set, strings.Split(fs.MountData(fuse), ",")...)
	attrs := 0
	for flag, name := range superFlags {
		if flags&flag != 0 {
			set = append(set, name)
		}
	}
	for flag, attr := range mountAttrs {
		if flags&flag != 0 {
			attrs |= attr
		}
	}
	for _, option := range set {
		key, value, valued := strings.Cut(option, "=")
		if valued {
			err = unix.FsconfigSetString(fsfd, key, value)
		} else {
			err = unix.FsconfigSetFlag(fsfd, key)
		}
		if err != nil {
			return -1, fmt.Errorf("fsconfig %s: %w", option, err)
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, fmt.Errorf("make the file system: %w", err)
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w", err)
	}
	return fd, nil
}

// deviceOf returns the device number of a mount, which no two file systems have at a time. Asking
// the file system itself would mean waiting for whoever serves it.
func deviceOf(fd int) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return 0, fmt.Errorf("device of the mount: %w", err)
	}
	return unix.Mkdev(st.Dev_major, st.Dev_minor), nil
}

// checkAnswers asks the mount something that only the daemon can answer; and before its first write the kernel asks once
// for an attribute that there is none of here; should no worker be there then, that would have to wait.
func checkAnswers(fd int) error {
	done := make(chan error, 1)
	go func() {
		unix.Getxattr(fmt.Sprintf("/proc/self/fd/%d", fd), "security.capability", nil)
		var st unix.Statfs_t
		done <- unix.Fstatfs(fd, &st)
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("it does not answer: %w", err)
		}
		return nil
	case <-time.After(callPatience):
		return fmt.Errorf("it does not answer within %s", callPatience)
	}
}
