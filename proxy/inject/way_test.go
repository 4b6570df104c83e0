package inject

import (
	"os"
	"testing"
)

// The ways there are to move a thread. A kernel that has the first has all.
const (
	byHandle     = "by handle"
	byDescriptor = "by descriptor"
	bySteps      = "by steps"
)

// wayVariable tells a mover its way.
const wayVariable = "RCFS_TEST_WAY"

// pretend makes this process believe that it must move in a way. It returns what ends that.
func pretend(way string) (end func()) {
	handles, code := haveHandles, blobCode
	switch way {
	case bySteps:
		blobCode = nil
		fallthrough
	case byDescriptor:
		haveHandles = func() bool { return false }
	}
	return func() { haveHandles, blobCode = handles, code }
}

// ways are those that this machine has.
func ways() []string {
	if !haveHandles() {
		return []string{byDescriptor, bySteps}
	}
	return []string{byHandle, byDescriptor, bySteps}
}

// eachWay runs a test in every way.
func eachWay(t *testing.T, f func(t *testing.T)) { inWays(t, ways(), f) }

// eachSafeWay runs a test in every way that is proof against the tracer's death.
func eachSafeWay(t *testing.T, f func(t *testing.T)) {
	all := ways()
	inWays(t, all[:len(all)-1], f)
}

func inWays(t *testing.T, ways []string, f func(t *testing.T)) {
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			t.Cleanup(pretend(way))
			t.Setenv(wayVariable, way)
			f(t)
		})
	}
}

// wayMain obeys the variable.
func wayMain() { pretend(os.Getenv(wayVariable)) }
