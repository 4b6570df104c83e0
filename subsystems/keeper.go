package subsystems

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// A keeper is a process of ours that is in a new namespace where no thread of the daemon can be:
// user namespaces are entered by processes of one thread only, a pid namespace needs a first
// process that stays, and what a time namespace's clocks show can be set through a process that
// has made but not entered it. Its program is some instructions of machine code, without libc or Go
// runtime, so it needs no file, starts at once and takes two pages of memory. It
//
//  1. makes itself undumpable: the root of a container's user namespace may kill it, but has no hold
//     on it, whose user is the machine's root (ptrace(2));
//  2. waits for a byte on its standard input: until then it can be placed in groups;
//  3. ignores SIGCHLD, so that orphans that become its children leave no zombies (wait(2));
//  4. enters the user namespace of its standard error, if it has one, and takes the effective ids
//     of the user who shall own what it makes;
//  5. makes its namespaces by unshare(2), and exits with the errno if it cannot;
//  6. where there shall be a pid namespace: has a child, which goes on in its place, and exits. The
//     child's parent is the daemon, as the exited one's was (CLONE_PARENT);
//  7. writes a byte to its standard output: the namespaces are there;
//  8. closes its descriptors and sleeps in pause(2), whatever becomes of the daemon.
//
// A keeper that has to stay is found again by a file beside the pin, which has its number and,
// since numbers are used again, its start time.
type keeper struct {
	pid   int
	start uint64 // in clock ticks since the machine's start, as proc_pid_stat(5) has it
}

// keeperName is what ps(1) shows.
const keeperName = "rcfs-keeper"

// keeperPlan is what a keeper is started for.
type keeperPlan struct {
	run      string // whose it is, see runOf
	born     string // "" or the pid namespace of its parent, below which its own will be
	in       string // "" or the user namespace that it enters
	uid, gid int    // effective ids there, -1 to leave them
	unshared int    // CLONE_NEW* flags of what it makes itself
	cloned   int    // CLONE_NEW* flags of what it is the first in
	// place, unless it is nil, is called before it makes anything.
	place func(pid int) error
}

// program builds what a keeper runs.
func (plan keeperPlan) program() (*os.File, error) {
	entered, cloned := 0, plan.cloned
	if plan.in != "" {
		entered = unix.CLONE_NEWUSER
	}
	if cloned != 0 {
		cloned |= unix.CLONE_PARENT | int(unix.SIGCHLD)
	}
	action := [4]uint64{1} // SIG_IGN, no flags, no restorer, empty mask
	numbers := [6]int32{int32(entered), int32(plan.uid), int32(plan.gid), int32(plan.unshared), int32(cloned)}
	var name [16]byte
	copy(name[:], keeperName)
	return programOf(keeperName, keeperCode, action, numbers, name)
}

// programOf builds an executable, in memory, of what is loaded as it is into one segment, with
// the code at its beginning.
func programOf(name string, parts ...any) (*os.File, error) {
	const base, header = 0x400000, 64 + 56
	machine := uint16(62) // EM_X86_64
	if runtime.GOARCH == "arm64" {
		machine = 183 // EM_AARCH64
	}
	size := uint64(header)
	for _, part := range parts {
		size += uint64(binary.Size(part))
	}
	var b bytes.Buffer
	put := func(values ...any) {
		for _, v := range values {
			binary.Write(&b, binary.LittleEndian, v) // to a Buffer: no error
		}
	}
	put([16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1})
	put(uint16(2), machine, uint32(1), uint64(base+header), uint64(64), uint64(0),
		uint32(0), uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0))
	put(uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(4096))
	put(parts...)
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	program := os.NewFile(uintptr(fd), name)
	if _, err := program.Write(b.Bytes()); err != nil {
		return nil, errors.Join(err, program.Close())
	}
	return program, nil
}

// startKeeper starts a keeper. A failure leaves none.
func startKeeper(plan keeperPlan) (k keeper, err error) {
	if plan.born == "" {
		return plan.start()
	}
	err = onOwnThread(func() error {
		ns, err := os.Open(plan.born)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWPID); err != nil {
			return fmt.Errorf("keeper: setns %s: %w", plan.born, err)
		}
		k, err = plan.start()
		return err
	})
	return k, err
}

