package inject

import (
	"encoding/binary"
	"runtime"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestTail is about the register that the jump back costs when there is no tracer.
func TestTail(t *testing.T) {
	program := instructions(
		0xd2800c48, // mov x8,#98
		0xd4000001, // svc #0
		0xd4000001, // svc #0
		0x52800c48, // mov w8,#98
		0xd4000001, // svc #0
	)
	c, err := openCode(unix.Getpid())
	require.NoError(t, err)
	defer c.close()
	defer runtime.KeepAlive(program)
	begin := uint64(uintptr(unsafe.Pointer(&program[0])))
	const far, b, ret = 1 << 40, 0x14000000, 0xd65f0000
	for _, want := range []struct {
		name             string
		pc, number       uint64
		register, target uint64
	}{
		{"at a call", begin + 4, 98, 8, begin},
		{"at another call", begin + 4, 99, 17, begin + 4},
		{"its number is not loaded", begin + 8, 98, 17, begin + 8},
		{"in 32 bits", begin + 16, 98, 8, begin + 12},
		{"to be restarted", begin + 4, restartSyscall, 0, begin + 4},
		{"not at a call", begin, 98, 17, begin},
	} {
		t.Run(want.name, func(t *testing.T) {
			r := regs{}
			r.Pc, r.Regs[8] = want.pc, want.number
			insns, target := r.tail(c, begin+far)
			require.Equal(t, want.target, target)
			require.Equal(t, uint32(ret|want.register<<5), insns[3])
			require.Equal(t, loadLiteral(uint32(want.register), stateTarget-stateTail-8), insns[2])

			insns, _ = r.tail(c, begin+0x1000)
			distance := want.pc - (begin + 0x1000 + 8)
			require.Equal(t, b|uint32(distance>>2)&(1<<26-1), insns[2], "near")
		})
	}
	require.Equal(t, uint32(0x58ffff08), binary.LittleEndian.Uint32(instructions(loadLiteral(8, -0x20))), "ldr x8,.-0x20")
}
