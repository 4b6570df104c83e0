package subsystems

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// v1 is the layout of cgroup v1 (Documentation/admin-guide/cgroup-v1/cgroups.rst): a group has
// tasks and children, every thread may be in a group of its own, and each controller's
// hierarchy has its files in all groups.
type v1 struct{}

func (v1) tasksDir() string                    { return "" }
func (v1) create(t *tree, path string) error   { return t.mkdir(path) }
func (v1) destroy(t *tree, path string) error  { return t.rmdir(path) }
func (v1) enable(*tree, string, string) error  { return nil }
func (v1) disable(*tree, string, string) error { return nil }
func (v1) threaded() bool                      { return true }
func (v1) renames() error                      { return nil }

// prepare copies what a new group must have before a task can enter it.
func (v1) prepare(t *tree, c *controller, path, parent string) error {
	for _, file := range c.inherit {
		have, err := t.readAll(path + "/" + file)
		if err != nil {
			return err
		}
		if strings.TrimSpace(have) != "" {
			continue
		}
		value, err := t.readAll(parent + "/" + file)
		if err != nil {
			return err
		}
		if err := t.write(path+"/"+file, []byte(value)); err != nil {
			return fmt.Errorf("inherit: %w", err)
		}
	}
	return nil
}

// host refuses where prepare would have to write.
func (v1) host(t *tree, c *controller, path string) error {
	for _, file := range c.inherit {
		have, err := t.readAll(path + "/" + file)
		if err != nil {
			return err
		}
		if strings.TrimSpace(have) == "" {
			return fmt.Errorf("%s is not a group of rcfs, and its %s is empty: %w", t.name(path), file, unix.ENOSPC)
		}
	}
	return nil
}
