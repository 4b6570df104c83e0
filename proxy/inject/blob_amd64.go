package inject

import "encoding/binary"

// The blob: machine code that a thread runs by itself from the first to the
// last instruction, whatever becomes of the tracer. It uses neither the stack
// nor any other memory of the program.
//
// Its registers: rbx the state to load at the end, r12 the next step, r15 the
// result of the last call, rbp the two descriptors kept (the last one in the
// low half), r13 the page to receive descriptors in or 0, r14 the pair of
// sockets; a negative descriptor is none.
//
// It is entered at ask, which makes page and sockets; at receive; or at next,
// which takes steps. Each leads to the mark, where a signal is raised that does
// nothing, but stops the thread when it has a tracer. The tracer then enters
// another part, tidy in the end, or puts the registers back. Without a tracer
// the thread goes on: what it has received, made and kept is closed, signal
// mask, flags and registers are loaded, and the last instruction jumps to the
// tail of the state, which loads rbx and jumps to where the program was.
//
// Assembled with as(1); the comments are the source.
var blobCode = []byte{
	0xb8, 0x09, 0x00, 0x00, 0x00, // ask: mov $9,%eax
	0x31, 0xff, // xor %edi,%edi
	0xbe, 0x00, 0x30, 0x00, 0x00, // mov $0x3000,%esi
	0xba, 0x03, 0x00, 0x00, 0x00, // mov $3,%edx
	0x41, 0xba, 0x22, 0x00, 0x00, 0x00, // mov $0x22,%r10d
	0x49, 0x83, 0xc8, 0xff, // or $-1,%r8
	0x45, 0x31, 0xc9, // xor %r9d,%r9d
	0x0f, 0x05, // syscall
	0x49, 0x89, 0xc7, // mov %rax,%r15
	0x48, 0x85, 0xc0, // test %rax,%rax
	0x0f, 0x88, 0xd9, 0x00, 0x00, 0x00, // js mark
	0x49, 0x89, 0xc5, // mov %rax,%r13
	0xb8, 0x35, 0x00, 0x00, 0x00, // mov $53,%eax
	0xbf, 0x01, 0x00, 0x00, 0x00, // mov $1,%edi
	0xbe, 0x02, 0x00, 0x08, 0x00, // mov $0x80002,%esi
	0x31, 0xd2, // xor %edx,%edx
	0x4d, 0x8d, 0x55, 0x38, // lea 0x38(%r13),%r10
	0x0f, 0x05, // syscall
	0x4c, 0x63, 0xf8, // movslq %eax,%r15
	0x85, 0xc0, // test %eax,%eax
	0x0f, 0x88, 0xb4, 0x00, 0x00, 0x00, // js mark
	0x4d, 0x8b, 0x75, 0x38, // mov 0x38(%r13),%r14
	0xe9, 0xab, 0x00, 0x00, 0x00, // jmp mark
	0xb8, 0x2f, 0x00, 0x00, 0x00, // receive: mov $47,%eax
	0x4c, 0x89, 0xf7, // mov %r14,%rdi
	0x48, 0xc1, 0xef, 0x20, // shr $32,%rdi
	0x4c, 0x89, 0xee, // mov %r13,%rsi
	0xba, 0x40, 0x00, 0x00, 0x40, // mov $0x40000040,%edx
	0x0f, 0x05, // syscall
	0x4c, 0x63, 0xf8, // movslq %eax,%r15
	0xe9, 0x8d, 0x00, 0x00, 0x00, // jmp mark
	0x41, 0x8b, 0x04, 0x24, // next: mov (%r12),%eax
	0x85, 0xc0, // test %eax,%eax
	0x0f, 0x84, 0x81, 0x00, 0x00, 0x00, // je mark
	0xa8, 0x01, // test $1,%al
	0x75, 0x47, // jne call
	0xb8, 0x30, 0x01, 0x00, 0x00, // mov $304,%eax
	0xbf, 0xed, 0xd8, 0xff, 0xff, // mov $-10003,%edi
	0x49, 0x8d, 0x74, 0x24, 0x08, // lea 8(%r12),%rsi
	0xba, 0x00, 0x00, 0x08, 0x00, // mov $0x80000,%edx
	0x0f, 0x05, // syscall
	0x4c, 0x63, 0xf8, // movslq %eax,%r15
	0x85, 0xc0, // test %eax,%eax
	0x78, 0x60, // js mark
	0x41, 0x89, 0xc0, // mov %eax,%r8d
	0xb8, 0x34, 0x01, 0x00, 0x00, // mov $308,%eax
	0x44, 0x89, 0xc7, // mov %r8d,%edi
	0x41, 0x8b, 0x74, 0x24, 0x04, // mov 4(%r12),%esi
	0x0f, 0x05, // syscall
	0x4c, 0x63, 0xf8, // movslq %eax,%r15
	0xb8, 0x03, 0x00, 0x00, 0x00, // mov $3,%eax
	0x44, 0x89, 0xc7, // mov %r8d,%edi
	0x0f, 0x05, // syscall
	0x4d, 0x85, 0xff, // test %r15,%r15
	0x78, 0x3c, // js mark
	0x49, 0x83, 0xc4, 0x20, // done: add $0x20,%r12
	0xeb, 0xa9, // jmp next
	0x49, 0x8b, 0x7c, 0x24, 0x08, // call: mov 8(%r12),%rdi
	0x49, 0x8b, 0x74, 0x24, 0x10, // mov 0x10(%r12),%rsi
	0x49, 0x8b, 0x54, 0x24, 0x18, // mov 0x18(%r12),%rdx
	0x41, 0x8b, 0x44, 0x24, 0x04, // mov 4(%r12),%eax
	0x0f, 0x05, // syscall
	0x4c, 0x63, 0xf8, // movslq %eax,%r15
	0x85, 0xc0, // test %eax,%eax
	0x79, 0x09, // jns went
	0x41, 0xf6, 0x04, 0x24, 0x02, // testb $2,(%r12)
	0x75, 0xd6, // jne done
	0xeb, 0x10, // jmp mark
	0x41, 0xf6, 0x04, 0x24, 0x04, // went: testb $4,(%r12)
	0x74, 0xcd, // je done
	0x48, 0xc1, 0xe5, 0x20, // shl $32,%rbp
	0x48, 0x09, 0xc5, // or %rax,%rbp
	0xeb, 0xc4, // jmp done
	0xb8, 0x27, 0x00, 0x00, 0x00, // mark: mov $39,%eax
	0x0f, 0x05, // syscall
	0x89, 0xc7, // asked: mov %eax,%edi
	0xb8, 0xba, 0x00, 0x00, 0x00, // mov $186,%eax
	0x0f, 0x05, // syscall
	0x89, 0xc6, // mov %eax,%esi
	0x8b, 0x53, 0x7c, // mov 0x7c(%rbx),%edx
	0xb8, 0xea, 0x00, 0x00, 0x00, // mov $234,%eax
	0x0f, 0x05, // syscall
	0x45, 0x31, 0xff, // marked: xor %r15d,%r15d
	0x4d, 0x85, 0xed, // tidy: test %r13,%r13
	0x74, 0x35, // je pair
	0x4d, 0x8d, 0x65, 0x50, // lea 0x50(%r13),%r12
	0x49, 0x8b, 0x45, 0x40, // each: mov 0x40(%r13),%rax
	0x49, 0x8d, 0x44, 0x05, 0x40, // lea 0x40(%r13,%rax),%rax
	0x49, 0x39, 0xc4, // cmp %rax,%r12
	0x73, 0x11, // jae unmap
	0x41, 0x8b, 0x3c, 0x24, // mov (%r12),%edi
	0xb8, 0x03, 0x00, 0x00, 0x00, // mov $3,%eax
	0x0f, 0x05, // syscall
	0x49, 0x83, 0xc4, 0x04, // add $4,%r12
	0xeb, 0xe1, // jmp each
	0xb8, 0x0b, 0x00, 0x00, 0x00, // unmap: mov $11,%eax
	0x4c, 0x89, 0xef, // mov %r13,%rdi
	0xbe, 0x00, 0x30, 0x00, 0x00, // mov $0x3000,%esi
	0x0f, 0x05, // syscall
	0x45, 0x31, 0xed, // xor %r13d,%r13d
	0x45, 0x85, 0xf6, // pair: test %r14d,%r14d
	0x78, 0x1c, // js tidied
	0x44, 0x89, 0xf7, // mov %r14d,%edi
	0xb8, 0x03, 0x00, 0x00, 0x00, // mov $3,%eax
	0x0f, 0x05, // syscall
	0x49, 0xc1, 0xee, 0x20, // shr $32,%r14
	0x44, 0x89, 0xf7, // mov %r14d,%edi
	0xb8, 0x03, 0x00, 0x00, 0x00, // mov $3,%eax
	0x0f, 0x05, // syscall
	0x49, 0x83, 0xce, 0xff, // or $-1,%r14
	0x45, 0x85, 0xff, // tidied: test %r15d,%r15d
	0x75, 0x81, // jne mark
	0x89, 0xef, // mov %ebp,%edi
	0x85, 0xff, // test %edi,%edi
	0x78, 0x07, // js first
	0xb8, 0x03, 0x00, 0x00, 0x00, // mov $3,%eax
	0x0f, 0x05, // syscall
	0x48, 0xc1, 0xed, 0x20, // first: shr $32,%rbp
	0x89, 0xef, // mov %ebp,%edi
	0x85, 0xff, // test %edi,%edi
	0x78, 0x07, // js second
	0xb8, 0x03, 0x00, 0x00, 0x00, // mov $3,%eax
	0x0f, 0x05, // syscall
	0xb8, 0x0e, 0x00, 0x00, 0x00, // second: mov $14,%eax
	0xbf, 0x02, 0x00, 0x00, 0x00, // mov $2,%edi
	0x48, 0x89, 0xde, // mov %rbx,%rsi
	0x31, 0xd2, // xor %edx,%edx
	0x41, 0xba, 0x08, 0x00, 0x00, 0x00, // mov $8,%r10d
	0x0f, 0x05, // syscall
	0x80, 0x7b, 0x7a, 0x00, // cmpb $0,0x7a(%rbx)
	0x74, 0x01, // je forward
	0xfd,             // std
	0x8a, 0x43, 0x79, // forward: mov 0x79(%rbx),%al
	0x04, 0x7f, // add $0x7f,%al
	0x8a, 0x63, 0x78, // mov 0x78(%rbx),%ah
	0x9e,                   // sahf
	0x48, 0x8b, 0x43, 0x08, // mov 0x08(%rbx),%rax
	0x48, 0x8b, 0x4b, 0x10, // mov 0x10(%rbx),%rcx
	0x48, 0x8b, 0x53, 0x18, // mov 0x18(%rbx),%rdx
	0x48, 0x8b, 0x73, 0x20, // mov 0x20(%rbx),%rsi
	0x48, 0x8b, 0x7b, 0x28, // mov 0x28(%rbx),%rdi
	0x48, 0x8b, 0x6b, 0x30, // mov 0x30(%rbx),%rbp
	0x4c, 0x8b, 0x43, 0x38, // mov 0x38(%rbx),%r8
	0x4c, 0x8b, 0x4b, 0x40, // mov 0x40(%rbx),%r9
	0x4c, 0x8b, 0x53, 0x48, // mov 0x48(%rbx),%r10
	0x4c, 0x8b, 0x5b, 0x50, // mov 0x50(%rbx),%r11
	0x4c, 0x8b, 0x63, 0x58, // mov 0x58(%rbx),%r12
	0x4c, 0x8b, 0x6b, 0x60, // mov 0x60(%rbx),%r13
	0x4c, 0x8b, 0x73, 0x68, // mov 0x68(%rbx),%r14
	0x4c, 0x8b, 0x7b, 0x70, // mov 0x70(%rbx),%r15
	0xff, 0xa3, 0x80, 0x00, 0x00, 0x00, // jmp *0x80(%rbx)
}

