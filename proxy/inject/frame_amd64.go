package inject

import "encoding/binary"

// Offsets in struct rt_sigframe (arch/x86/include/asm/sigframe.h): the return
// address, a ucontext, a siginfo.
const (
	frameLink    = 8 + 8  // uc_link, always 0
	frameAlt     = 8 + 16 // uc_stack: address, flags, size
	frameIP      = 8 + 40 + 16*8
	frameSegment = 8 + 40 + 18*8
	frameSignal  = 8 + 304 // si_signo
	frameSize    = frameSignal + 4
)

// framesInto finds, in the memory of a stack above the stack pointer sp, the
// frames of signal handlers that will return into the range from lo to hi. It
// returns the set of their signals. Remains of a frame that were not
// overwritten look the same, but for those on an alternative stack, when sp is
// not on it.
func framesInto(stack []byte, sp, lo, hi uint64) (signals uint64) {
	word := binary.LittleEndian.Uint64
	for at := int(-sp & 7); at+frameSize <= len(stack); at += 8 {
		frame := stack[at:]
		ip := word(frame[frameIP:])
		if ip < lo || ip >= hi || word(frame[frameLink:]) != 0 || frame[frameSegment] != userSegment {
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

// userSegment is the code segment of 64-bit programs.
const userSegment = 0x33
