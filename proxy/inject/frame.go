package inject

import "encoding/binary"

// framesInto finds, in the memory of a stack above the stack pointer sp, the
// frames of signal handlers that will return into the range from lo to hi. It
// returns the set of their signals. Remains of a frame that were not
// overwritten look the same, but for those on an alternative stack, when sp is
// not on it.
func framesInto(stack []byte, sp, lo, hi uint64) (signals uint64) {
	word := binary.LittleEndian.Uint64
	for at := int(-sp & (frameAlign - 1)); at+frameSize <= len(stack); at += frameAlign {
		frame := stack[at:]
		ip := word(frame[frameIP:])
		if ip < lo || ip >= hi || word(frame[frameLink:]) != 0 || word(frame[frameProof:])&proofMask != proof {
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
