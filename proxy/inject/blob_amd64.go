package inject

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// The blob: machine code that a thread runs by itself from the first to the
// last instruction, whatever becomes of the tracer. It uses neither the stack
// nor any other memory of the program.
//
// Its registers: r12 the step, r13 the number of steps, r14 how many are done,
// r15 the result of the last call, r8 and r9 the descriptors kept, last first,
// or negative. At the mark it raises a signal on itself
// that does nothing, but stops it when it has a tracer. The tracer then puts
// the registers back. Without a tracer it goes on: what was kept is closed, and
// signal mask, flags and registers are loaded from the state behind the code, and the last
// instruction jumps to where the program was.
//
// Assembled with as(1); the comments are the source.
var blobCode = []byte{
	0x4c, 0x8d, 0x25, 0x09, 0x02, 0x00, 0x00, // lea entries,%r12
	0x44, 0x8b, 0x2d, 0xfa, 0x01, 0x00, 0x00, // mov count,%r13d
	0x45, 0x31, 0xf6, // xor %r14d,%r14d
	0x45, 0x31, 0xff, // xor %r15d,%r15d
	0x45, 0x39, 0xee, // next: cmp %r13d,%r14d
	0x74, 0x7e, // je mark
	0x41, 0x8b, 0x5c, 0x24, 0x1c, // mov 0x1c(%r12),%ebx
	0x85, 0xdb, // test %ebx,%ebx
	0x75, 0x45, // jne call
	0xb8, 0x30, 0x01, 0x00, 0x00, // mov $0x130,%eax
	0xbf, 0xed, 0xd8, 0xff, 0xff, // mov $0xffffd8ed,%edi
	0x4c, 0x89, 0xe6, // mov %r12,%rsi
	0xba, 0x00, 0x00, 0x08, 0x00, // mov $0x80000,%edx
	0x0f, 0x05, // syscall
	0x4c, 0x63, 0xf8, // movslq %eax,%r15
	0x85, 0xc0, // test %eax,%eax
	0x78, 0x5a, // js mark
	0x89, 0xc5, // mov %eax,%ebp
	0xb8, 0x34, 0x01, 0x00, 0x00, // mov $0x134,%eax
	0x89, 0xef, // mov %ebp,%edi
	0x41, 0x8b, 0x74, 0x24, 0x18, // mov 0x18(%r12),%esi
	0x0f, 0x05, // syscall
	0x4c, 0x63, 0xf8, // movslq %eax,%r15
	0xb8, 0x03, 0x00, 0x00, 0x00, // mov $0x3,%eax
	0x89, 0xef, // mov %ebp,%edi
	0x0f, 0x05, // syscall
	0x4d, 0x85, 0xff, // test %r15,%r15
	0x78, 0x39, // js mark
	0x41, 0xff, 0xc6, // done: inc %r14d
	0x49, 0x83, 0xc4, 0x20, // add $0x20,%r12
	0xeb, 0xad, // jmp next
	0x49, 0x8b, 0x3c, 0x24, // call: mov (%r12),%rdi
	0x49, 0x8b, 0x74, 0x24, 0x08, // mov 0x8(%r12),%rsi
	0x49, 0x8b, 0x54, 0x24, 0x10, // mov 0x10(%r12),%rdx
	0x41, 0x8b, 0x44, 0x24, 0x18, // mov 0x18(%r12),%eax
	0x0f, 0x05, // syscall
	0x4c, 0x63, 0xf8, // movslq %eax,%r15
	0x85, 0xc0, // test %eax,%eax
	0x79, 0x07, // jns went
	0xf6, 0xc3, 0x02, // test $0x2,%bl
	0x74, 0x0f, // je mark
	0xeb, 0xd4, // jmp done
	0xf6, 0xc3, 0x04, // went: test $0x4,%bl
	0x74, 0xcf, // je done
	0x45, 0x89, 0xc1, // mov %r8d,%r9d
	0x41, 0x89, 0xc0, // mov %eax,%r8d
	0xeb, 0xc7, // jmp done
	0xb8, 0x27, 0x00, 0x00, 0x00, // mark: mov $0x27,%eax
	0x0f, 0x05, // syscall
	0x89, 0xc3, // asked: mov %eax,%ebx
	0xb8, 0xba, 0x00, 0x00, 0x00, // mov $0xba,%eax
	0x0f, 0x05, // syscall
	0x89, 0xdf, // mov %ebx,%edi
	0x89, 0xc6, // mov %eax,%esi
	0x8b, 0x15, 0x53, 0x01, 0x00, 0x00, // mov marker,%edx
	0xb8, 0xea, 0x00, 0x00, 0x00, // mov $0xea,%eax
	0x0f, 0x05, // syscall
	0x44, 0x89, 0xc7, // marked: mov %r8d,%edi
	0x85, 0xff, // test %edi,%edi
	0x78, 0x07, // js first
	0xb8, 0x03, 0x00, 0x00, 0x00, // mov $0x3,%eax
	0x0f, 0x05, // syscall
	0x44, 0x89, 0xcf, // first: mov %r9d,%edi
	0x85, 0xff, // test %edi,%edi
	0x78, 0x07, // js second
	0xb8, 0x03, 0x00, 0x00, 0x00, // mov $0x3,%eax
	0x0f, 0x05, // syscall
	0xb8, 0x0e, 0x00, 0x00, 0x00, // second: mov $0xe,%eax
	0xbf, 0x02, 0x00, 0x00, 0x00, // mov $0x2,%edi
	0x48, 0x8d, 0x35, 0x93, 0x00, 0x00, 0x00, // lea mask,%rsi
	0x31, 0xd2, // xor %edx,%edx
	0x41, 0xba, 0x08, 0x00, 0x00, 0x00, // mov $0x8,%r10d
	0x0f, 0x05, // syscall
	0x80, 0x3d, 0x0c, 0x01, 0x00, 0x00, 0x00, // cmpb $0x0,df
	0x74, 0x01, // je forward
	0xfd,                               // std
	0x8a, 0x05, 0x02, 0x01, 0x00, 0x00, // forward: mov of,%al
	0x04, 0x7f, // add $0x7f,%al
	0x8a, 0x25, 0xf9, 0x00, 0x00, 0x00, // mov lowflags,%ah
	0x9e,                                     // sahf
	0x48, 0x8b, 0x05, 0x71, 0x00, 0x00, 0x00, // mov rax,%rax
	0x48, 0x8b, 0x1d, 0x72, 0x00, 0x00, 0x00, // mov rbx,%rbx
	0x48, 0x8b, 0x0d, 0x73, 0x00, 0x00, 0x00, // mov rcx,%rcx
	0x48, 0x8b, 0x15, 0x74, 0x00, 0x00, 0x00, // mov rdx,%rdx
	0x48, 0x8b, 0x35, 0x75, 0x00, 0x00, 0x00, // mov rsi,%rsi
	0x48, 0x8b, 0x3d, 0x76, 0x00, 0x00, 0x00, // mov rdi,%rdi
	0x48, 0x8b, 0x2d, 0x77, 0x00, 0x00, 0x00, // mov rbp,%rbp
	0x4c, 0x8b, 0x05, 0x78, 0x00, 0x00, 0x00, // mov r8,%r8
	0x4c, 0x8b, 0x0d, 0x79, 0x00, 0x00, 0x00, // mov r9,%r9
	0x4c, 0x8b, 0x15, 0x7a, 0x00, 0x00, 0x00, // mov r10,%r10
	0x4c, 0x8b, 0x1d, 0x7b, 0x00, 0x00, 0x00, // mov r11,%r11
	0x4c, 0x8b, 0x25, 0x7c, 0x00, 0x00, 0x00, // mov r12,%r12
	0x4c, 0x8b, 0x2d, 0x7d, 0x00, 0x00, 0x00, // mov r13,%r13
	0x4c, 0x8b, 0x35, 0x7e, 0x00, 0x00, 0x00, // mov r14,%r14
	0x4c, 0x8b, 0x3d, 0x7f, 0x00, 0x00, 0x00, // mov r15,%r15
	0xff, 0x25, 0x81, 0x00, 0x00, 0x00, // jmp *rip
}

