package subsystems

import "encoding/binary"

// keeperCode is assembled with llvm-mc(1); the comments are the source.
var keeperCode = words(
	0xd28014e8, // mov x8,#167 // prctl(PR_SET_DUMPABLE, 0)
	0xd2800080, // mov x0,#4
	0xaa1f03e1, // mov x1,xzr
	0xd4000001, // svc #0
	0xd28014e8, // mov x8,#167 // prctl(PR_SET_NAME, name)
	0xd28001e0, // mov x0,#15
	0x10000b41, // adr x1,name
	0xd4000001, // svc #0
	0xaa1f03e0, // mov x0,xzr // read(0, stack, 1)
	0xd10043e1, // sub x1,sp,#16
	0xd2800022, // mov x2,#1
	0xd28007e8, // mov x8,#63
	0xd4000001, // svc #0
	0xd2800220, // mov x0,#17 // rt_sigaction(SIGCHLD, act, 0, 8)
	0x10000881, // adr x1,act
	0xaa1f03e2, // mov x2,xzr
	0xd2800103, // mov x3,#8
	0xd28010c8, // mov x8,#134
	0xd4000001, // svc #0
	0x180008e1, // ldr w1,entered // setns(2, entered), unless it is 0
	0x340000c1, // cbz w1,ids
	0xd2800040, // mov x0,#2
	0xd2802188, // mov x8,#268
	0xd4000001, // svc #0
	0xcb0003e0, // neg x0,x0
	0xb50006e0, // cbnz x0,exit
	0x92800000, // ids: mov x0,#-1 // setresgid(-1, gid, -1)
	0x18000821, // ldr w1,gid
	0x92800002, // mov x2,#-1
	0xd28012a8, // mov x8,#149
	0xd4000001, // svc #0
	0xcb0003e0, // neg x0,x0
	0xb5000600, // cbnz x0,exit
	0x92800000, // mov x0,#-1 // setresuid(-1, uid, -1)
	0x18000721, // ldr w1,uid
	0x92800002, // mov x2,#-1
	0xd2801268, // mov x8,#147
	0xd4000001, // svc #0
	0xcb0003e0, // neg x0,x0
	0xb5000520, // cbnz x0,exit
	0x180006a0, // ldr w0,unshared // unshare(unshared)
	0xd2800c28, // mov x8,#97
	0xd4000001, // svc #0
	0xcb0003e0, // neg x0,x0
	0xb5000480, // cbnz x0,exit
	0x18000620, // ldr w0,cloned // clone(cloned, 0, 0, 0, 0), unless it is 0
	0x34000160, // cbz w0,there
	0xaa1f03e1, // mov x1,xzr
	0xaa1f03e2, // mov x2,xzr
	0xaa1f03e3, // mov x3,xzr
	0xaa1f03e4, // mov x4,xzr
	0xd2801b88, // mov x8,#220
	0xd4000001, // svc #0
	0xf100001f, // cmp x0,#0
	0xcb0003e0, // neg x0,x0
	0x9a80c3e0, // csel x0,xzr,x0,gt
	0x54000301, // b.ne exit
	0xd28014e8, // there: mov x8,#167 // prctl(PR_SET_DUMPABLE, 0)
	0xd2800080, // mov x0,#4
	0xaa1f03e1, // mov x1,xzr
	0xd4000001, // svc #0
	0xd2800808, // mov x8,#64 // write(1, name, 1)
	0xd2800020, // mov x0,#1
	0x10000421, // adr x1,name
	0xd2800022, // mov x2,#1
	0xd4000001, // svc #0
	0xd2800040, // mov x0,#2 // close(2)
	0xd2800728, // mov x8,#57
	0xd4000001, // svc #0
	0xd2800020, // mov x0,#1 // close(1)
	0xd4000001, // svc #0
	0xaa1f03e0, // mov x0,xzr // close(0)
	0xd4000001, // svc #0
	0xaa1f03e0, // sleep: mov x0,xzr // ppoll(0, 0, 0, 0)
	0xaa1f03e1, // mov x1,xzr
	0xaa1f03e2, // mov x2,xzr
	0xaa1f03e3, // mov x3,xzr
	0xd2800928, // mov x8,#73
	0xd4000001, // svc #0
	0x17fffffa, // b sleep
	0xd2800ba8, // exit: mov x8,#93 // exit(errno)
	0xd4000001, // svc #0
)

// scribeCode likewise.
var scribeCode = words(
	0xd2800040, // mov x0,#2 // setns(2, CLONE_NEWUSER)
	0xd2a20001, // mov x1,#0x10000000
	0xd2802188, // mov x8,#268
	0xd4000001, // svc #0
	0xb7f801a0, // tbnz x0,#63,exit
	0x92800c60, // mov x0,#-100 // openat(AT_FDCWD, path, O_WRONLY)
	0x10000201, // adr x1,path
	0xd2800022, // mov x2,#1
	0xd2800708, // mov x8,#56
	0xd4000001, // svc #0
	0xb7f800e0, // tbnz x0,#63,exit
	0x10000361, // adr x1,text // write(file, text, size)
	0x18000102, // ldr w2,size
	0xd2800808, // mov x8,#64
	0xd4000001, // svc #0
	0xb7f80040, // tbnz x0,#63,exit
	0xaa1f03e0, // mov x0,xzr
	0xcb0003e0, // exit: neg x0,x0 // exit(errno)
	0xd2800ba8, // mov x8,#93
	0xd4000001, // svc #0
)

func words(code ...uint32) []byte {
	var b []byte
	for _, w := range code {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}
