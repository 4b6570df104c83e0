package inject

// There is no blob for arm64 yet: threads are stepped through their calls.
var blobCode []byte

const (
	blobAsk, blobReceive, blobNext, blobTidy = 0, 0, 0, 0
	blobMark, blobAsked, blobMarked          = 0, 0, 0
	blobStates, blobSteps                    = 0, 0
	stateOwner, stateMarker, stateSize       = 0, 4, 8
	stepSize                                 = 32
)

func (r *regs) enterBlob(entry, _, _ uint64, _ kept) { r.Pc = entry }

func (r *regs) enterAgain(entry, _, _ uint64) { r.Pc = entry }

func (r *regs) blobResult() (step uint64, result int64, k kept, page uint64) { return 0, 0, none, 0 }

func (r *regs) interrupted() bool { return false }

func blobState(uint64, *thread, int) []byte { return nil }

func putSetns([]byte, int, *nsHandle) {}

func putCall([]byte, *call, [3]uint64) {}
