package subsystems

import (
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// See ipc_namespaces(7). The limits of a namespace are files under /proc/sys, which shows those
// of the thread that opens them (set_lookup in ipc/ipc_sysctl.c and ipc/mq_sysctl.c).
func init() {
	registerNamespace(&namespace{name: "ipc", link: "ipc", flag: unix.CLONE_NEWIPC, order: 10, list: sysctls})
}

// ipcSysctls are what ipc_namespaces(7) lists, by the names that the control files have after
// their prefix.
var ipcSysctls = []struct{ name, path string }{
	{"msgmax", "/proc/sys/kernel/msgmax"},
	{"msgmnb", "/proc/sys/kernel/msgmnb"},
	{"msgmni", "/proc/sys/kernel/msgmni"},
	{"sem", "/proc/sys/kernel/sem"},
	{"shmall", "/proc/sys/kernel/shmall"},
	{"shmmax", "/proc/sys/kernel/shmmax"},
	{"shmmni", "/proc/sys/kernel/shmmni"},
	{"shm_rmid_forced", "/proc/sys/kernel/shm_rmid_forced"},
	{"mqueue.msg_default", "/proc/sys/fs/mqueue/msg_default"},
	{"mqueue.msg_max", "/proc/sys/fs/mqueue/msg_max"},
	{"mqueue.msgsize_default", "/proc/sys/fs/mqueue/msgsize_default"},
	{"mqueue.msgsize_max", "/proc/sys/fs/mqueue/msgsize_max"},
	{"mqueue.queues_max", "/proc/sys/fs/mqueue/queues_max"},
}

// sysctls returns a control file for each of them that this kernel has.
func sysctls() []proxy.File {
	var files []proxy.File
	for _, s := range ipcSysctls {
		if _, err := os.Stat(s.path); err != nil {
			continue // built without System V IPC, or without POSIX message queues
		}
		files = append(files, proxy.File{
			Name: "ipc." + s.name,
			Mode: 0o644,
			In:   proxy.Everywhere,
			Read: proxy.Text(func(o proxy.Object) (string, error) { return readInside(o, s.path) }),
			Write: func(o proxy.Object, data []byte, w proxy.Writer) error {
				return writeSysctl(o, s.path, string(data), w)
			},
		})
	}
	return files
}

func readInside(o proxy.Object, path string) (value string, err error) {
	err = inside(o, func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		b, err := io.ReadAll(f)
		value = string(b)
		return err
	})
	return value, err
}

// writeSysctl sets a limit. The kernel would ask for the capabilities of the thread that writes,
// and that is ours.
func writeSysctl(o proxy.Object, path, value string, w proxy.Writer) error {
	if err := w.Admin(); err != nil {
		return err
	}
	// Without any number the kernel would take the write and change nothing.
	if strings.TrimSpace(value) == "" {
		return proxy.ErrValue
	}
	return inside(o, func() error {
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		_, err = unix.Write(fd, []byte(value))
		return err
	})
}
