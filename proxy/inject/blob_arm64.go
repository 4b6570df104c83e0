package inject

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// The blob, as on amd64: machine code that a thread runs by itself from the
// first to the last instruction, whatever becomes of the tracer. It uses neither
// the stack, nor any other memory of the program, nor its flags.
//
// Its registers: x9 the state to load at the end, x10 the next step, x11 the
// result of the last call, x12 the two descriptors kept (the last one in the low
// half), x13 the page to receive descriptors in or 0; the pair of sockets is in
// the page. A negative descriptor is none. The arguments of the first call at ask
// and at receive are there on entry. All other registers are the program's own.
//
// It is entered at ask, which makes page and sockets; at receive; or at next,
// which takes steps. Each leads to the mark, where a signal is raised that does
// nothing, but stops the thread when it has a tracer. The tracer then enters
// another part, tidy in the end, or puts the registers back. Without a tracer
// the thread goes on: what it has received, made and kept is closed, signal
// mask and registers are loaded, and the last instruction jumps to the tail of
// the state, which loads the rest and jumps to where the program was.
//
// Assembled with as(1); the comments are the source.
var blobCode = instructions(
	0xd4000001, // ask: svc #0
	0xaa0003eb, // mov x11,x0
	0xb7f80600, // tbnz x0,#63,mark
	0xaa0003ed, // mov x13,x0
	0xd28018e8, // mov x8,#199
	0xd2800020, // mov x0,#1
	0x52800041, // mov w1,#2
	0x72a00101, // movk w1,#8,lsl #16
	0xd2800002, // mov x2,#0
	0x9100e1a3, // add x3,x13,#0x38
	0xd4000001, // svc #0
	0x93407c0b, // sxtw x11,w0
	0x14000026, // b mark
	0xb9403da0, // receive: ldr w0,[x13,#0x3c]
	0xd4000001, // svc #0
	0x93407c0b, // sxtw x11,w0
	0x14000022, // b mark
	0xb9400146, // next: ldr w6,[x10]
	0x34000406, // cbz w6,mark
	0x37000266, // tbnz w6,#0,call
	0xd2802128, // mov x8,#265
	0x9284e240, // mov x0,#-10003
	0x91002141, // add x1,x10,#8
	0x52a00102, // mov w2,#0x80000
	0xd4000001, // svc #0
	0x93407c0b, // sxtw x11,w0
	0x37f80300, // tbnz w0,#31,mark
	0x2a0003e6, // mov w6,w0
	0xb9400541, // ldr w1,[x10,#4]
	0xd2802188, // mov x8,#268
	0xd4000001, // svc #0
	0x93407c0b, // sxtw x11,w0
	0x2a0603e0, // mov w0,w6
	0xd2800728, // mov x8,#57
	0xd4000001, // svc #0
	0x37f801eb, // tbnz w11,#31,mark
	0x9100814a, // done: add x10,x10,#0x20
	0x17ffffec, // b next
	0xa9408540, // call: ldp x0,x1,[x10,#8]
	0xf9400d42, // ldr x2,[x10,#0x18]
	0xb9400548, // ldr w8,[x10,#4]
	0xd4000001, // svc #0
	0x93407c0b, // sxtw x11,w0
	0x36f80060, // tbz w0,#31,went
	0x370fff06, // tbnz w6,#1,done
	0x14000005, // b mark
	0x3617fec6, // went: tbz w6,#2,done
	0xd3607d8c, // lsl x12,x12,#32
	0xaa00018c, // orr x12,x12,x0
	0x17fffff3, // b done
	0xd2801588, // mark: mov x8,#172
	0xd4000001, // svc #0
	0x2a0003e6, // asked: mov w6,w0
	0xd2801648, // mov x8,#178
	0xd4000001, // svc #0
	0x2a0003e1, // mov w1,w0
	0x2a0603e0, // mov w0,w6
	0xb9407122, // ldr w2,[x9,#0x70]
	0xd2801068, // mov x8,#131
	0xd4000001, // svc #0
	0xd280000b, // marked: mov x11,#0
	0xb40002cd, // tidy: cbz x13,tidied
	0x294719a0, // ldp w0,w6,[x13,#0x38]
	0x340000a6, // cbz w6,rights
	0xd2800728, // mov x8,#57
	0xd4000001, // svc #0
	0x2a0603e0, // mov w0,w6
	0xd4000001, // svc #0
	0x910141a6, // rights: add x6,x13,#0x50
	0xf94021a0, // each: ldr x0,[x13,#0x40]
	0x8b0d0000, // add x0,x0,x13
	0x91010000, // add x0,x0,#0x40
	0xcb0000c0, // sub x0,x6,x0
	0xb6f800a0, // tbz x0,#63,unmap
	0xb84044c0, // ldr w0,[x6],#4
	0xd2800728, // mov x8,#57
	0xd4000001, // svc #0
	0x17fffff8, // b each
	0xaa0d03e0, // unmap: mov x0,x13
	0xd2860001, // mov x1,#0x3000
	0xd2801ae8, // mov x8,#215
	0xd4000001, // svc #0
	0xd280000d, // mov x13,#0
	0x35fffbeb, // tidied: cbnz w11,mark
	0xd2800728, // mov x8,#57
	0x2a0c03e0, // mov w0,w12
	0x37f80040, // tbnz w0,#31,first
	0xd4000001, // svc #0
	0xd360fd80, // first: lsr x0,x12,#32
	0x37f80040, // tbnz w0,#31,second
	0xd4000001, // svc #0
	0xd28010e8, // second: mov x8,#135
	0xd2800040, // mov x0,#2
	0xaa0903e1, // mov x1,x9
	0xd2800002, // mov x2,#0
	0xd2800103, // mov x3,#8
	0xd4000001, // svc #0
	0xa9408520, // ldp x0,x1,[x9,#0x08]
	0xa9418d22, // ldp x2,x3,[x9,#0x18]
	0xa9429524, // ldp x4,x5,[x9,#0x28]
	0xa943a926, // ldp x6,x10,[x9,#0x38]
	0xa944b12b, // ldp x11,x12,[x9,#0x48]
	0xf9402d2d, // ldr x13,[x9,#0x58]
	0x91020128, // add x8,x9,#0x80
	0xd65f0100, // ret x8
)