// Offsets in the slot: entries and stops of the code, then two states, then
// steps and the texts that they point to.
const (
	blobAsk     = 0x00
	blobReceive = 0x5a
	blobNext    = 0x78
	blobMark    = 0x105
	blobAsked   = 0x10c // the instruction after getpid(2), the first call at the mark
	blobMarked  = 0x121 // the instruction after the mark
	blobTidy    = 0x124
	blobStates  = 0x208
	blobSteps   = blobStates + 2*stateSize
)

// Offsets in a state: the mask, fourteen registers, flags, marker, and
//
//	tail:	mov value(%rip),%rbx
//		jmp *ip(%rip)
//	value:	.quad
//	ip:	.quad
const (
	stateFlags  = 0x78
	stateMarker = 0x7c
	stateJump   = 0x80 // the address of the tail
	stateTail   = 0x88
	stateRbx    = 0x98
	stateOwner  = 0xa8 // the tid whose state it is, 0 when that has left
	stateSize   = 0xb0
)

var stateTailCode = []byte{0x48, 0x8b, 0x1d, 0x09, 0, 0, 0, 0xff, 0x25, 0x0b, 0, 0, 0}

// A step is 32 bytes: flags, the namespace's type or the number of the call, and
// a file_handle of 24 bytes or three arguments. Flags of 0 end the steps.
const (
	stepSize   = 32
	stepArgs   = 8
	stepCall   = 1 // a call, not a handle for setns(2)
	stepOpt    = 2 // it may fail
	stepKeep   = 4 // its result is a descriptor to be kept
	stepHandle = 8
)

