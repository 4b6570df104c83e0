package subsystems

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// On v1 a new cpuset is empty and takes no task (cpuset_can_attach in
// kernel/cgroup/cpuset.c answers ENOSPC); on v2 empty means the parent's.
func init() {
	needed := []string{"cpuset.cpus", "cpuset.mems"}
	registerController(&controller{name: "cpuset", inherit: needed, check: func(g *group) error {
		for _, file := range needed {
			var value [16]byte
			n, err := g.tree.read(g.dir()+"/"+file, value[:], 0)
			if err != nil {
				return err
			}
			if strings.TrimSpace(string(value[:n])) == "" {
				return fmt.Errorf("%s is empty: %w", file, unix.ENOSPC)
			}
		}
		return nil
	}})
}