func (plan keeperPlan) start() (_ keeper, err error) {
	program, err := plan.program()
	if err != nil {
		return keeper{}, fmt.Errorf("keeper: %w", err)
	}
	defer program.Close()
	in, feed, err := os.Pipe()
	if err != nil {
		return keeper{}, err
	}
	defer feed.Close()
	says, out, err := credentialPair()
	if err != nil {
		in.Close()
		return keeper{}, err
	}
	defer says.Close()
	files := []*os.File{in, out, nil}
	if plan.in != "" {
		if files[2], err = os.Open(plan.in); err != nil {
			in.Close()
			out.Close()
			return keeper{}, err
		}
		defer files[2].Close()
	}
	p, err := os.StartProcess(fmt.Sprintf("/proc/self/fd/%d", program.Fd()), []string{keeperName, plan.run}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{},
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	in.Close()
	out.Close()
	if err != nil {
		return keeper{}, fmt.Errorf("keeper: %w", err)
	}
	defer func() {
		if err != nil {
			p.Kill()
			p.Wait()
			return
		}
		p.Release()
	}()
	if plan.place != nil {
		if err := plan.place(p.Pid); err != nil {
			return keeper{}, err
		}
	}
	if _, err := feed.Write([]byte{0}); err != nil {
		return keeper{}, fmt.Errorf("keeper: %w", err)
	}
	pid, err := sender(says)
	if err != nil {
		return keeper{}, errors.Join(err, exitOf(p, plan))
	}
	k := keeper{pid: pid}
	if k.start, err = startTime(pid); err != nil {
		return k, err
	}
	if plan.cloned != 0 { // it has exited
		if _, err := p.Wait(); err != nil {
			return k, errors.Join(fmt.Errorf("keeper: %w", err), k.end())
		}
	}
	return k, nil
}

// credentialPair makes a pair of sockets. The first tells who has written to the second (unix(7)).
func credentialPair() (reader, writer *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("keeper: socketpair: %w", err)
	}
	reader, writer = os.NewFile(uintptr(pair[0]), "keeper"), os.NewFile(uintptr(pair[1]), "keeper")
	if err := unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("keeper: SO_PASSCRED: %w", err), reader.Close(), writer.Close())
	}
	return reader, writer, nil
}

// errNothingSaid: the keeper has exited.
var errNothingSaid = errors.New("keeper: it could not make its namespaces")

// sender waits for the keeper's byte and returns its number in our pid namespace.
func sender(says *os.File) (int, error) {
	control := make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for {
		n, size, _, _, err := unix.Recvmsg(int(says.Fd()), make([]byte, 1), control, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, fmt.Errorf("keeper: recvmsg: %w", err)
		case n == 0:
			return 0, errNothingSaid
		}
		messages, err := unix.ParseSocketControlMessage(control[:size])
		if err != nil || len(messages) == 0 {
			return 0, fmt.Errorf("keeper: no credentials: %w", err)
		}
		from, err := unix.ParseUnixCredentials(&messages[0])
		if err != nil {
			return 0, fmt.Errorf("keeper: %w", err)
		}
		return int(from.Pid), nil
	}
}

// exitOf says why a keeper has exited.
func exitOf(p *os.Process, plan keeperPlan) error {
	state, err := p.Wait()
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	if code := state.ExitCode(); code > 0 {
		return fmt.Errorf("make %#x: %w", plan.unshared|plan.cloned, unix.Errno(code))
	}
	return fmt.Errorf("keeper: %v", state)
}

// startTime returns when a process started. ErrNotExist where there is none.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command may contain anything; fields are counted after it (proc_pid_stat(5)).
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("stat of process %d: %q", pid, b)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, fs.ErrNotExist
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// alive reports whether the keeper is there.
func (k keeper) alive() bool {
	start, err := startTime(k.pid)
	return err == nil && start == k.start
}

// file returns the name of a file in the keeper's /proc directory.
func (k keeper) file(name string) string { return fmt.Sprintf("/proc/%d/%s", k.pid, name) }

// keeperPatience is how long a killed keeper may take to end: as a pid namespace's first process it
// ends after all others in it.
const keeperPatience = 10 * time.Second

