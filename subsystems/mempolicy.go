package subsystems

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// From which nodes of memory a thread allocates: set_mempolicy(2).
func init() {
	registerCaller(&caller{value{controller: controller{name: "mempolicy"}, threads: true, items: []item{{
		name: "policy",
		read: readMemoryPolicy,
		call: func(text string) (proxy.Call, error) {
			mode, nodes, err := parseMemoryPolicy(text)
			if err != nil {
				return proxy.Call{}, err
			}
			call := proxy.Call{NR: unix.SYS_SET_MEMPOLICY, Args: [3]uint64{mode}}
			if len(nodes) > 0 {
				words := make([]uint64, slices.Max(nodes)/64+1)
				for _, n := range nodes {
					words[n/64] |= 1 << (n % 64)
				}
				call.Data, _ = binary.Append(nil, binary.NativeEndian, words)
				call.DataArg, call.Args[2] = 1, uint64(64*len(words)+1) // the kernel takes one less
			}
			return call, nil
		},
		parse: func(text string) (string, error) {
			mode, nodes, err := parseMemoryPolicy(text)
			return memoryPolicyText(mode, nodes), err
		},
	}}}})
}

// Modes by their numbers in include/uapi/linux/mempolicy.h, as mpol_to_str in mm/mempolicy.c calls them but for the
// blanks, and flags.
var (
	memoryModes = []string{"default", "prefer", "bind", "interleave", "local", "prefer-many", "weighted-interleave"}
	memoryFlags = []struct {
		name string
		flag uint64
	}{{"static", 1 << 15}, {"relative", 1 << 14}, {"balancing", 1 << 13}}
)

const (
	memoryDefault = 0
	memoryLocal   = 4
	maxNodes      = 1024 // NODES_SHIFT is 10 at most
)

// readMemoryPolicy reads the beginning of numa_maps (numa(7)): memory to which no policy of its own was given, as the program's
// first, has the thread's. The rest would have the kernel count all pages.
func readMemoryPolicy(tid int) (string, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/numa_maps", tid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var b [128]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return "", err
	}
	_, rest, found := strings.Cut(string(b[:n]), " ")
	if !found {
		return "", fmt.Errorf("thread %d has no memory: %w", tid, unix.ESRCH)
	}
	for blank, word := range map[string]string{"prefer (many)": "prefer-many", "weighted interleave": "weighted-interleave"} {
		if more, ok := strings.CutPrefix(rest, blank); ok {
			rest = word + more
		}
	}
	word, _, _ := strings.Cut(rest, " ")
	return strings.TrimSpace(word), nil
}

// parseMemoryPolicy reads "MODE", "MODE:NODES" and "MODE=FLAG|FLAG:NODES".
func parseMemoryPolicy(text string) (mode uint64, nodes []int, err error) {
	refuse := func() (uint64, []int, error) {
		return 0, nil, fmt.Errorf("not default, local, or MODE:NODES of %s: %w", strings.Join(memoryModes, ", "), proxy.ErrValue)
	}
	head, list, listed := strings.Cut(text, ":")
	name, flags, flagged := strings.Cut(head, "=")
	n := slices.Index(memoryModes, name)
	if n < 0 {
		return refuse()
	}
	mode = uint64(n)
	if flagged {
		for word := range strings.SplitSeq(flags, "|") {
			i := slices.IndexFunc(memoryFlags, func(f struct {
				name string
				flag uint64
			}) bool {
				return f.name == word
			})
			if i < 0 || mode&memoryFlags[i].flag != 0 {
				return refuse()
			}
			mode |= memoryFlags[i].flag
		}
	}
	if listed {
		set, err := parseProcessors(list)
		if err != nil {
			return refuse()
		}
		for node := range maxNodes {
			if set.IsSet(node) {
				nodes = append(nodes, node)
			}
		}
	}
	bare := n == memoryDefault || n == memoryLocal
	if bare == listed || bare && flagged {
		return refuse()
	}
	return mode, nodes, nil
}

func memoryPolicyText(mode uint64, nodes []int) string {
	var flags []string
	for _, f := range memoryFlags {
		if mode&f.flag != 0 {
			flags = append(flags, f.name)
			mode &^= f.flag
		}
	}
	if mode >= uint64(len(memoryModes)) {
		return ""
	}
	text := memoryModes[mode]
	if len(flags) > 0 {
		text += "=" + strings.Join(flags, "|")
	}
	if len(nodes) == 0 {
		return text
	}
	var set unix.CPUSet
	for _, n := range nodes {
		set.Set(n)
	}
	return text + ":" + processorsText(set)
}