// enterBlob makes a thread start in the blob, with what it has kept before.
// Orig_rax becomes -1, "not in a system call", or the kernel would restart the
// one interrupted with other registers.
func (r *regs) enterBlob(entry, state, steps uint64, k kept) {
	r.Rbx, r.R13, r.R14 = state, 0, ^uint64(0)
	r.Rbp = uint64(uint32(k[1]))<<32 | uint64(uint32(k[0]))
	r.enterAgain(entry, steps, 0)
}

// enterAgain makes a thread at the mark go on elsewhere in the blob. Mark says
// whether it comes to the mark again after tidy.
func (r *regs) enterAgain(entry, steps, mark uint64) {
	r.Rip, r.Orig_rax, r.R12, r.R15 = entry, ^uint64(0), steps, mark
}

// blobResult reads at the mark which step the blob has come to, the result of
// the last call, what is kept, and the page.
func (r *regs) blobResult() (step uint64, result int64, k kept, page uint64) {
	return r.R12, int64(r.R15), kept{int(int32(r.Rbp)), int(int32(r.Rbp >> 32))}, r.R13
}

// interrupted says whether the thread is in a system call that sleeps, and that
// the stop has broken off.
func (r *regs) interrupted() bool {
	switch -int64(r.Rax) {
	case 512, 513, 514, 516: // ERESTARTSYS and its kin
		return int64(r.Orig_rax) >= 0
	}
	return false
}

