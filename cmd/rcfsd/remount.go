package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// remount adds subsystems to the hierarchy of a mount, and changes the mount's flags.
func remount(t *target, o *options) error {
	info, err := t.mountinfo()
	if err != nil {
		return exit(exitMount, err)
	}
	if info.FSType != fsType || info.Mountpoint != t.path {
		return exit(exitMount, fmt.Errorf("remount %s: not a mount of rcfs: %w", t.path, unix.EINVAL))
	}
	if o.spec.None && info.Source != proxy.DefaultSource {
		return exit(exitUsage, &optionError{"none", fmt.Errorf("of a mount of %s: %w", info.Source, unix.EINVAL)})
	}
	device, err := deviceOf(int(t.Fd()))
	if err != nil {
		return exit(exitMount, err)
	}
	c, a, err := connect(&request{Op: opRemount, Spec: &o.spec, Device: device})
	if err != nil {
		return exit(exitSystem, fmt.Errorf("remount %s: %w", t.path, err))
	}
	c.Close()
	path := t.path
	t.Close()
	if a.Source != info.Source {
		if err := renew(path, a.Name, o.flags); err != nil {
			return err
		}
	}
	if err := unix.Mount("", path, "", o.flags|unix.MS_REMOUNT, ""); err != nil {
		return exit(exitMount, fmt.Errorf("remount %s: %w", path, err))
	}
	return nil
}

// renew puts a mount that shows what is bound now in the place of the one on path, if nobody is in
// that: what a mount shows as its source is fixed when it is made. Where somebody is, and before
// Linux 6.5, which cannot put a mount beneath another, the old one stays; it works as well.
func renew(path, hierarchy string, flags uintptr) error {
	if unix.Unmount(path, unix.MNT_EXPIRE) != unix.EAGAIN { // "not busy", see umount(2)
		return nil
	}
	// The daemon that has answered may be dead, and the hierarchy with it.
	err := makeView(&proxy.Spec{Name: hierarchy, Existing: true}, path, flags, func(fd int) error {
		const flags = unix.MOVE_MOUNT_F_EMPTY_PATH | moveMountBeneath
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, path, flags); err != nil {
			return errStays
		}
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return exit(exitMount, fmt.Errorf("unmount the old view of %s: %w", path, err))
		}
		return nil
	})
	if errors.Is(err, errStays) {
		return nil
	}
	return err
}

var errStays = errors.New("the kernel cannot exchange mounts")

// moveMountBeneath is MOVE_MOUNT_BENEATH of linux/mount.h.
const moveMountBeneath = 0x200
