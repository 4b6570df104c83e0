package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// callPatience is how long a client waits for an answer: making a hierarchy can mean waiting for
// the kernel to take an old one down.
const callPatience = 60 * time.Second

// errNoDaemon says that nobody listens on the control socket.
var errNoDaemon = errors.New("no rcfsd is running")

// errGone says that the daemon ended before it answered, so nothing was done.
var errGone = errors.New("the daemon ended before it answered")

// untilAnswered does something with the daemon again for as long as the one at the other end ends, and the time of a start.
func untilAnswered(do func() error) error {
	deadline := time.Now().Add(launchPatience)
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		if err := do(); !errors.Is(err, errGone) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause)
	}
}

// dial connects to the daemon.
func dial() (conn, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socketPath, Net: "unix"})
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return conn{}, errNoDaemon
	case errors.Is(err, os.ErrPermission):
		return conn{}, exit(exitUsage, fmt.Errorf("only root can talk to rcfsd: %w", err))
	}
	return conn{c}, err
}

// call sends r, with a descriptor unless fd is negative, and returns the answer.
func (c conn) call(r *request, fd int) (*reply, error) {
	if err := c.send(r, fd, requestPatience); err != nil {
		return nil, errors.Join(errGone, err)
	}
	body, got, err := c.receive(maxReply, callPatience)
	switch {
	case err == io.EOF, errors.Is(err, syscall.ECONNRESET):
		return nil, errGone
	case err != nil:
		return nil, fmt.Errorf("answer of the daemon: %w", err)
	case got >= 0:
		syscall.Close(got)
	}
	var a reply
	if err := decode(body, &a); err != nil {
		return nil, err
	}
	return &a, a.err()
}

// verb is one thing that rcfs(1) can do.
type verb struct {
	name, args, help string
	run              func(args []string, stdout io.Writer) error
}

var verbs = []verb{
	{"status", "[--json]", "show the daemon, its hierarchies and proxies", statusVerb},
	{"ps", "[--json] [--proc] [PID]", "show which states all tasks have, or one", psVerb},
	{"restart", "", "let the program on disk take over from the running daemon", restartVerb},
	{"doctor", "", "look for what is inconsistent, and mend it", doctorVerb},
}

func clientMain(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		if i := slices.IndexFunc(verbs, func(v verb) bool { return v.name == args[0] }); i >= 0 {
			return report(stderr, "rcfs "+args[0], verbs[i].run(args[1:], stdout))
		}
	}
	var usage strings.Builder
	usage.WriteString("usage:\n")
	for _, v := range verbs {
		fmt.Fprintf(&usage, "  rcfs %s\n        %s\n", strings.TrimSpace(v.name+" "+v.args), v.help)
	}
	if len(args) == 1 && slices.Contains([]string{"help", "-h", "--help"}, args[0]) {
		io.WriteString(stdout, usage.String())
		return 0
	}
	if len(args) > 0 {
		fmt.Fprintf(stderr, "rcfs: unknown verb %q\n", args[0])
	}
	io.WriteString(stderr, usage.String())
	return exitUsage
}
