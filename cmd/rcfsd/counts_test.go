package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
)

// calls are how often a process makes each system call, by number, as the kernel counts them.
type calls struct{ counts *ebpf.Map }

const maxCall = 512

// countCalls counts those of a process.
func countCalls(t *testing.T, pid int) calls {
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: maxCall})
	require.NoError(t, err)
	t.Cleanup(func() { counts.Close() })
	const end = "end"
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.RawTracepoint, License: "Dual BSD/GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetCurrentPidTgid.Call(),
		asm.RSh.Imm(asm.R0, 32),
		asm.JNE.Imm(asm.R0, int32(pid), end),
		asm.LoadMem(asm.R1, asm.R6, 8, asm.DWord), // the number, after the registers
		asm.JGE.Imm(asm.R1, maxCall, end),
		asm.StoreMem(asm.RFP, -4, asm.R1, asm.Word),
		asm.LoadMapPtr(asm.R1, counts.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, end),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
		asm.Mov.Imm(asm.R0, 0).WithSymbol(end),
		asm.Return(),
	}})
	require.NoError(t, err)
	t.Cleanup(func() { program.Close() })
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sys_enter", Program: program})
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return calls{counts}
}

// now returns the counts so far.
func (c calls) now(t *testing.T) map[uint32]uint64 {
	counts := make(map[uint32]uint64)
	var nr uint32
	var n uint64
	for all := c.counts.Iterate(); all.Next(&nr, &n); {
		if n > 0 {
			counts[nr] = n
		}
	}
	return counts
}

// ofGo are the calls by which Go's runtime runs, and which depend on the moment.
var ofGo = []uint32{unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_SCHED_YIELD, unix.SYS_TGKILL, unix.SYS_GETPID,
	unix.SYS_RT_SIGRETURN, unix.SYS_MADVISE, unix.SYS_MMAP, unix.SYS_EPOLL_PWAIT, unix.SYS_RT_SIGPROCMASK, unix.SYS_SIGALTSTACK,
	unix.SYS_CLONE, unix.SYS_GETTID, unix.SYS_MUNMAP, unix.SYS_PRCTL, unix.SYS_CLOCK_GETTIME}

// of runs what makes the process work, several times, and returns the least that was called in one of them: what else
// happens on the machine makes more work.
func (c calls) of(t *testing.T, f func()) (all uint64, each map[uint32]uint64) {
	all = 1 << 62
	for range 20 {
		before := c.now(t)
		f()
		after := c.now(t)
		sum := uint64(0)
		diff := make(map[uint32]uint64)
		for nr, n := range after {
			if n -= before[nr]; n > 0 && !slices.Contains(ofGo, nr) {
				diff[nr] = n
				sum += n
			}
		}
		if sum < all {
			all, each = sum, diff
		}
	}
	return all, each
}

// What a move costs is counted: round trips, each of which the worker answers with a write(2), all its system calls, and how
// often the target is stopped, which it waits for with waitid(2).
func TestCounts(t *testing.T) {
	if !rig.BPF() || !rig.KernelIsAtLeast(6, 18) { // older ones offer less, and need more calls
		return
	}
	machine(t)
	for _, c := range []struct {
		what, subsystems string
		all              uint64 // at most
		stops            uint64
	}{
		{"a move into five groups", "cpu,cpuacct,pids,freezer,cpuset", 23, 0},
		{"a move into namespaces", "uts,net,ipc", 80, 2},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir := place(t)
			mountOn(t, dir, c.subsystems)
			var to []*os.File
			for _, name := range []string{"/a", "/b"} {
				require.NoError(t, os.Mkdir(dir+name, 0o755))
				f, err := os.OpenFile(dir+name+"/tasks", os.O_WRONLY, 0)
				require.NoError(t, err)
				defer f.Close()
				to = append(to, f)
			}
			target := exec.Command("sleep", "1000")
			require.NoError(t, target.Start())
			defer target.Wait()
			defer target.Process.Kill()
			counting := countCalls(t, currentStatus(t).Worker)
			moves := 0
			all, each := counting.of(t, func() {
				moves++
				_, err := to[moves%2].WriteString(strconv.Itoa(target.Process.Pid))
				require.NoError(t, err)
			})
			var list []string
			for _, nr := range slices.Sorted(maps.Keys(each)) {
				list = append(list, fmt.Sprintf("%d: %d", nr, each[nr]))
			}
			t.Log(all, strings.Join(list, ", "))
			require.LessOrEqual(t, all, c.all)
			require.EqualValues(t, 1, each[unix.SYS_WRITE], "one round trip")
			require.Equal(t, c.stops, each[unix.SYS_WAITID])
		})
	}
}
