package subsystems

import (
	"strings"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/sys/unix"
)

// doors are the cgroup.procs files of a tree's groups that tasks were put into last, open: to open and close one
// takes the kernel longer than to move a task.
type doors struct {
	mu     sync.Mutex
	recent *simplelru.LRU[string, *door] // guarded by mu; by the group's path; nil: none
	closed int                           // guarded by mu; how often paths have changed their meaning
}

// door is an open cgroup.procs.
type door struct {
	fd    int
	users int // guarded by doors.mu: those who write to it, and the list
}

// maxDoors bounds how many are open in each tree.
const maxDoors = 64

// take returns the door of a group, which open opens where it is not. It has to be given back.
func (d *doors) take(path string, open func() (int, error)) (*door, error) {
	d.mu.Lock()
	if d.recent != nil {
		if x, ok := d.recent.Get(path); ok {
			x.users++
			d.mu.Unlock()
			return x, nil
		}
	}
	before := d.closed
	d.mu.Unlock()
	fd, err := open()
	if err != nil {
		return nil, err
	}
	x := &door{fd: fd, users: 1}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.recent == nil {
		d.recent, _ = simplelru.NewLRU(maxDoors, func(_ string, x *door) { x.leave() }) // the size is not negative
	}
	if d.closed == before && !d.recent.Contains(path) { // else the path may mean another group by now
		x.users++
		d.recent.Add(path, x)
	}
	return x, nil
}

func (d *doors) give(x *door) {
	d.mu.Lock()
	defer d.mu.Unlock()
	x.leave()
}

// leave needs the doors' mu.
func (x *door) leave() {
	if x.users--; x.users == 0 {
		unix.Close(x.fd)
	}
}

// close closes the door of a group that is removed.
func (d *doors) close(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed++
	if d.recent != nil {
		d.recent.Remove(path)
	}
}

// closeBelow closes those of a group and of all below it.
func (d *doors) closeBelow(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed++
	if d.recent == nil {
		return
	}
	for _, key := range d.recent.Keys() {
		if key == path || path == "" || strings.HasPrefix(key, path+"/") {
			d.recent.Remove(key)
		}
	}
}
