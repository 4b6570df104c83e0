package inject

import "encoding/binary"

// Offsets in struct rt_sigframe (arch/arm64/kernel/signal.c): a siginfo and a
// ucontext, whose last part begins with the floating-point registers.
const (
	frameSignal = 0         // si_signo
	frameLink   = 128 + 8   // uc_link, always 0
	frameAlt    = 128 + 16  // uc_stack: address, flags, size
	frameIP     = 304 + 264 // of the sigcontext
	frameMagic  = 304 + 288
	frameSize   = frameMagic + 4
)

// fpsimdMagic begins the floating-point registers (FPSIMD_MAGIC).
const fpsimdMagic = 0x46508001

// framesInto finds, in the memory of a stack above the stack pointer sp, the
// frames of signal handlers that will return into the range from lo to hi. It
// returns the set of their signals. Remains of a frame that were not
// overwritten look the same, but for those on an alternative stack, when sp is
// not on it.
func framesInto(stack []byte, sp, lo, hi uint64) (signals uint64) {
	word := binary.LittleEndian.Uint64
	for at := int(-sp & 15); at+frameSize <= len(stack); at += 16 {
		frame := stack[at:]
		ip := word(frame[frameIP:])
		if ip < lo || ip >= hi || word(frame[frameLink:]) != 0 ||
			binary.LittleEndian.Uint32(frame[frameMagic:]) != fpsimdMagic {
			continue
		}
		alt, size, here := word(frame[frameAlt:]), word(frame[frameAlt+16:]), sp+uint64(at)
		if here-alt < size && sp-alt >= size {
			continue
		}
		if sig := binary.LittleEndian.Uint32(frame[frameSignal:]); sig >= 1 && sig <= 64 {
			signals |= 1 << (sig - 1)
		}
	}
	return signals
}
