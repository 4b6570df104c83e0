package proxy

import (
	"errors"
	"hash/fnv"
	"slices"
	"strings"
)

// binding is what a hierarchy has bound. It does not change; a hierarchy that gets more subsystems
// gets another binding.
type binding struct {
	slots      []int // ascending
	leads      []int // of each kernel hierarchy, the lowest bound slot that lives in it
	namespaces slotSet
	demanding  slotSet // those of the namespaces that are Demanding
	stops      bool    // there are some for which a target is stopped

	files    []BoundFile // in the order in which their subsystems were bound
	byName   map[string]*BoundFile
	byNumber map[uint32]*BoundFile

	subsystems []Subsystem // all, by slot
}

// BoundFile is a control file of a bound subsystem.
type BoundFile struct {
	File
	Subsystem string // whose it is
	Slot      int    // of the subsystem
	Number    uint32 // the same in every version of rcfs, below MaxFileNumber
}

// MaxFileNumber is above every file's number.
const MaxFileNumber = 1 << 27

// numberOf returns a number for a file. Who has the file open knows it by that, also after an upgrade to a version that has
// more subsystems and files, so it comes from the name. Of two names with the same one the later gets the next.
func numberOf(name string, taken map[uint32]*BoundFile) uint32 {
	h := fnv.New32a()
	h.Write([]byte(name))
	n := h.Sum32() % MaxFileNumber
	for taken[n] != nil {
		n = (n + 1) % MaxFileNumber
	}
	return n
}

// with returns a binding of more subsystems, which have been bound just now.
func (b *binding) with(slots []int) *binding {
	n := &binding{
		slots:      slices.Concat(b.slots, slots),
		files:      slices.Clone(b.files),
		namespaces: b.namespaces,
		demanding:  b.demanding,
		stops:      b.stops,
		byName:     make(map[string]*BoundFile),
		byNumber:   make(map[uint32]*BoundFile),
		subsystems: b.subsystems,
	}
	slices.Sort(n.slots)
	for _, slot := range n.slots {
		if n.lead(slot) == slot {
			n.leads = append(n.leads, slot)
		}
	}
	for _, slot := range slots {
		s := b.subsystems[slot]
		if s.Kind() == KindNamespace {
			n.namespaces |= 1 << slot
		}
		_, enters := s.(Enterer)
		_, changes := s.(Changer)
		_, stops := s.(Stopper)
		n.stops = n.stops || enters || changes || stops
		if d, ok := s.(Demanding); ok && d.Demanding() {
			n.demanding |= 1 << slot
		}
		if f, ok := s.(Filer); ok {
			for _, file := range f.Files() {
				if !slices.ContainsFunc(n.files, func(f BoundFile) bool { return f.Name == file.Name }) {
					n.files = append(n.files, BoundFile{File: file, Subsystem: s.Name(), Slot: slot})
				} // else two subsystems that share a tree share it
			}
		}
	}
	for i := range n.files {
		f := &n.files[i]
		f.Number = numberOf(f.Name, n.byNumber)
		n.byName[f.Name], n.byNumber[f.Number] = f, f
	}
	return n
}

// lead returns the slot that stands for the kernel hierarchy in which slot lives.
func (b *binding) lead(slot int) int {
	for _, l := range b.leads {
		if l == slot || sameTree(b.subsystems[l], b.subsystems[slot]) {
			return l
		}
	}
	return slot
}

func sameTree(a, b Subsystem) bool {
	sa, ok := a.(Sharer)
	if !ok {
		return a == b
	}
	sb, ok := b.(Sharer)
	return ok && sa.Tree() == sb.Tree()
}

// names returns the names of the bound subsystems, sorted.
func (b *binding) names() []string {
	var names []string
	for _, slot := range b.slots {
		names = append(names, b.subsystems[slot].Name())
	}
	return names
}

// namesOf returns the names of the bound subsystems in set, sorted.
func (b *binding) namesOf(set slotSet) []string {
	var names []string
	for _, slot := range b.slots {
		if set&(1<<slot) != 0 {
			names = append(names, b.subsystems[slot].Name())
		}
	}
	return names
}

