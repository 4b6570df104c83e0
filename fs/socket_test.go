package fs_test

import (
	"bufio"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
)

// A connection that is open works on after its process has moved into another network, where a new
// one to the same address finds nobody.
func TestOpenSocketsKeepTheirNetwork(t *testing.T) {
	dir := mount(t, rig.System(t), rig.Spec("net"))
	a, b := mkdir(t, dir+"/a"), mkdir(t, dir+"/b")
	// In b, because the machine's own loopback interface need not be up.
	listener, err := listenIn(b + "/net.ns")
	require.NoError(t, err)
	defer listener.Close()
	require.NoError(t, listener.SetDeadline(time.Now().Add(time.Minute)))
	port := listener.Addr().(*net.TCPAddr).Port
	// A grandchild: see shell.
	script := fmt.Sprintf("echo 0 > %[2]s/tasks; exec 3<>/dev/tcp/127.0.0.1/%[1]d; echo $$ >&3; read line <&3; echo got $line >&3; "+
		"read line <&3; (exec 4<>/dev/tcp/127.0.0.1/%[1]d) 2>/dev/null && echo connected >&3 || echo refused >&3", port, b)
	cmd := exec.Command("sh", "-c", `bash -c "$1"; exit $?`, "sh", script)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Wait() })
	conn, err := listener.Accept()
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	in := bufio.NewReader(conn)
	hear := func() string {
		line, err := in.ReadString('\n')
		require.NoError(t, err)
		return strings.TrimSpace(line)
	}
	pid := hear()
	move(t, a, pid)
	require.Equal(t, []string{"net:[" + linkTarget(t, a+"/net.ns") + "]"}, namespacesOf(t, atoi(pid), "net"))
	fmt.Fprintln(conn, "a line")
	require.Equal(t, "got a line", hear())
	fmt.Fprintln(conn)
	require.Equal(t, "refused", hear())
}

// listenIn listens on a port of the loopback interface in a network namespace.
func listenIn(ns string) (listener *net.TCPListener, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		lockForEver()
		fd, e := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err = e; err != nil {
			return
		}
		defer unix.Close(fd)
		if err = unix.Setns(fd, unix.CLONE_NEWNET); err == nil {
			listener, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		}
	}()
	<-done
	return listener, err
}
