package census

import (
	"testing"

	"rcfs/testdata/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }
