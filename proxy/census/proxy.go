package census

import (
	"fmt"
	"slices"
	"strings"
)

// Proxy is the tuple of a task's states. Its slots are always in the same order: namespaces, the kernel's
// cgroup hierarchies, those of rcfs.
type Proxy []Slot

// Slot is one of them.
type Slot struct {
	// Subsystem is the name of a namespace's; of a cgroup hierarchy, what /proc/PID/cgroup calls it
	// ("cpu,cpuacct", "name=rcfs.cpu-uts"), cgroup2 for that of v2.
	Subsystem string
	// State is the kernel's name of the namespace, "uts:[4026531838]", or the group's path.
	State string
}

// State returns the state in a slot, "" where there is no such slot.
func (p Proxy) State(subsystem string) string {
	for _, s := range p {
		if s.Subsystem == subsystem {
			return s.State
		}
	}
	return ""
}

// Cgroup2 is the slot of cgroup v2, which has no name in /proc/PID/cgroup.
const Cgroup2 = "cgroup2"

// ours is what labels of rcfs's own hierarchies begin with.
const ours = "name=rcfs."

// States that have no name.
const (
	// Empty is that of a task whose next child will be the first in a pid namespace.
	Empty = "-"
	// Unknown is that of a task whose namespaces we may not see, root or not.
	Unknown = "?"
)

// namespaces are the subsystems that are namespaces, and their files in /proc/PID/ns. Those that a task's
// children will be in are what a container stands for.
var namespaces = []struct{ subsystem, file string }{
	{"uts", "ns/uts"},
	{"ipc", "ns/ipc"},
	{"net", "ns/net"},
	{"mnt", "ns/mnt"},
	{"pid", "ns/pid_for_children"},
	{"time", "ns/time_for_children"},
	{"cgroupns", "ns/cgroup"},
	{"userns", "ns/user"},
}

// parseReading makes a proxy of what was read of a task: a line for each of namespaces, empty where this
// kernel has none, and its cgroup file.
func parseReading(text string) (Proxy, error) {
	lines := strings.SplitN(text, "\n", len(namespaces)+1)
	if len(lines) != len(namespaces)+1 {
		return nil, fmt.Errorf("reading of %d lines", len(lines))
	}
	var p Proxy
	for i, ns := range namespaces {
		if lines[i] != "" {
			p = append(p, Slot{ns.subsystem, lines[i]})
		}
	}
	groups, err := parseGroups(lines[len(namespaces)])
	return append(p, groups...), err
}

// parseGroups reads a cgroup file (cgroups(7)): a line "id:label:path" for each hierarchy. A path may have
// colons, no newline.
func parseGroups(text string) ([]Slot, error) {
	var slots []Slot
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		id, rest, _ := strings.Cut(line, ":")
		label, path, ok := strings.Cut(rest, ":")
		if !ok || path == "" {
			return nil, fmt.Errorf("cgroup file: line %q", line)
		}
		switch {
		case label == "" && id == "0":
			label = Cgroup2
		case label == "":
			return nil, fmt.Errorf("cgroup file: line %q", line)
		}
		slots = append(slots, Slot{label, path})
	}
	slices.SortFunc(slots, func(a, b Slot) int {
		if x, y := strings.HasPrefix(a.Subsystem, ours), strings.HasPrefix(b.Subsystem, ours); x != y {
			if x {
				return 1
			}
			return -1
		}
		return strings.Compare(a.Subsystem, b.Subsystem)
	})
	return slots, nil
}

// unseen reports whether there is a namespace in a reading that we may not see.
func unseen(text string) bool {
	return strings.HasPrefix(text, Unknown+"\n") || strings.Contains(text, "\n"+Unknown+"\n")
}
