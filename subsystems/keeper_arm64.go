package subsystems

import "encoding/binary"

// keeperCode is assembled by hand with the help of go tool asm; the comments are the source.
var keeperCode = words(
	0xd28014e8, // mov x8,#167 // prctl(PR_SET_DUMPABLE, 0)
	0xd2800080, // mov x0,#4
	0xaa1f03e1, // mov x1,xzr
	0xd4000001, // svc #0
	0xd28014e8, // mov x8,#167 // prctl(PR_SET_NAME, name)
	0xb2400fe0, // mov x0,#15
	0x10000601, // adr x1,name
	0xd4000001, // svc #0
	0xaa1f03e0, // mov x0,xzr // read(0, stack, 1)
	0xd10043e1, // sub x1,sp,#16
	0xb24003e2, // mov x2,#1
	0xb24017e8, // mov x8,#63
	0xd4000001, // svc #0
	0xd2800220, // mov x0,#17 // rt_sigaction(SIGCHLD, act, 0, 8)
	0x100003c1, // adr x1,act
	0xaa1f03e2, // mov x2,xzr
	0xb27d03e3, // mov x3,#8
	0xd28010c8, // mov x8,#134
	0xd4000001, // svc #0
	0x58000420, // ldr x0,flags // unshare(flags)
	0xd2800c28, // mov x8,#97
	0xd4000001, // svc #0
	0xcb0003e0, // neg x0,x0
	0xb5000240, // cbnz x0,exit
	0xd2800808, // mov x8,#64 // write(1, name, 1)
	0xb24003e0, // mov x0,#1
	0x10000381, // adr x1,name
	0xb24003e2, // mov x2,#1
	0xd4000001, // svc #0
	0xb24003e0, // mov x0,#1 // close(1)
	0xd2800728, // mov x8,#57
	0xd4000001, // svc #0
	0xaa1f03e0, // mov x0,xzr // close(0)
	0xd4000001, // svc #0
	0xaa1f03e0, // mov x0,xzr // sleep: ppoll(0, 0, 0, 0)
	0xaa1f03e1, // mov x1,xzr
	0xaa1f03e2, // mov x2,xzr
	0xaa1f03e3, // mov x3,xzr
	0xd2800928, // mov x8,#73
	0xd4000001, // svc #0
	0x17fffffa, // b sleep
	0xd2800ba8, // mov x8,#93 // exit: exit(errno)
	0xd4000001, // svc #0
	0xd503201f, // nop
)

func words(code ...uint32) []byte {
	var b []byte
	for _, w := range code {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}