// instructions returns the bytes of machine code.
func instructions(words ...uint32) []byte {
	b := make([]byte, 0, 4*len(words))
	for _, word := range words {
		b = binary.LittleEndian.AppendUint32(b, word)
	}
	return b
}

// Offsets in the slot: entries and stops of the code, then two states, then
// steps and the texts that they point to. The vdso of Linux 6.1 has 752 bytes of
// room, which is one step at a time.
const (
	blobAsk     = 0x00
	blobReceive = 0x34
	blobNext    = 0x44
	blobMark    = 0xc8
	blobAsked   = 0xd0 // the instruction after getpid(2), the first call at the mark
	blobMarked  = 0xf0 // the instruction after the mark
	blobTidy    = 0xf4
	blobStates  = 0x1a8
	blobSteps   = blobStates + 2*stateSize
)

// Offsets in a state: the mask, x0 to x6, x10 to x13, and what the tail needs.
const (
	stateLast   = 0x60 // x8 and x9
	stateMarker = 0x70
	stateOwner  = 0x74 // the tid whose state it is, 0 when that has left
	stateTarget = 0x78
	stateTail   = 0x80
	stateSize   = 0x90
)

// enterBlob makes a thread start in the blob, with what it has kept before, or at
// ask in mmap(2).
func (r *regs) enterBlob(entry, state, steps uint64, k kept) {
	r.Regs[9], r.Regs[13] = state, 0
	r.Regs[12] = uint64(uint32(k[1]))<<32 | uint64(uint32(k[0]))
	r.enterAgain(entry, steps, 0)
	r.Regs[8] = unix.SYS_MMAP
	copy(r.Regs[:6], []uint64{0, parcelSize, unix.PROT_READ | unix.PROT_WRITE,
		unix.MAP_PRIVATE | unix.MAP_ANONYMOUS, ^uint64(0), 0})
	// After an indirect branch another landing place than the program's would not do.
	r.Pstate &^= branchType
}

