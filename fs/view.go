package fs

import (
	"errors"
	"log/slog"

	"rcfs/proxy"
)

// View is one mount of a hierarchy, served from an open /dev/fuse.
type View struct{}

// NewView prepares a view that will be mounted on where. Add it with proxy.System.Mount, then
// Serve it.
func NewView(sys *proxy.System, where string, log *slog.Logger) *View { return nil }

// Where returns the directory the view is mounted on.
func (v *View) Where() string { return "" }

// Alive reports whether the view is, or still may be, mounted.
func (v *View) Alive() bool { return false }

// Serve serves h on fd, an open /dev/fuse that has been given to mount(2). It takes the
// descriptor over, and returns when the first requests can be answered; the view then ends by
// itself when it is unmounted, takes itself out of the system and calls done.
func (v *View) Serve(h *proxy.Hierarchy, fd int, done func()) error { return errors.New("not yet") }

// MountData returns the options that the helper has to give to mount(2) with descriptor fd.
func MountData(fd int) string { return "" }
