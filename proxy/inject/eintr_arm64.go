package inject

// resumeEndless has nothing to do yet on arm64: see eintr_amd64.go.
func (r *regs) resumeEndless() bool { return false }
