package inject

// eintrCalls are none yet: the first argument of a call that has ended is lost.
var eintrCalls map[int64]eintrCall

func (r *regs) mark() mark { return 0 }

func (r *regs) setMark(mark) {}