// restartSyscall is the number of restart_syscall(2).
const restartSyscall = 219

// blobState builds the state of a thread, which will lie at an address. With
// marker 0 no signal is raised.
func blobState(at uint64, th *thread, marker int) []byte {
	r := th.regs
	r.restart()
	b := make([]byte, stateSize)
	for i, v := range []uint64{
		th.mask, r.Rax, r.Rcx, r.Rdx, r.Rsi, r.Rdi, r.Rbp,
		r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15,
	} {
		binary.LittleEndian.PutUint64(b[8*i:], v)
	}
	b[stateFlags] = byte(r.Eflags)
	b[stateFlags+1] = byte(r.Eflags >> 11 & 1) // overflow
	b[stateFlags+2] = byte(r.Eflags >> 10 & 1) // direction
	binary.LittleEndian.PutUint32(b[stateMarker:], uint32(marker))
	binary.LittleEndian.PutUint64(b[stateJump:], at+stateTail)
	copy(b[stateTail:], stateTailCode)
	binary.LittleEndian.PutUint64(b[stateRbx:], r.Rbx)
	binary.LittleEndian.PutUint64(b[stateRbx+8:], r.Rip)
	binary.LittleEndian.PutUint32(b[stateOwner:], uint32(th.tid))
	return b
}

// putSetns writes a step that enters a namespace by handle.
func putSetns(b []byte, typ int, handle *nsHandle) {
	binary.LittleEndian.PutUint32(b, stepHandle)
	binary.LittleEndian.PutUint32(b[4:], uint32(typ))
	copy(b[stepArgs:], handle[:])
}

// putCall writes a step that makes another call.
func putCall(b []byte, c *call, args [3]uint64) {
	flags := uint32(stepCall)
	if c.optional {
		flags |= stepOpt
	}
	if c.keep {
		flags |= stepKeep
	}
	binary.LittleEndian.PutUint32(b, flags)
	binary.LittleEndian.PutUint32(b[4:], uint32(c.nr))
	for i, arg := range args {
		binary.LittleEndian.PutUint64(b[stepArgs+8*i:], arg)
	}
}

// restart changes the registers of an interrupted system call as the kernel
// does when no signal handler runs (arch_do_signal_or_restart()): the call is
// made again, a nanosleep and the like by restart_syscall(2) for what remains of
// its time.
func (r *regs) restart() {
	if int64(r.Orig_rax) < 0 {
		return
	}
	switch -int64(r.Rax) {
	case 512, 513, 514: // ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND
		r.Rax = r.Orig_rax
	case 516: // ERESTART_RESTARTBLOCK
		r.Rax = restartSyscall
	default:
		return
	}
	r.Rip -= uint64(len(syscallInsn))
}
