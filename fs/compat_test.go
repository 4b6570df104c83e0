package fs_test

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
)

// pause386 is a program for i386 that waits for ever.
func pause386() []byte {
	code := []byte{
		0xb8, 29, 0, 0, 0, // mov $29 (pause), %eax
		0xcd, 0x80, //        int $0x80
		0xeb, 0xf7, //        back to the mov
	}
	const base, head = 0x8048000, 52 + 32
	size := uint32(head + len(code))
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, elf.Header32{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS32), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_386), Version: uint32(elf.EV_CURRENT),
		Entry: base + head, Phoff: 52, Ehsize: 52, Phentsize: 32, Phnum: 1,
	})
	binary.Write(&b, binary.LittleEndian, elf.Prog32{
		Type: uint32(elf.PT_LOAD), Vaddr: base, Filesz: size, Memsz: size, Flags: uint32(elf.PF_R | elf.PF_X), Align: 0x1000,
	})
	b.Write(code)
	return b.Bytes()
}

// A 32-bit program is moved into groups, but not into namespaces.
func TestThirtyTwoBitProgram(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("a program for i386")
	}
	sys := rig.System(t)
	n, g := mkdir(t, mount(t, sys, rig.Spec("uts"))+"/n"), mkdir(t, mount(t, sys, rig.Spec("pids"))+"/g")
	program := t.TempDir() + "/pause"
	require.NoError(t, os.WriteFile(program, pause386(), 0o755))
	cmd := exec.Command(program)
	err := cmd.Start()
	if errors.Is(err, unix.ENOEXEC) {
		t.Skip("this kernel runs no 32-bit programs (CONFIG_IA32_EMULATION)")
	}
	require.NoError(t, err)
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	pid := fmt.Sprint(cmd.Process.Pid)
	before := namespacesOf(t, cmd.Process.Pid, "uts")
	require.Equal(t, unix.EPERM, write(n+"/tasks", pid))
	require.Contains(t, read(t, n+"/rcfs.error"), "cannot be moved into namespaces")
	require.Equal(t, before, namespacesOf(t, cmd.Process.Pid, "uts"))
	move(t, g, pid)
	require.Equal(t, pid+"\n", read(t, g+"/tasks"))
	require.NoError(t, unix.Kill(cmd.Process.Pid, 0), "it lives")
}