// Offsets in the slot.
const (
	blobAsked  = 0x9e  // the instruction after getpid(2), the first call at the mark
	blobMarked = 0xb8  // the instruction after the mark
	blobState  = 0x178 // mask, registers, flags, marker, count
	blobOwner  = 0x20c // the tid whose blob it is, 0 when that has come to its end
	blobSteps  = 0x210 // the steps, then the texts that they point to
)

// A step is 32 bytes: for setns(2) a file_handle of 24 bytes and the namespace's
// type; else three arguments, the number of the call, and these flags.
const (
	stepSize  = 32
	stepCall  = 1 // a call, not setns
	stepOpt   = 2 // it may fail
	stepKeep  = 4 // its result is a descriptor to be kept
	stepFlags = 28
)

// blobResult reads at the mark what the blob has done, and what it keeps.
func (r *regs) blobResult() (steps int, result int64, k kept) {
	return int(r.R14), int64(r.R15), kept{int(int32(r.R8)), int(int32(r.R9))}
}

// setStart makes a thread start at ip, with what it has kept before. Orig_rax
// becomes -1, "not in a system call", or the kernel would restart the one
// interrupted with other registers.
func (r *regs) setStart(ip uint64, k kept) {
	r.Rip, r.Orig_rax = ip, ^uint64(0)
	r.R8, r.R9 = uint64(k[0]), uint64(k[1])
}

