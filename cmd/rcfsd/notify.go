package main

import (
	"log/slog"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// managed reports whether there is a service manager, which keeps the files when the daemon ends.
func managed() bool { return os.Getenv("NOTIFY_SOCKET") != "" }

// notifier tells the service manager how the daemon is, and gives it the files that the keeper holds, sd_notify(3) and
// FDSTORE of sd_pid_notify_with_fds(3): a restart of the whole service is an upgrade then, too. Without a service manager
// it does nothing.
type notifier struct {
	fd   int // negative without one
	path string
	log  *slog.Logger
}

func newNotifier(log *slog.Logger) *notifier {
	n := &notifier{fd: -1, path: os.Getenv("NOTIFY_SOCKET"), log: log}
	if n.path == "" {
		return n
	}
	var err error
	if n.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		log.Error("the service manager", "error", err)
		n.fd = -1
	}
	return n
}

func (n *notifier) say(text string) { n.send(text, nil) }

func (n *notifier) hold(name string, fd int) {
	n.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, unix.UnixRights(fd))
}

func (n *notifier) drop(name string) { n.send("FDSTOREREMOVE=1\nFDNAME="+name, nil) }

func (n *notifier) send(text string, rights []byte) {
	if n.fd < 0 {
		return
	}
	to := &unix.SockaddrUnix{Name: n.path} // "@": an abstract name
	if err := unix.Sendmsg(n.fd, []byte(text), rights, to, unix.MSG_NOSIGNAL); err != nil {
		n.log.Error("the service manager", "error", err)
	}
}

// listenFirst is SD_LISTEN_FDS_START.
const listenFirst = 3

// stored returns the files that the service manager has kept, by their names (sd_listen_fds_with_names(3)).
func stored() map[string]int {
	files := make(map[string]int)
	pid, _ := strconv.Atoi(os.Getenv("LISTEN_PID"))
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(v)
	}
	if pid != os.Getpid() {
		return files
	}
	for i := range n {
		fd := listenFirst + i
		if !isOpen(fd) {
			break
		}
		unix.CloseOnExec(fd)
		if i < len(names) && validStore(storeHold, names[i], fd) && files[names[i]] == 0 {
			files[names[i]] = fd
		} else {
			unix.Close(fd)
		}
	}
	return files
}
