package subsystems

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"rcfs/proxy"
)

func init() { proxy.RegisterSweeper(sweeper{}) }

// sweeper removes what daemons that were killed have left of namespaces.
type sweeper struct{}

// Processes ends the keepers that no daemon has written down.
func (sweeper) Processes(h proxy.Host) (removed []string, err error) {
	run, err := runOf(h.Run)
	if err != nil {
		return nil, err
	}
	stray, err := strayKeepers(run, pinsIn(h))
	for _, k := range stray {
		removed = append(removed, fmt.Sprintf("process %d, which a daemon had begun to keep a namespace by", k.pid))
		err = errors.Join(err, k.end())
	}
	return removed, err
}

// Pins removes the pins without a container, and what is beside them: HIERARCHY/NUMBER.SUBSYSTEM[.WHAT]. Hierarchies of values
// that a daemon had no time to see go are seen to.
func (sweeper) Pins(h proxy.Host, whose func(hierarchy string, id uint64) bool) (removed []string, err error) {
	sweepValues()
	files, err := filepath.Glob(filepath.Join(pinsIn(h), "*", "*"))
	for _, file := range files {
		number, _, _ := strings.Cut(filepath.Base(file), ".")
		id, e := strconv.ParseUint(number, 10, 64)
		if e != nil || whose(filepath.Base(filepath.Dir(file)), id) {
			continue
		}
		removed = append(removed, file+", of a container that is not there")
		if strings.HasSuffix(file, record("")) {
			err = errors.Join(err, dismiss(strings.TrimSuffix(file, record(""))))
		}
		err = errors.Join(err, unpin(file))
	}
	return removed, err
}

// sweepValues has the kernel take down the hierarchies of values that have no directories: nobody has bound them. It takes its
// time for those in which somebody's zombie was.
func sweepValues() {
	labels, err := hierarchies()
	if err != nil {
		return
	}
	for _, label := range labels {
		if !strings.HasPrefix(label, hierarchyPrefix) {
			continue
		}
		t := &tree{label: label}
		if err := t.acquire(); err != nil {
			continue // it is on its way down
		}
		entries, err := t.list("")
		t.release()
		if err == nil && !slices.ContainsFunc(entries, os.DirEntry.IsDir) {
			t.vanish(sweepPatience, func() bool { return false })
		}
	}
}

// sweepPatience is how long a daemon that starts waits for each.
const sweepPatience = 200 * time.Millisecond
