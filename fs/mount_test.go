package fs_test

import (
	"testing"

	"rcfs/testdata/rig"
	"rcfs/testdata/view"
)

func TestMain(m *testing.M) { rig.Main(m) }

// What the tests say most often.
var (
	mount = view.Mount
	mkdir = view.Mkdir
	move  = view.Move
	read  = view.Read
	write = view.Write
)
