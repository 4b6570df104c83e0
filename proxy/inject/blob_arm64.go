package inject

// There is no blob for arm64 yet: threads are stepped through their calls.
var blobCode []byte

const (
	blobAsked  = 0
	blobMarked = 0
	blobState  = 0
	blobOwner  = 0
	blobSteps  = 0
	stepSize   = 32
)

func (r *regs) blobResult() (steps int, result int64, k kept) { return 0, 0, none }

func (r *regs) setStart(ip uint64, _ kept) { r.Pc = ip }

func (r *regs) interrupted() bool { return false }

func blobSlot(uint64, *thread, int, []blobStep) []byte { return nil }
