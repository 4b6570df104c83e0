package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
)

// intent is a change of a hierarchy's tree that is under way. Several system calls make one change, so
// the note of the roster's root says which before the first, and goes after the last. The next daemon
// that finds one was preceded by one that was killed in between, and finishes the change or takes it
// back (resume): which of the two the roster's directory says.
type intent struct {
	Op    string
	Path  octets            // of the container, before the change
	ID    uint64            `json:",omitempty"` // of the container, unless it is being made
	Name  octets            `json:",omitempty"` // of opRename: the new one
	From  Attr              `json:",omitzero"`  // of opChown
	To    Attr              `json:",omitzero"`  // of opChown
	Anew  []string          `json:",omitempty"` // of opChown: the namespaces that are made anew, in that order
	Value map[string]octets `json:",omitempty"` // of opChown: what was set in them, by control file
}

// octets are bytes that need not be UTF-8, as names are not.
type octets string

// MarshalText writes o as a literal of Go.
func (o octets) MarshalText() ([]byte, error) { return strconv.AppendQuoteToASCII(nil, string(o)), nil }

// UnmarshalText reads it.
func (o *octets) UnmarshalText(text []byte) error {
	s, err := strconv.Unquote(string(text))
	*o = octets(s)
	return err
}

const (
	opMake   = "mkdir"
	opRemove = "rmdir"
	opRename = "rename"
	opChown  = "chown"
)

const noteIntent = "intent"

// change makes a change of the tree. Its caller holds h.shape.
func (h *Hierarchy) change(i intent, f func() error) error {
	text, err := json.Marshal(i)
	if err == nil {
		err = h.roster.SetNote("", noteIntent, string(text))
	}
	if err != nil {
		return err
	}
	err = f()
	if e := h.roster.SetNote("", noteIntent, ""); e != nil {
		// The next daemon finds it, and takes back what is not said to have been done.
		return errors.Join(err, e)
	}
	return err
}

// site is the place of a container that is not in the tree.
type site struct {
	h    *Hierarchy
	id   uint64
	path string
}

func (s site) Hierarchy() string   { return s.h.name }
func (s site) Base() string        { return s.h.base }
func (s site) ContainerID() uint64 { return s.id }
func (s site) Path() string        { return s.path }

// resume finishes the change that an earlier daemon was killed in, or takes it back, before the tree is
// looked at. What it returns is to be done once that is there.
func (h *Hierarchy) resume() (later func() error, err error) {
	later = func() error { return nil }
	text, err := h.roster.Note("", noteIntent)
	if err != nil || text == "" {
		return later, err
	}
	var i intent
	if err := json.Unmarshal([]byte(text), &i); err != nil {
		i.Op = "change" // unknown
	}
	at := string(i.Path)
	done := ""
	switch i.Op {
	case opMake:
		done, err = h.unmake(i)
	case opRemove:
		done, err = h.finishRemove(i)
	case opRename:
		done, err = h.finishRename(i)
	case opChown:
		done, err = "done", h.prepareChown(i)
		later = func() error { return errors.Join(h.finishChown(i), h.roster.SetNote("", noteIntent, "")) }
	default:
		err = fmt.Errorf("%q is not known", text)
	}
	h.report(Finding{Container: at, What: "a daemon was killed in its " + i.Op, Done: outcome(done, err)})
	if i.Op != opChown { // that goes on later
		err = h.roster.SetNote("", noteIntent, "")
	} else {
		err = nil
	}
	return later, err
}

// unmake takes back what was made of a container. The roster's directory was there before all
// else and goes after it.
func (h *Hierarchy) unmake(i intent) (string, error) {
	entry, err := h.roster.Entry(string(i.Path))
	if errors.Is(err, fs.ErrNotExist) {
		return "nothing had been done", nil
	}
	if err == nil {
		err = h.destroyAt(site{h, entry.ID, string(i.Path)}, h.binding().groupsFirst())
	}
	if err == nil {
		err = h.roster.Remove(string(i.Path))
	}
	return "taken back", err
}

// finishRemove removes what a container had, if the roster's directory has gone.
func (h *Hierarchy) finishRemove(i intent) (string, error) {
	entry, err := h.roster.Entry(string(i.Path))
	switch {
	case err == nil && entry.ID == i.ID:
		return "nothing had been done", nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	list := h.binding().groupsFirst()
	if err == nil { // the groups of that name are another container's
		list = slices.DeleteFunc(list, func(slot int) bool { return h.binding().namespaces&(1<<slot) == 0 })
	}
	return "done", h.destroyAt(site{h, i.ID, string(i.Path)}, list)
}

// destroyAt removes the objects that were made for a place, in reverse order.
func (h *Hierarchy) destroyAt(p Place, list []int) error {
	b := h.binding()
	var errs []error
	for _, slot := range slices.Backward(list) {
		if b.lead(slot) != slot {
			continue
		}
		s := h.sys.subsystems[slot]
		if err := s.Destroy(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("%s: %w", s.Name(), err))
		}
	}
	return errors.Join(errs...)
}

// finishRename gives the groups the name that the roster's directory has.
func (h *Hierarchy) finishRename(i intent) (string, error) {
	renamed := path.Join(path.Dir(string(i.Path)), string(i.Name))
	_, err := h.roster.Entry(string(i.Path))
	if errors.Is(err, fs.ErrNotExist) {
		return "done", nil // it is renamed last
	}
	if err != nil {
		return "", err
	}
	var errs []error
	for _, slot := range h.binding().leads {
		s := h.sys.subsystems[slot]
		r, ok := s.(Renamer)
		if !ok {
			continue
		}
		o, err := s.Reopen(site{h, i.ID, renamed}, nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = r.Rename(o, string(i.Name), path.Base(string(i.Path)))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.Name(), err))
		}
	}
	return "taken back", errors.Join(errs...)
}

// prepareChown gives the container its new owner, and removes what is made anew for that.
func (h *Hierarchy) prepareChown(i intent) error {
	if err := h.setRosterAttr(string(i.Path), i.To); err != nil {
		return err
	}
	return h.destroyAt(site{h, i.ID, string(i.Path)}, h.slotsNamed(i.Anew))
}

// finishChown makes it anew, for the old owner where it cannot be for the new one.
func (h *Hierarchy) finishChown(i intent) error {
	c := h.Container(i.ID)
	if c == nil || len(i.Anew) == 0 {
		return nil
	}
	if err := (remaking{c, h.slotsNamed(i.Anew), i.Value}).run(i.From); err != nil {
		err = errors.Join(err, h.setRosterAttr(string(i.Path), i.From))
		h.report(Finding{Container: string(i.Path), What: err.Error(), Done: "the owner stays"})
	}
	return nil
}

func (h *Hierarchy) setRosterAttr(path string, a Attr) error {
	return errors.Join(h.roster.SetOwner(path, a.Owner), h.roster.SetMode(path, a.Mode))
}

// slotsNamed returns the bound slots of subsystems, in the order of their names.
func (h *Hierarchy) slotsNamed(names []string) []int {
	var list []int
	for _, name := range names {
		if slot := h.binding().namespaceSlot(name); slot >= 0 {
			list = append(list, slot)
		}
	}
	return list
}
