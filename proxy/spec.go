package proxy

import (
	"fmt"
	"hash/fnv"
	"strings"
)

// Spec is what a mount asks for.
type Spec struct {
	Subsystems []string // names; empty with All or None, or where only a name is given
	All        bool     // every subsystem that the kernel has
	None       bool     // a tree without subsystems
	Name       string   // of the hierarchy; "" derives it from the subsystems
	Existing   bool     // only a hierarchy that is there already
	// ReleaseAgent is a program that is run with the path of a container that has become empty,
	// if it asks for it; it replaces the one that the hierarchy has. "" leaves it.
	ReleaseAgent string
	// Base is the directory in each kernel hierarchy, as a path from its root, below which the
	// groups are made; "" is DefaultBase. It is made, with its parents, where it is missing, and
	// removed in the end; one that is there already is somebody else's, and stays. EBUSY: cgroup v2
	// lets it have no groups with controllers below it, since it has processes; ENOSPC: it is
	// a cpuset of v1 without processors or memory.
	Base string
}

// DefaultBase is the directory in each kernel hierarchy below which rcfs makes its groups.
const DefaultBase = "rcfs"

// everything reports whether spec names no subsystem, and so means all of them.
func (spec Spec) everything() bool { return !spec.None && (spec.All || len(spec.Subsystems) == 0) }

// The kernel takes 63 bytes as the name of a hierarchy (MAX_CGROUP_ROOT_NAMELEN), of which the
// roster needs some for itself.
const maxName = 58

// defaultName names a hierarchy after its subsystems.
func defaultName(names []string, all bool) string {
	name := strings.Join(names, "-")
	switch {
	case all:
		return "all"
	case len(name) > maxName-4: // there must be room for ".2"
		sum := fnv.New64a()
		sum.Write([]byte(name))
		return fmt.Sprintf("set-%x", sum.Sum64())
	}
	return name
}

// CheckName reports whether a hierarchy may have that name: [A-Za-z0-9_.-], as cgroup v1 has it
// for name= (cgroup1_parse_param), and short enough for the kernel.
func CheckName(name string) error {
	ok := name != "" && len(name) <= maxName
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-')
	}
	if !ok {
		return fmt.Errorf("name %q: %w", name, ErrName)
	}
	return nil
}

// CheckReleaseAgent reports whether path can be a release agent: absolute, one line, and not
// longer than the kernel keeps (PATH_MAX in cgroup_release_agent_write).
func CheckReleaseAgent(path string) error {
	if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "\n\x00") || len(path) >= 4096 {
		return fmt.Errorf("release agent %q: %w", path, ErrValue)
	}
	return nil
}