// namespaceSlot returns the slot of a bound namespace subsystem, -1 where there is none.
func (b *binding) namespaceSlot(name string) int {
	for _, slot := range b.slots {
		if b.namespaces&(1<<slot) != 0 && b.subsystems[slot].Name() == name {
			return slot
		}
	}
	return -1
}

// groupsFirst returns the bound slots in the order in which a container gets its states: what owns
// namespaces comes before those.
func (b *binding) groupsFirst() []int {
	var groups, owners, owned []int
	for _, slot := range b.slots {
		_, sovereign := b.subsystems[slot].(Sovereign)
		switch {
		case b.namespaces&(1<<slot) == 0:
			groups = append(groups, slot)
		case sovereign:
			owners = append(owners, slot)
		default:
			owned = append(owned, slot)
		}
	}
	return slices.Concat(groups, owners, owned)
}

// wholeOnly returns a bound subsystem that takes whole processes only, "" if there is none.
func (b *binding) wholeOnly() string {
	for _, slot := range b.slots {
		if t, ok := b.subsystems[slot].(Threaded); !ok || !t.Threaded() {
			return b.subsystems[slot].Name()
		}
	}
	return ""
}

// Files returns the control files of the bound subsystems. The list does not change; when
// subsystems are added another one takes its place, in which these files come first.
func (h *Hierarchy) Files() []BoundFile { return h.binding().files }

// FileNamed returns the control file of that name, nil if no bound subsystem has it.
func (h *Hierarchy) FileNamed(name string) *BoundFile { return h.binding().byName[name] }

// FileNumbered returns the control file with that number, nil if there is none.
func (h *Hierarchy) FileNumbered(n uint32) *BoundFile { return h.binding().byNumber[n] }

// HasFile reports whether a bound subsystem has a control file of that name.
func (h *Hierarchy) HasFile(name string, root bool) bool {
	f := h.FileNamed(name)
	return f != nil && f.Exists(root)
}

// Exists reports whether the file is there in the root, or in the other containers.
func (f *File) Exists(root bool) bool {
	if root {
		return f.In&InRoot != 0
	}
	return f.In&InChild != 0
}

// Subsystems returns the names of the bound subsystems, sorted.
func (h *Hierarchy) Subsystems() []string { return h.binding().names() }

// DefaultSource is what a mount of a hierarchy without subsystems shows as its source.
const DefaultSource = "none"

// Source is what findmnt shows as the mount's source: the bound subsystems.
func (h *Hierarchy) Source() string { return source(h.Subsystems()) }

func source(names []string) string {
	if len(names) == 0 {
		return DefaultSource
	}
	return strings.Join(names, ",")
}

// bind binds subsystems besides those that are bound already; the root container gets their
// states. A failure leaves what was.
func (h *Hierarchy) bind(more []int) (err error) {
	var done []int
	var states slots
	defer func() {
		if err != nil {
			err = errors.Join(err, h.unbind(done, &states))
		}
	}()
	for _, slot := range more {
		s := h.sys.subsystems[slot]
		o, err := s.Bind(h.root)
		if err != nil {
			return &Error{Op: "bind", Subsystem: s.Name(), Err: err}
		}
		done = append(done, slot)
		states[slot] = h.sys.table.hold(o)
	}
	next := h.binding().with(more)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, slot := range more {
		h.root.states.set(slot, states[slot])
	}
	h.root.fresh |= next.namespaces &^ h.binding().namespaces
	h.bound.Store(next)
	return nil
}

// unbind gives back what bind did; states are those that the root had.
func (h *Hierarchy) unbind(bound []int, states *slots) error {
	var errs []error
	for _, slot := range slices.Backward(bound) {
		s := h.sys.subsystems[slot]
		if err := s.Unbind(h.root); err != nil {
			errs = append(errs, &Error{Op: "unbind", Subsystem: s.Name(), Err: err})
		}
		h.sys.table.drop(states[slot])
	}
	return errors.Join(errs...)
}
