package victim

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// prepare carries out the words that begin with +.
func (p *program) prepare() {
	for _, word := range p.words {
		if dir, ok := strings.CutPrefix(word, "+in="); ok {
			p.must("chdir", unix.Chdir(dir))
			continue
		}
		if text, ok := strings.CutPrefix(word, "+uid="); ok {
			uid, err := strconv.Atoi(text)
			p.must(word, err)
			p.must("setgid", syscall.Setresgid(uid, uid, uid))
			p.must("setuid", syscall.Setresuid(uid, uid, uid))
			continue
		}
		switch word {
		case "+seccomp":
			p.must("seccomp", forbidSetns())
		case "+fullfds":
			p.fillTable(true)
		case "+softfds":
			p.fillTable(false)
		case "+all":
			ownMask.Val[0] = ^uint64(0)
		case "+chroot":
			p.chroot()
		case "+nocap":
			p.withoutCapabilities()
		case "+newns", "+onenocap", "+ownfiles", "+onefull", "+strict", "+second", "+report", "+vfork":
		default:
			p.must("word "+word, os.ErrInvalid)
		}
	}
}

func (p *program) has(word string) bool { return slices.Contains(p.words, word) }

// chroot makes an empty directory the root, one that nobody has to remove.
func (p *program) chroot() {
	dir, err := os.MkdirTemp("", "victim")
	p.must("mkdir", err)
	p.must("chdir", unix.Chdir(dir))
	p.must("rmdir", unix.Rmdir(dir))
	p.must("chroot", unix.Chroot("."))
}

// tableSize is how many descriptors the table takes then.
const tableSize = 64

// fillTable opens descriptors until there is no more room.
func (p *program) fillTable(hardToo bool) {
	p.limitTable(hardToo)
	p.fill()
}

func (p *program) limitTable(hardToo bool) {
	limit := unix.Rlimit{Cur: tableSize, Max: 2 * tableSize}
	if hardToo {
		limit.Max = tableSize
	}
	p.must("setrlimit", unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
}

func (p *program) fill() {
	for {
		_, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3)
		if err == unix.EMFILE {
			return
		}
		p.must("dup", err)
	}
}

// dropCapabilities takes all capabilities from the calling thread.
func dropCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capset(&header, &data[0])
}

// withoutCapabilities executes the victim again with an empty bounding set: an
// exec by root would otherwise get all capabilities back, and capset(2) is for
// one thread only.
func (p *program) withoutCapabilities() {
	if n, _ := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_ADMIN, 0, 0, 0); n == 0 {
		return // executed again
	}
	runtime.LockOSThread()
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		_ = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0) // EINVAL: an unknown one
	}
	self, err := os.Executable()
	p.must("executable", err)
	p.must("exec", unix.Exec(self, os.Args, os.Environ()))
}

// forbidSetns installs a filter in all threads that kills the process on
// setns(2). It takes CAP_SYS_ADMIN, or else PR_SET_NO_NEW_PRIVS before.
func forbidSetns() error {
	return setFilter(onlyKilledBy(unix.SYS_SETNS), unix.SECCOMP_FILTER_FLAG_TSYNC)
}

// setFilter makes no system call besides, nor lets the runtime make one: the
// filter may forbid those.
func setFilter(filter []unix.SockFilter, flags uintptr) error {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	return nil
}

// onlyKilledBy is a filter that kills the process on the calls and permits all others.
func onlyKilledBy(calls ...uint32) []unix.SockFilter {
	return filterOf(calls, unix.SECCOMP_RET_KILL_PROCESS, unix.SECCOMP_RET_ALLOW)
}

// onlyPermitted is a filter that permits the calls and kills the process on all others.
func onlyPermitted(calls ...uint32) []unix.SockFilter {
	return filterOf(calls, unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_KILL_PROCESS)
}

func filterOf(calls []uint32, listed, others uint32) []unix.SockFilter {
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // seccomp_data.nr
	for i, nr := range calls {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jt: uint8(len(calls) - i)})
	}
	return append(filter,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: others},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: listed})
}
