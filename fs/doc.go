// Package fs is the file system: it shows the containers of a hierarchy as directories and turns
// what is done to their files into operations of package proxy. It knows no subsystem; which
// control files there are, it asks.
//
// # One request's life
//
// The kernel sends a request with a node id; who has the right to read (readers.go) reads it into the mount's ledger
// (ledger.go), where it stands until the mount's loop (loop.go) has answered it, whoever lives to do that. A node id is a number that means a container and
// one of its files (node.go), so nothing has to be looked up in a tree of inodes, no file is
// "open" in here, and a request means the same to a daemon that was started later. A handler
// decodes the id, finds the container, calls package proxy, and turns an error into an errno at
// the very edge (errno.go), leaving the words in the container's rcfs.error.
//
// The kernel keeps names and attributes for an hour, so looking at them costs no round trip.
// What one mount changes is therefore told to the other mounts of the hierarchy (view.go), by a
// goroutine of theirs: a notification may wait for a directory that the kernel has locked for a
// request which is still on its way to us.
//
// What is read and written of a controller's open file does not come here at all where the kernel can pass it through
// (backing.go).
//
// A write to tasks by the very task that shall move is answered before the move (tasks.go): the
// writer cannot be stopped while it waits for the answer.
//
// No lock of this package is held over a call into package proxy or the kernel.
package fs
