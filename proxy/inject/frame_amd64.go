package inject

// Offsets in struct rt_sigframe (arch/x86/include/asm/sigframe.h): the return
// address, a ucontext, a siginfo.
const (
	frameAlign  = 8
	frameLink   = 8 + 8  // uc_link, always 0
	frameAlt    = 8 + 16 // uc_stack: address, flags, size
	frameIP     = 8 + 40 + 16*8
	frameProof  = 8 + 40 + 18*8
	frameSignal = 8 + 304 // si_signo
	frameSize   = frameSignal + 4
)

// proof is in every frame: the code segment of 64-bit programs.
const proof, proofMask = 0x33, 0xff
