// Rcfsd is the whole of rcfs in one program. The name it is called by says what it is: the
// daemon (rcfsd), the helper that mount(8) runs (mount.fuse.rcfs, mount.rcfs), or the client
// (rcfs). The daemon is two processes, a keeper and a worker (keeper.go).
//
// A mount is made by two processes. The helper runs in the caller's mount namespace, so it
// resolves the directory, opens /dev/fuse and calls mount(2); the daemon knows the hierarchies
// and serves the descriptor. They talk over the control socket (message.go):
//
//	helper: what is wanted, and where   → daemon: the mount's source, or why not
//	helper: the mounted descriptor      → daemon: it is served
//
// A helper that dies takes its request with it, because the daemon sees the connection end.
package main

import (
	"io"
	"os"
	"path/filepath"

	_ "rcfs/subsystems" // each registers itself
)

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// run does what the program is called for and returns its exit status.
func run(args []string, stdout, stderr io.Writer) int {
	name := filepath.Base(args[0])
	switch name {
	case "mount.fuse.rcfs", "mount.rcfs":
		return helperMain(name, args[1:], stderr)
	case workerComm:
		return workerMain(args[1:], stderr)
	case "rcfs":
		return clientMain(args[1:], stdout, stderr)
	}
	return daemonMain(args[1:], stderr)
}
