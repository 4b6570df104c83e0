package inject

func (r *regs) resumeEndless() bool { return false }

func millisecondCall(int64) bool { return false }

func (r *regs) milliseconds() int32 { return -1 }

func (r *regs) resumeWith(int32) {}

const erestartNoHand = -514
