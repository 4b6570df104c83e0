package fs

import (
	"log/slog"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"rcfs/proxy"
)

// server answers the kernel's requests for one view.
type server struct {
	fuse.RawFileSystem // everything not implemented is ENOSYS

	h     *proxy.Hierarchy
	view  *View
	log   *slog.Logger
	since time.Time // shown as the time of everything
	lists lists
}

func newServer(h *proxy.Hierarchy, v *View, log *slog.Logger) *server {
	return &server{RawFileSystem: fuse.NewDefaultRawFileSystem(), h: h, view: v, log: log, since: time.Now(), lists: lists{ledger: v.ledger}}
}

func (s *server) String() string { return "rcfs" }

// StatFs gives df(1) and stat -f something to show.
func (s *server) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Frsize, out.NameLen = 4096, 4096, 255
	return fuse.OK
}

// The answers of cgroup v1 to what cannot be done in a cgroup file system.

// Create is refused: files come with their container.
func (s *server) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return fuse.EACCES
}

// Mknod is refused.
func (s *server) Mknod(_ <-chan struct{}, in *fuse.MknodIn, _ string, _ *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Unlink is refused.
func (s *server) Unlink(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return fuse.EPERM }

// Link is refused.
func (s *server) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Symlink is refused.
func (s *server) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Fsync has nothing to do.
func (s *server) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// FsyncDir has nothing to do.
func (s *server) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }
