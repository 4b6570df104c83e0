package fs

import "os"

// PassedThrough counts the files of the view on dir that the kernel passes through.
func PassedThrough(dir string) int {
	b := viewOn(dir).loop.backings
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.at)
}

// Lose has the kernel open a file for the view on dir, and nobody writes down what it is told, as one that is killed
// does not.
func Lose(dir string, file *os.File) (id int32, err error) {
	return viewOn(dir).loop.backings.register(int(file.Fd()))
}

// Resume does with the files what the successor of whoever serves the view on dir does.
func Resume(dir string) {
	v := viewOn(dir)
	b := v.loop.backings
	b.mu.Lock()
	defer b.mu.Unlock()
	next := openBackings(v.ledger, v.loop.fd, v.log, func(uint64) bool { return true })
	b.at, b.free = next.at, next.free
}

// Close has the kernel forget a file, and says whether it knew it.
func Close(dir string, id int32) bool { return viewOn(dir).loop.backings.close(id) == nil }

func viewOn(dir string) *View {
	views.Lock()
	defer views.Unlock()
	for _, of := range views.of {
		for v := range of {
			if v.where == dir {
				return v
			}
		}
	}
	panic("no view on " + dir)
}