// branchType is PSTATE.BTYPE, of branch target identification.
const branchType = 3 << 10

// enterAgain makes a thread at the mark go on elsewhere in the blob, or at receive
// in recvmsg(2). Mark says whether it comes to the mark again after tidy.
func (r *regs) enterAgain(entry, steps, mark uint64) {
	r.Pc, r.Regs[10], r.Regs[11] = entry, steps, mark
	r.Regs[8], r.Regs[1], r.Regs[2] = unix.SYS_RECVMSG, r.Regs[13], unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC
}

// blobResult reads at the mark which step the blob has come to, the result of
// the last call, what is kept, and the page.
func (r *regs) blobResult() (step uint64, result int64, k kept, page uint64) {
	x := &r.Regs
	return x[10], int64(x[11]), kept{int(int32(x[12])), int(int32(x[12] >> 32))}, x[13]
}

// interrupted says whether the thread is in a system call that it will make
// again.
func (r *regs) interrupted(c *code) bool { return c.isCall(r.Pc) }

// restartSyscall is the number of restart_syscall(2).
const restartSyscall = 128

// blobState builds the state of a thread, which will lie at an address. With
// marker 0 no signal is raised.
func blobState(c *code, at uint64, th *thread, marker int) []byte {
	x := &th.regs.Regs
	b := make([]byte, stateSize)
	for i, v := range []uint64{
		th.mask, x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[10], x[11], x[12], x[13], x[8], x[9],
	} {
		binary.LittleEndian.PutUint64(b[8*i:], v)
	}
	binary.LittleEndian.PutUint32(b[stateMarker:], uint32(marker))
	binary.LittleEndian.PutUint32(b[stateOwner:], uint32(th.tid))
	tail, target := th.regs.tail(c, at+stateTail)
	binary.LittleEndian.PutUint64(b[stateTarget:], target)
	copy(b[stateTail:], instructions(tail[:]...))
	return b
}

// tail makes the last instructions, which will lie at an address. To jump back
// takes a register that the target is in, unless it is near, as that of a shared
// library is: one that the program loads next by itself, where there is such a
// one, or else x17, which any call of a function may change.
func (r *regs) tail(c *code, at uint64) (insns [4]uint32, target uint64) {
	const near = 1 << 27
	insns[0] = loadLiteral(8, stateLast-stateTail)
	insns[1] = loadLiteral(9, stateLast+8-stateTail-4)
	distance := int64(r.Pc - (at + 8))
	if distance >= -near && distance < near {
		insns[2] = 0x14000000 | uint32(distance>>2)&(1<<26-1) // b
		return insns, 0
	}
	register, target := uint32(17), r.Pc
	if c.isCall(r.Pc) {
		switch {
		case r.Regs[8] == restartSyscall: // it has no arguments, but a result
			register = 0
		case c.loadsNumber(r.Pc-4, r.Regs[8]):
			register, target = 8, r.Pc-4
		}
	}
	insns[2] = loadLiteral(register, stateTarget-stateTail-8)
	insns[3] = 0xd65f0000 | register<<5 // ret
	return insns, target
}

// loadLiteral is ldr of a register from a distance.
func loadLiteral(register uint32, distance int) uint32 {
	return 0x58000000 | uint32(distance>>2)&(1<<19-1)<<5 | register
}

// loadsNumber says whether the instruction at an address loads the number of a
// system call: mov into x8 or w8.
func (c *code) loadsNumber(at, number uint64) bool {
	insn := make([]byte, 4)
	if number >= 1<<16 || c.read(at, insn) != nil {
		return false
	}
	const wide = 1 << 31
	return binary.LittleEndian.Uint32(insn)&^uint32(wide) == 0x52800008|uint32(number)<<5
}
