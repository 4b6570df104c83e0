package census

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
)

// layout is where in this kernel's structures things are.
type layout struct {
	pid, nsproxy, cssSet, cred int16 // in task_struct
	userNS                     int16 // in cred
}

// kernelTypes is the kernel's description of its own types (BTF, Documentation/bpf/btf.rst in its sources).
const kernelTypes = "/sys/kernel/btf/vmlinux"

func layoutOfKernel() (layout, error) {
	types, err := os.ReadFile(kernelTypes)
	if err != nil {
		return layout{}, err
	}
	return layoutOf(types)
}

// layoutOf looks for five members of two structures. Package btf, which makes itself ready for every question, takes
// ten times as long.
func layoutOf(types []byte) (layout, error) {
	var l layout
	task := map[string]*int16{
		"pid":       &l.pid,
		"nsproxy":   &l.nsproxy,
		"cgroups":   &l.cssSet,
		"real_cred": &l.cred, // the one that /proc/PID/ns/user goes by
	}
	cred := map[string]*int16{"user_ns": &l.userNS}
	err := eachStruct(types, func(name []byte, members func(f func(name []byte, at uint32))) {
		var wanted map[string]*int16
		switch string(name) {
		case "task_struct":
			wanted = task
		case "cred":
			wanted = cred
		default:
			return
		}
		members(func(name []byte, at uint32) {
			if field := wanted[string(name)]; field != nil && at <= math.MaxInt16 {
				*field = int16(at)
				delete(wanted, string(name))
			}
		})
	})
	if err == nil && len(task)+len(cred) > 0 {
		err = fmt.Errorf("no %v and %v in task_struct and cred", keys(task), keys(cred))
	}
	if err != nil {
		return layout{}, fmt.Errorf("%s: %w", kernelTypes, err)
	}
	return l, nil
}

func keys(m map[string]*int16) (list []string) {
	for k := range m {
		list = append(list, k)
	}
	return list
}

// Kinds of types, and how many bytes follow their first twelve: always, and for each of the entries that they have.
const kindStruct = 4

var kinds = [...]struct{ always, each int }{
	1:          {4, 0},  // int
	2:          {0, 0},  // pointer
	3:          {12, 0}, // array
	kindStruct: {0, 12},
	5:          {0, 12}, // union
	6:          {0, 8},  // enum
	7:          {0, 0},  // forward
	8:          {0, 0},  // typedef
	9:          {0, 0},  // volatile
	10:         {0, 0},  // const
	11:         {0, 0},  // restrict
	12:         {0, 0},  // function
	13:         {0, 8},  // its prototype
	14:         {4, 0},  // variable
	15:         {0, 12}, // section
	16:         {0, 0},  // float
	17:         {4, 0},  // declaration tag
	18:         {0, 0},  // type tag
	19:         {0, 12}, // enum of 64 bits
}

var errTypes = errors.New("not as BTF should be")

// eachStruct calls f for every structure that has a name, with what goes through its members. Bit fields are left
// out.
func eachStruct(b []byte, f func(name []byte, members func(func(name []byte, at uint32)))) error {
	word := func(b []byte, i int) uint32 { return binary.NativeEndian.Uint32(b[4*i:]) }
	// struct btf_header: magic, version and flags, then lengths and offsets from its end
	if len(b) < 24 || binary.NativeEndian.Uint16(b) != 0xeb9f || uint64(word(b, 1)) > uint64(len(b)) {
		return errTypes
	}
	rest := b[word(b, 1):]
	section := func(offset, length uint32) []byte {
		end := uint64(offset) + uint64(length)
		if end > uint64(len(rest)) {
			return nil
		}
		return rest[offset:end]
	}
	types, names := section(word(b, 2), word(b, 3)), section(word(b, 4), word(b, 5))
	nameAt := func(offset uint32) []byte {
		if uint64(offset) >= uint64(len(names)) {
			return nil
		}
		name, _, _ := bytes.Cut(names[offset:], []byte{0})
		return name
	}
	for len(types) > 0 {
		if len(types) < 12 {
			return errTypes
		}
		info := word(types, 1)
		kind, entries, bits := int(info>>24&31), int(info&0xffff), info>>31 == 1
		if kind == 0 || kind >= len(kinds) {
			return fmt.Errorf("%w: kind %d", errTypes, kind)
		}
		size := 12 + kinds[kind].always + kinds[kind].each*entries
		if size > len(types) {
			return errTypes
		}
		if name := nameAt(word(types, 0)); kind == kindStruct && len(name) > 0 {
			list := types[12:size]
			f(name, func(g func(name []byte, at uint32)) {
				for ; len(list) > 0; list = list[12:] {
					at := word(list, 2)
					if bits && at>>24 > 0 {
						continue
					}
					g(nameAt(word(list, 0)), at/8)
				}
			})
		}
		types = types[size:]
	}
	return nil
}
