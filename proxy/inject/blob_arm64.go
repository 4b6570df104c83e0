package inject

// There is no blob for arm64 yet: threads are stepped through their calls.
var blobCode []byte

const (
	blobMarked = 0
	blobSteps  = 0
	stepSize   = 32
)

func (r *regs) blobResult() (steps int, result int64) { return 0, 0 }

func (r *regs) setStart(ip uint64) { r.Pc = ip }

func blobSlot(regs, uint64, int, bool, []blobStep) []byte { return nil }
