package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"rcfs/testdata/rig"
)

// names are what the program is called by.
var names = []string{"rcfsd", workerComm, "rcfs", "mount.fuse.rcfs", "mount.rcfs"}

// TestMain makes the test binary stand for the program where it is called by one of its names,
// so that what is tested needs no Go (in a guest, for example).
func TestMain(m *testing.M) {
	if slices.Contains(names, filepath.Base(os.Args[0])) {
		main()
	}
	rig.Main(m)
}
