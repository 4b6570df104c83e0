package inject

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestFramesInto(t *testing.T) {
	const sp, slot, size = 0x7000_0000_0010, 0x7fff_0000_0800, 0x400
	frame := func(at int, ip uint64, sig unix.Signal, alt, altSize uint64) []byte {
		stack := make([]byte, 0x2000)
		put := func(offset int, v uint64) { binary.LittleEndian.PutUint64(stack[at+offset:], v) }
		put(frameIP, ip)
		put(frameProof, proof|0x002b_0000_0000_0000)
		put(frameAlt, alt)
		put(frameAlt+16, altSize)
		put(frameSignal, uint64(sig))
		return stack
	}
	winch := uint64(1) << (unix.SIGWINCH - 1)
	for _, c := range []struct {
		name  string
		stack []byte
		want  uint64
	}{
		{"nothing", make([]byte, 0x2000), 0},
		{"into the slot", frame(0x100, slot+0x121, unix.SIGWINCH, 0, 0), winch},
		{"its first byte", frame(0x110, slot, unix.SIGWINCH, 0, 0), winch},
		{"behind it", frame(0x100, slot+size, unix.SIGWINCH, 0, 0), 0},
		{"in front of it", frame(0x100, slot-1, unix.SIGWINCH, 0, 0), 0},
		{"at the stack pointer", frame(0, slot, unix.SIGHUP, 0, 0), 1},
		{"no signal", frame(0x100, slot, 0, 0, 0), 0},
		{"on the alternative stack", frame(0x100, slot, unix.SIGWINCH, sp-0x100, 0x2000), winch},
		{"left on an alternative stack", frame(0x1000, slot, unix.SIGWINCH, sp+0x800, 0x1000), 0},
		{"cut off", frame(0x100, slot, unix.SIGWINCH, 0, 0)[:0x100+frameSize-1], 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, framesInto(c.stack, sp, slot, slot+size))
		})
	}
	unaligned := append([]byte{1, 2, 3, 4}, frame(0x100, slot, unix.SIGWINCH, 0, 0)...)
	require.Equal(t, winch, framesInto(unaligned, sp-4, slot, slot+size))
}
