package main

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// options is what mount(8) was asked for.
type options struct {
	spec    proxy.Spec
	flags   uintptr // of mount(2)
	remount bool
}

// alwaysFlags are set on every mount: a tree of control files has no programs and no devices.
const alwaysFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// flagWords are the words that stand for a flag of mount(2).
var flagWords = map[string]struct{ set, clear uintptr }{
	"ro":            {set: unix.MS_RDONLY},
	"rw":            {clear: unix.MS_RDONLY},
	"sync":          {set: unix.MS_SYNCHRONOUS},
	"async":         {clear: unix.MS_SYNCHRONOUS},
	"dirsync":       {set: unix.MS_DIRSYNC},
	"noatime":       {set: unix.MS_NOATIME},
	"atime":         {clear: unix.MS_NOATIME},
	"nodiratime":    {set: unix.MS_NODIRATIME},
	"diratime":      {clear: unix.MS_NODIRATIME},
	"relatime":      {set: unix.MS_RELATIME},
	"norelatime":    {clear: unix.MS_RELATIME},
	"strictatime":   {set: unix.MS_STRICTATIME},
	"nostrictatime": {clear: unix.MS_STRICTATIME},
	"lazytime":      {set: unix.MS_LAZYTIME},
	"nolazytime":    {clear: unix.MS_LAZYTIME},
	"nosymfollow":   {set: unix.MS_NOSYMFOLLOW},
	"symfollow":     {clear: unix.MS_NOSYMFOLLOW},
	"silent":        {set: unix.MS_SILENT},
	"loud":          {clear: unix.MS_SILENT},
}

// ignoredWords are what mount(8), fstab and mountinfo bring along and what changes nothing here.
var ignoredWords = []string{
	"defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner", "group",
	"suid", "nosuid", "dev", "nodev", "exec", "noexec", "mand", "nomand", "iversion", "noiversion",
	"allow_other", "default_permissions",
}

// ignoredKeys are the same with a value.
var ignoredKeys = []string{
	"user_id", "group_id", "max_read", "blksize", "fd", "rootmode", "uid", "gid", "user", "comment", "fsname", "subtype",
}

// Refusals of an option.
var (
	errWord      = fmt.Errorf("unknown subsystem or option: %w", unix.EINVAL)
	errEmpty     = fmt.Errorf("the value is missing: %w", unix.EINVAL)
	errTwice     = fmt.Errorf("given twice: %w", unix.EINVAL)
	errNoneMixed = fmt.Errorf("excludes subsystems: %w", unix.EINVAL)
	errAllMixed  = fmt.Errorf("names every subsystem already: %w", unix.EINVAL)
	errNameless  = fmt.Errorf("needs a name=: %w", unix.EINVAL)
	errName      = fmt.Errorf("not a name of [A-Za-z0-9_.-], or too long: %w", unix.EINVAL)
	errPath      = fmt.Errorf("not a relative path of what systemd calls its units, [A-Za-z0-9:_.@\\-]: %w", unix.EINVAL)
	errAgent     = fmt.Errorf("not an absolute path: %w", unix.EINVAL)
)

// optionError is the refusal of one word of -o.
type optionError struct {
	word string
	err  error
}

func (e *optionError) Error() string { return fmt.Sprintf("option %q: %s", e.word, e.err) }
func (e *optionError) Unwrap() error { return e.err }

// parseOptions reads what mount(8) passes with -o. Every refusal is an *optionError.
func parseOptions(list string) (options, error) {
	o := options{}
	var named, based bool
	for word := range strings.SplitSeq(list, ",") {
		if word == "" {
			continue
		}
		refuse := func(err error) (options, error) { return options{}, &optionError{word, err} }
		key, value, valued := strings.Cut(word, "=")
		if flag, ok := flagWords[word]; ok {
			o.flags = o.flags&^flag.clear | flag.set
			continue
		}
		switch {
		case slices.Contains(ignoredWords, word) || valued && slices.Contains(ignoredKeys, key) || isComment(word):
		case word == "remount":
			o.remount = true
		case word == "all":
			o.spec.All = true
		case word == "none":
			o.spec.None = true
		case !valued && proxy.Known(word):
			if !slices.Contains(o.spec.Subsystems, word) {
				o.spec.Subsystems = append(o.spec.Subsystems, word)
			}
		case key != "name" && key != "base" && key != "release_agent":
			return refuse(errWord)
		case value == "":
			return refuse(errEmpty)
		case key == "release_agent":
			if o.spec.ReleaseAgent != "" {
				return refuse(errTwice)
			}
			if proxy.CheckReleaseAgent(value) != nil {
				return refuse(errAgent)
			}
			o.spec.ReleaseAgent = value
		case key == "name" && named || key == "base" && based:
			return refuse(errTwice)
		case key == "name":
			if proxy.CheckName(value) != nil {
				return refuse(errName)
			}
			o.spec.Name, named = value, true
		default:
			if !validBase(value) {
				return refuse(errPath)
			}
			o.spec.Base, based = value, true
		}
	}
	o.flags |= alwaysFlags
	if err := o.combine(); err != nil {
		return options{}, err
	}
	return o, nil
}

// isComment reports whether mount(8) keeps the word for itself and for other programs.
func isComment(word string) bool {
	return strings.HasPrefix(word, "x-") || strings.HasPrefix(word, "X-")
}

// combine refuses words that exclude each other, and says what the absence of words means.
func (o *options) combine() error {
	s := &o.spec
	switch {
	case s.None && s.All:
		return &optionError{"all", fmt.Errorf("with none: %w", unix.EINVAL)}
	case s.None && len(s.Subsystems) > 0:
		return &optionError{"none", fmt.Errorf("with %s: %w", strings.Join(s.Subsystems, ","), errNoneMixed)}
	case s.All && len(s.Subsystems) > 0:
		return &optionError{s.Subsystems[0], fmt.Errorf("with all: %w", errAllMixed)}
	case s.None && s.Name == "":
		return &optionError{"none", errNameless}
	}
	// A name alone means the hierarchy of that name, and on a remount no word means no change.
	if !s.None && len(s.Subsystems) == 0 && s.Name == "" && !o.remount {
		s.All = true
	}
	return nil
}

// validBase reports whether p can be the directory below which rcfs makes its groups: it is
// joined to the paths of kernel hierarchies, so nothing in it may lead elsewhere. The characters are
// those of unit names (systemd.unit(5)).
func validBase(p string) bool {
	if len(p) > 1024 || path.IsAbs(p) || path.Clean(p) != p {
		return false
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == "." || part == ".." || len(part) > unix.NAME_MAX || strings.HasPrefix(part, ".rcfs") {
			return false
		}
		if strings.Trim(part, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:_.@\\-") != "" {
			return false
		}
	}
	return true
}
