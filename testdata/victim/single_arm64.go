package victim

import "encoding/binary"

const machineELF = 183 // EM_AARCH64

// singleCode is the program of kind single.
func singleCode() []byte {
	return withTexts([]uint32{
		0xd2800020, //       mov x0, #1
		0,          //                adr x1, ready
		0xd28000c2, //       mov x2, #6
		0xd2800808, //       mov x8, #64 (write)
		0xd4000001, //       svc #0
		0xd2800000, // loop: mov x0, #0
		0xd10403e1, //       sub x1, sp, #256
		0xd2800022, //       mov x2, #1
		0xd28007e8, //       mov x8, #63 (read)
		0xd4000001, //       svc #0
		0xb40000e0, //       cbz x0, eof     (+7)
		0xf100041f, //       cmp x0, #1
		0x54ffff20, //       b.eq loop       (-7)
		0,          //                adr x21, fault
		0xd2800422, //       mov x2, #33
		0xd2800033, //       mov x19, #1
		0x14000004, //       b say           (+4)
		0,          //          eof:  adr x21, done
		0xd28000a2, //       mov x2, #5
		0xd2800013, //       mov x19, #0
		0xaa1503e1, // say:  mov x1, x21
		0xd2800020, //       mov x0, #1
		0xd2800808, //       mov x8, #64
		0xd4000001, //       svc #0
		0xaa1303e0, //       mov x0, x19
		0xd2800bc8, //       mov x8, #94 (exit_group)
		0xd4000001, //       svc #0
	}, map[int]reference{1: {1, 0}, 13: {21, 2}, 17: {21, 1}})
}

// reference is an instruction adr: a register that gets the address of a text.
type reference struct{ register, text int }

// withTexts builds code that the texts follow. The adr instructions, by position,
// get their distances.
func withTexts(insns []uint32, references map[int]reference) []byte {
	for at, r := range references {
		distance := uint32((len(insns) - at) * 4)
		for _, text := range singleTexts[:r.text] {
			distance += uint32(len(text))
		}
		insns[at] = 0x10000000 | distance&3<<29 | distance>>2<<5 | uint32(r.register)
	}
	var code []byte
	for _, insn := range insns {
		code = binary.LittleEndian.AppendUint32(code, insn)
	}
	for _, text := range singleTexts {
		code = append(code, text...)
	}
	return code
}
