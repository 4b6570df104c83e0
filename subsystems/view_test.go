package subsystems_test

import (
	"os"

	"rcfs/proxy"
	"rcfs/testdata/view"
)

// What the tests say most often.
var (
	mount     = view.Mount
	mountOnce = view.Once
	mkdir     = view.Mkdir
	move      = view.Move
	read      = view.Read
	write     = view.Write
)

// gone is a view that nobody looks at and that never ends by itself.
type gone struct{}

func (gone) Where() string { return "nowhere" }
func (gone) Alive() bool   { return true }

var owner = proxy.Owner{}

func none(string) bool { return false }

// readFile reads a container's control file to its end.
func readFile(h *proxy.Hierarchy, c *proxy.Container, name string) (string, error) {
	for _, f := range h.Files() {
		if f.Name != name {
			continue
		}
		return readBound(c, f)
	}
	return "", os.ErrNotExist
}

func readBound(c *proxy.Container, f proxy.BoundFile) (string, error) {
	var text []byte
	buf := make([]byte, 4096)
	for {
		n, err := f.Read(c.Object(f.Slot), buf, int64(len(text)))
		if n == 0 || err != nil {
			return string(text), err
		}
		text = append(text, buf[:n]...)
	}
}
