package census

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// iterator goes through all tasks by a BPF program of the kind iter/task (since Linux 5.8): reading a file makes the
// kernel run it for each task, and what it writes is what is read. The tasks go nowhere meanwhile, and are not
// held up.
type iterator struct {
	program *ebpf.Program
	link    *link.Iter
}

// newIterator loads the program, if that is possible here.
func newIterator() (*iterator, error) {
	if err := machineWide(); err != nil {
		return nil, err
	}
	l, err := layoutOfKernel()
	if err != nil {
		return nil, err
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "rcfs_census",
		Type:         ebpf.Tracing,
		AttachType:   ebpf.AttachTraceIter,
		AttachTo:     "task",
		License:      "Dual BSD/GPL", // bpf_seq_write is for such programs only
		Instructions: l.program(),
	})
	if err != nil {
		return nil, fmt.Errorf("load a BPF program: %w", err)
	}
	attached, err := link.AttachIter(link.IterOptions{Program: program})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach a BPF program: %w", err), program.Close())
	}
	return &iterator{program, attached}, nil
}

// Close unloads the program.
func (it *iterator) Close() error { return errors.Join(it.link.Close(), it.program.Close()) }

// initialPIDNS is the inode of the first pid namespace (PROC_PID_INIT_INO in include/linux/proc_ns.h).
const initialPIDNS = 4026531836

// errNotMachineWide says that ids here are not those that the kernel itself knows tasks by.
var errNotMachineWide = errors.New("not in the first pid namespace")

// machineWide returns an error unless we and /proc are in the first pid namespace: the program tells the ids of
// that one. Who is in it is in no other, so where it can see itself in /proc that is of the first one too.
func machineWide() error {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil {
		return fmt.Errorf("/proc/self/ns/pid: %w", err)
	}
	if st.Ino != initialPIDNS {
		return errNotMachineWide
	}
	return nil
}

// recordSize is that of what the program writes for a task: its id and its pointers, each as 8 bytes.
const recordSize = 32

// program writes a record for each task, but for those that have left their namespaces.
func (l layout) program() asm.Instructions {
	const end = "end"
	return asm.Instructions{
		// struct bpf_iter__task { struct bpf_iter_meta *meta; struct task_struct *task; }
		asm.LoadMem(asm.R6, asm.R1, 8, asm.DWord),
		asm.JEq.Imm(asm.R6, 0, end), // after the last
		asm.LoadMem(asm.R1, asm.R1, 0, asm.DWord),
		asm.LoadMem(asm.R1, asm.R1, 0, asm.DWord), // struct bpf_iter_meta { struct seq_file *seq; … }
		asm.LoadMem(asm.R2, asm.R6, l.nsproxy, asm.DWord),
		asm.JEq.Imm(asm.R2, 0, end),
		asm.StoreMem(asm.RFP, 8-recordSize, asm.R2, asm.DWord),
		asm.LoadMem(asm.R2, asm.R6, l.pid, asm.Word),
		asm.StoreMem(asm.RFP, -recordSize, asm.R2, asm.DWord),
		asm.LoadMem(asm.R2, asm.R6, l.cssSet, asm.DWord),
		asm.StoreMem(asm.RFP, 16-recordSize, asm.R2, asm.DWord),
		asm.LoadMem(asm.R2, asm.R6, l.cred, asm.DWord),
		asm.JEq.Imm(asm.R2, 0, end), // never, but the verifier does not know
		asm.LoadMem(asm.R2, asm.R2, l.userNS, asm.DWord),
		asm.StoreMem(asm.RFP, 24-recordSize, asm.R2, asm.DWord),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -recordSize),
		asm.Mov.Imm(asm.R3, recordSize),
		asm.FnSeqWrite.Call(), // all of it or, where the buffer is full, nothing, and the kernel comes once more
		asm.Mov.Imm(asm.R0, 0).WithSymbol(end),
		asm.Return(),
	}
}

// list runs the program for all tasks.
func (it *iterator) list() ([]member, error) {
	file, err := it.link.Open()
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(file)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	return parseRecords(data)
}

// parseRecords reads what the program has written.
func parseRecords(data []byte) ([]member, error) {
	if len(data)%recordSize != 0 {
		return nil, fmt.Errorf("list of tasks of %d bytes", len(data))
	}
	members := make([]member, 0, len(data)/recordSize)
	for ; len(data) > 0; data = data[recordSize:] {
		word := func(i int) uint64 { return binary.NativeEndian.Uint64(data[8*i:]) }
		members = append(members, member{int(int32(word(0))), pointers{word(1), word(2), word(3)}})
	}
	return members, nil
}
