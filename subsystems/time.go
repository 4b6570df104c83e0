package subsystems

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// See time_namespaces(7). What the clocks of a namespace show can be set until somebody enters it
// (frozen_offsets in kernel/time/namespace.c), and only through a task whose children are to be
// born there: a keeper, which makes the namespace and never has children. It also is what the
// offsets are read through, so it stays as long as the container.
//
// unshare(2) of a time namespace is for children, but setns(2) takes the task itself, if it has one
// thread: the clocks are in its memory (timens_install).
func init() {
	proxy.Register(&timeNamespace{namespace{
		name:  "time",
		link:  "time_for_children",
		flag:  unix.CLONE_NEWTIME,
		order: 30,
		alone: unix.EUSERS,
		why:   "threads share their clocks",
		files: []proxy.File{{
			Name:  "time.offsets",
			Mode:  0o644,
			In:    proxy.Everywhere,
			Read:  proxy.Text(readOffsets),
			Write: writeOffsets,
		}},
	}})
}

type timeNamespace struct{ namespace }

func (n *timeNamespace) Create(p proxy.Place, _ proxy.Object) (proxy.Object, error) {
	plan := n.plan(p)
	plan.unshared = unix.CLONE_NEWTIME
	return n.keep(p, plan)
}

func (n *timeNamespace) Destroy(p proxy.Place) error {
	return errors.Join(dismiss(n.pinOf(p)), n.namespace.Destroy(p))
}

// offsetsFile is the file that shows and sets the offsets of a namespace: that of its keeper, for
// the root our own.
func offsetsFile(o proxy.Object) (string, error) {
	k, err := keeperOf(o.(*nsObject).pin)
	if errors.Is(err, fs.ErrNotExist) {
		return "/proc/self/timens_offsets", nil
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w (%w)", o, err, unix.ENXIO)
	}
	return k.file("timens_offsets"), nil
}

func readOffsets(o proxy.Object) (string, error) {
	file, err := offsetsFile(o)
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(file)
	return string(b), err
}

// writeOffsets sets clocks, "boottime 86400 0" a line. EACCES once somebody was in the namespace.
func writeOffsets(o proxy.Object, data []byte, w proxy.Writer) error {
	if err := w.Capable(unix.CAP_SYS_TIME); err != nil {
		return err
	}
	file, err := offsetsFile(o)
	if err != nil {
		return err
	}
	return os.WriteFile(file, data, 0)
}
