package fs

import (
	"fmt"
	"strconv"
	"strings"

	"rcfs/proxy"
)

// ownFile is a file that every container has, whatever subsystems are bound.
type ownFile struct {
	number    uint64 // in node ids, for ever
	name      string
	mode      uint32
	rootOnly  bool
	childOnly bool

	// text is what the file has for a reader. An open file goes on with what it was when its beginning was read: pieces
	// of different moments do not fit together.
	text func(c *proxy.Container, r proxy.Writer) (string, error)
	// watched is for a file that poll(2) waits for.
	watched bool
	// write takes data and returns how many bytes of it are done.
	write func(s *server, c *proxy.Container, w proxy.Writer, data []byte) (int, error)
}

func (f *ownFile) exists(root bool) bool { return root && !f.childOnly || !root && !f.rootOnly }

var ownFiles = []ownFile{
	{number: 1, name: "tasks", mode: 0o644, text: members("tasks"), write: attachTo("tasks")},
	{number: 2, name: "cgroup.procs", mode: 0o644, text: members("cgroup.procs"), write: attachTo("cgroup.procs")},
	{number: 3, name: "notify_on_release", mode: 0o644, text: readNotify, write: writeNotify},
	{number: 4, name: "rcfs.events", mode: 0o444, text: readEvents, watched: true},
	{number: 5, name: "rcfs.unshare", mode: 0o644, text: readUnshare, write: writeUnshare},
	{number: 6, name: "rcfs.proxies", mode: 0o444, text: readProxies},
	{number: 7, name: "rcfs.error", mode: 0o444, text: readError},
	{number: 8, name: "rcfs.subsystems", mode: 0o444, rootOnly: true, text: readSubsystems},
	{number: 9, name: "release_agent", mode: 0o644, rootOnly: true, text: readAgent, write: writeAgent},
	{number: 10, name: "rcfs.kill", mode: 0o200, childOnly: true, write: writeKill},
}

func ownByNumber(number uint64) *ownFile {
	if number == 0 || number > uint64(len(ownFiles)) {
		return nil
	}
	return &ownFiles[number-1]
}

func ownByName(name string) *ownFile {
	for i := range ownFiles {
		if ownFiles[i].name == name {
			return &ownFiles[i]
		}
	}
	return nil
}

// isOwnName reports whether no child may have that name, in the root or elsewhere.
func isOwnName(name string) bool { return ownByName(name) != nil }

func members(file string) func(*proxy.Container, proxy.Writer) (string, error) {
	return func(c *proxy.Container, r proxy.Writer) (string, error) { return c.ListFor(r, file) }
}

func readNotify(c *proxy.Container, _ proxy.Writer) (string, error) {
	on, err := c.Notify()
	return flag(on), err
}

func flag(on bool) string {
	if on {
		return "1\n"
	}
	return "0\n"
}

// writeNotify takes any number, as cgroup_write_notify_on_release in cgroup v1 does.
func writeNotify(_ *server, c *proxy.Container, _ proxy.Writer, data []byte) (int, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 0, 64)
	if err != nil {
		return 0, fmt.Errorf("notify_on_release %q: %w", data, proxy.ErrValue)
	}
	return len(data), c.SetNotify(n != 0)
}

func readAgent(c *proxy.Container, _ proxy.Writer) (string, error) {
	path, err := c.ReleaseAgent()
	return path + "\n", err
}

// writeAgent is for a writer that could start the agent itself.
func writeAgent(_ *server, c *proxy.Container, w proxy.Writer, data []byte) (int, error) {
	if err := w.Admin(); err != nil {
		return 0, fmt.Errorf("release_agent: %w", err)
	}
	return len(data), c.SetReleaseAgent(strings.TrimSpace(string(data)))
}

// writeKill takes 1 only, as cgroup.kill of cgroup v2 does.
func writeKill(_ *server, c *proxy.Container, _ proxy.Writer, data []byte) (int, error) {
	if strings.TrimSpace(string(data)) != "1" {
		return 0, fmt.Errorf("rcfs.kill %q: %w", data, proxy.ErrValue)
	}
	return len(data), c.Kill()
}

func readEvents(c *proxy.Container, _ proxy.Writer) (string, error) {
	populated, err := c.Populated()
	return "populated " + flag(populated), err
}

func readUnshare(c *proxy.Container, _ proxy.Writer) (string, error) {
	return strings.Join(c.Fresh(), " ") + "\n", nil
}

func writeUnshare(_ *server, c *proxy.Container, _ proxy.Writer, data []byte) (int, error) {
	return len(data), c.SetFresh(strings.Fields(string(data)))
}

func readProxies(c *proxy.Container, _ proxy.Writer) (string, error) {
	lines, err := c.Proxies()
	return joinLines(lines), err
}

func readError(c *proxy.Container, r proxy.Writer) (string, error) {
	err := c.Refusal(r)
	if err == nil {
		return "", nil
	}
	return words(err) + "\n", nil
}

func readSubsystems(c *proxy.Container, _ proxy.Writer) (string, error) {
	lines := []string{"#subsys_name\thierarchy\tcontainers\tkind\tbackend"}
	for _, s := range c.Tree().System().Subsystems() {
		lines = append(lines, fmt.Sprintf("%s\t%s\t%d\t%s\t%s", s.Name, orDash(s.Hierarchy), s.Containers, s.Kind, orDash(s.Backend)))
	}
	return joinLines(lines), nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func joinLines(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}
