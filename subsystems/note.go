package subsystems

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The kernel keeps extended attributes of cgroup directories as long as the directories; the
// prefix is one that only the initial user namespace's root can read or write (xattr(7)).
const notePrefix = "trusted.rcfs."

// note reads an attribute of a directory, "" where there is none.
func (t *tree) note(path, key string) (string, error) {
	fd, err := t.open(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	for {
		n, err := unix.Fgetxattr(fd, notePrefix+key, buf)
		switch {
		case errors.Is(err, unix.ENODATA):
			return "", nil
		case errors.Is(err, unix.ERANGE):
			buf = make([]byte, 2*len(buf))
		case err != nil:
			return "", fmt.Errorf("read attribute %q of %s: %w", key, t.name(path), err)
		default:
			return string(buf[:n]), nil
		}
	}
}

// setNote writes an attribute of a directory, or removes it where value is "".
func (t *tree) setNote(path, key, value string) error {
	fd, err := t.open(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if value == "" {
		err = unix.Fremovexattr(fd, notePrefix+key)
		if errors.Is(err, unix.ENODATA) {
			return nil
		}
	} else {
		err = unix.Fsetxattr(fd, notePrefix+key, []byte(value), 0)
	}
	if err != nil {
		return fmt.Errorf("write attribute %q of %s: %w", key, t.name(path), err)
	}
	return nil
}