// end kills the keeper, and returns when it is dead.
func (k keeper) end() error {
	fd, err := unix.PidfdOpen(k.pid, 0)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return fmt.Errorf("keeper %d: %w", k.pid, err)
	}
	defer unix.Close(fd)
	if k.alive() {
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
			return fmt.Errorf("kill keeper %d: %w", k.pid, err)
		}
	} else if start, err := startTime(k.pid); err == nil && start != k.start {
		return nil // another process
	}
	deadline := time.Now().Add(keeperPatience)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(time.Until(deadline).Milliseconds()))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("keeper %d: %w", k.pid, err)
		case n == 0:
			return fmt.Errorf("keeper %d does not end", k.pid)
		}
		// Only the daemon that started it has to reap it.
		unix.Wait4(k.pid, nil, unix.WNOHANG, nil)
		return nil
	}
}

// record is the file beside a pin that has the keeper's number.
func record(pin string) string { return pin + ".keeper" }

// keep writes the keeper down.
func (k keeper) keep(pin string) error {
	return os.WriteFile(record(pin), fmt.Appendf(nil, "%d %d\n", k.pid, k.start), 0o644)
}

// errKeeperGone says that somebody has killed a keeper.
var errKeeperGone = errors.New("the process that rcfs keeps in it has died")

// keeperOf finds the keeper that was written down for a pin. fs.ErrNotExist: there never was one;
// errKeeperGone: it has died, or the daemon was killed while it wrote, and the next one has ended it.
func keeperOf(pin string) (keeper, error) {
	b, err := os.ReadFile(record(pin))
	if err != nil {
		return keeper{}, err
	}
	var k keeper
	if _, err := fmt.Sscan(string(b), &k.pid, &k.start); err != nil {
		return keeper{}, errKeeperGone
	}
	if !k.alive() {
		return k, errKeeperGone
	}
	return k, nil
}

// Keeps looks for t among the keepers that are written down, if it is called as they are.
func (n *namespace) Keeps(t *proxy.Task) (bool, error) {
	status, err := t.Read("status")
	if err != nil || !bytes.HasPrefix(status, []byte("Name:\t"+keeperName+"\n")) {
		return false, err
	}
	records, err := fs.Glob(os.DirFS(n.pins), "*/*."+record(n.name))
	for _, file := range records {
		k, err := keeperOf(filepath.Join(n.pins, strings.TrimSuffix(file, record(""))))
		if err == nil && k.pid == t.TGID {
			return true, nil
		}
	}
	return false, err
}

// runOf says whose keepers are whose: as daemons of several mount namespaces call their run directories
// the same, by what the kernel tells directories by. It is the keepers' first argument.
func runOf(dir string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", fmt.Errorf("stat %s: %w", dir, err)
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), nil
}

// strayKeepers finds the keepers of a daemon that was killed before it wrote them down.
func strayKeepers(run, pins string) ([]keeper, error) {
	records, err := filepath.Glob(filepath.Join(pins, "*", "*"+record("")))
	if err != nil {
		return nil, err
	}
	kept := make(map[int]bool)
	for _, file := range records {
		if k, err := keeperOf(strings.TrimSuffix(file, record(""))); err == nil {
			kept[k.pid] = true
		}
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var stray []keeper
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || kept[pid] || !isNamed(pid, keeperName) {
			continue
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || string(line) != keeperName+"\x00"+run+"\x00" {
			continue
		}
		if start, err := startTime(pid); err == nil {
			stray = append(stray, keeper{pid, start})
		}
	}
	return stray, nil
}

// isNamed reports whether a process has that name. A daemon asks it of all when it starts, while others wait: os.ReadFile would take
// three times the calls.
func isNamed(pid int, name string) bool {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/comm", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var b [32]byte
	n, err := unix.Read(fd, b[:])
	return err == nil && string(b[:n]) == name+"\n"
}

// dismiss ends the keeper of a pin, if it has one.
func dismiss(pin string) error {
	k, err := keeperOf(pin)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil || errors.Is(err, errKeeperGone) && k.pid > 0 {
		err = k.end()
	}
	if err != nil && !errors.Is(err, errKeeperGone) {
		return err
	}
	return os.Remove(record(pin))
}
