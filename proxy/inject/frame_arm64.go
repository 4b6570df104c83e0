package inject

// Offsets in struct rt_sigframe (arch/arm64/kernel/signal.c): a siginfo and a
// ucontext, whose last part begins with the floating-point registers.
const (
	frameAlign  = 16
	frameSignal = 0         // si_signo
	frameLink   = 128 + 8   // uc_link, always 0
	frameAlt    = 128 + 16  // uc_stack: address, flags, size
	frameIP     = 304 + 264 // of the sigcontext
	frameProof  = 304 + 288
	frameSize   = frameProof + 8
)

// proof is in every frame: what the floating-point registers begin with (FPSIMD_MAGIC).
const proof, proofMask = 0x46508001, 0xffffffff
