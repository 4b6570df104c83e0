package subsystems

import "golang.org/x/sys/unix"

// See ipc_namespaces(7).
func init() {
	registerNamespace(&namespace{name: "ipc", link: "ipc", flag: unix.CLONE_NEWIPC, order: 10})
}
