package victim

import "golang.org/x/sys/unix"

func init() { kinds["vectors"] = vectors }

// vectors is single, but for its input, which it reads now and then without waiting: in between it
// keeps vectors of the Scalable Vector Extension, and compares them with what they were. A fault is
// told as one of read(2).
func vectors(p *program) {
	p.must("fcntl", unix.SetNonblock(0, true))
	p.become(withTexts([]uint32{
		0xd2800020, //        mov x0, #1
		0,          //        adr x1, ready
		0xd28000c2, //        mov x2, #6
		0xd2800808, //        mov x8, #64 (write)
		0xd4000001, //        svc #0
		0x25d8e3e0, //        ptrue p0.d
		0x04e14020, // outer: index z0.d, #1, #1
		0xd2a00213, //        mov x19, #0x100000
		0x25d8e3e0, // inner: ptrue p0.d
		0x04e14021, //        index z1.d, #1, #1
		0x24c1a011, //        cmpne p1.d, p0/z, z0.d, z1.d
		0x54000161, //        b.ne fault
		0xd1000673, //        sub x19, x19, #1
		0xb5ffff73, //        cbnz x19, inner
		0xd2800000, //        mov x0, #0
		0xd10403e1, //        sub x1, sp, #256
		0xd2800022, //        mov x2, #1
		0xd28007e8, //        mov x8, #63 (read)
		0xd4000001, //        svc #0
		0xb40000e0, //        cbz x0, eof
		0xb1002c1f, //        cmn x0, #11 (EAGAIN)
		0x54fffe20, //        b.eq outer
		0,          // fault: adr x21, fault
		0xd2800422, //        mov x2, #33
		0xd2800033, //        mov x19, #1
		0x14000004, //        b say
		0,          // eof:   adr x21, done
		0xd28000a2, //        mov x2, #5
		0xd2800013, //        mov x19, #0
		0xaa1503e1, // say:   mov x1, x21
		0xd2800020, //        mov x0, #1
		0xd2800808, //        mov x8, #64
		0xd4000001, //        svc #0
		0xaa1303e0, //        mov x0, x19
		0xd2800bc8, //        mov x8, #94 (exit_group)
		0xd4000001, //        svc #0
	}, map[int]reference{1: {1, 0}, 22: {21, 2}, 26: {21, 1}}))
}
