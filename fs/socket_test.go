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

	"rcfs/testdata/rig"
)

// A connection that is open works on after its process has moved into another network, where a new
// one to the same address finds nobody.
func TestOpenSocketsKeepTheirNetwork(t *testing.T) {
	a := mkdir(t, mount(t, rig.System(t), rig.Spec("net"))+"/a")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	// A grandchild: see shell.
	script := fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%[1]d; echo $$ >&3; read line <&3; echo got $line >&3; "+
		"read line <&3; (exec 4<>/dev/tcp/127.0.0.1/%[1]d) 2>/dev/null && echo connected >&3 || echo refused >&3", port)
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