// interrupted says whether the thread is in a system call that sleeps, and that
// the stop has broken off.
func (r *regs) interrupted() bool {
	switch -int64(r.Rax) {
	case 512, 513, 514, 516: // ERESTARTSYS and its kin
		return int64(r.Orig_rax) >= 0
	case int64(unix.EINTR):
		return eintrCalls[r.callNumber()] != nil
	}
	return false
}

// restartSyscall is the number of restart_syscall(2).
const restartSyscall = 219

// blobSlot builds what is written to the address slot: code, state, steps and
// texts. With marker 0 no signal is raised.
func blobSlot(slot uint64, th *thread, marker int, steps []blobStep) []byte {
	r := th.regs
	r.restart()
	b := make([]byte, blobSteps+len(steps)*stepSize, blobSize(steps))
	copy(b, blobCode)
	at := blobState
	for _, v := range []uint64{
		th.mask, r.Rax, r.Rbx, r.Rcx, r.Rdx, r.Rsi, r.Rdi, r.Rbp,
		r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15, r.Rip,
	} {
		binary.LittleEndian.PutUint64(b[at:], v)
		at += 8
	}
	b[at] = byte(r.Eflags)
	b[at+1] = byte(r.Eflags >> 11 & 1) // overflow
	b[at+2] = byte(r.Eflags >> 10 & 1) // direction
	binary.LittleEndian.PutUint32(b[at+4:], uint32(marker))
	binary.LittleEndian.PutUint32(b[at+8:], uint32(len(steps)))
	binary.LittleEndian.PutUint32(b[blobOwner:], uint32(th.tid))
	for i, st := range steps {
		entry := b[blobSteps+i*stepSize:]
		if st.call == nil {
			copy(entry[:24], st.handle[:])
			binary.LittleEndian.PutUint32(entry[24:], uint32(st.typ))
			continue
		}
		args := st.call.args
		if st.call.text != "" {
			args[st.call.textArg] = slot + uint64(len(b))
			b = append(append(b, st.call.text...), 0)
		}
		for i, arg := range args {
			binary.LittleEndian.PutUint64(entry[8*i:], arg)
		}
		flags := uint32(stepCall)
		if st.call.optional {
			flags |= stepOpt
		}
		if st.call.keep {
			flags |= stepKeep
		}
		binary.LittleEndian.PutUint32(entry[24:], uint32(st.call.nr))
		binary.LittleEndian.PutUint32(entry[stepFlags:], flags)
	}
	return b
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
