package subsystems

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
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
//  4. makes its namespaces by unshare(2), and exits with the errno if it cannot;
//  5. writes a byte to its standard output: the namespaces are there;
//  6. closes its descriptors and sleeps in pause(2), whatever becomes of the daemon.
//
// A keeper that has to stay is found again by a file beside the pin, which has its number and,
// since numbers are used again, its start time.
type keeper struct {
	pid   int
	start uint64 // in clock ticks since the machine's start, as proc_pid_stat(5) has it
}

// keeperName is what ps(1) shows.
const keeperName = "rcfs-keeper"

// keeperELF builds the program that unshares flags: one segment, loaded as it is.
func keeperELF(flags int) []byte {
	const base, header = 0x400000, 64 + 56
	machine := uint16(62) // EM_X86_64
	if runtime.GOARCH == "arm64" {
		machine = 183 // EM_AARCH64
	}
	action := [4]uint64{1} // SIG_IGN, no flags, no restorer, empty mask
	var name [16]byte
	copy(name[:], keeperName)
	var b bytes.Buffer
	put := func(values ...any) {
		for _, v := range values {
			binary.Write(&b, binary.LittleEndian, v) // to a Buffer: no error
		}
	}
	size := uint64(header + len(keeperCode) + binary.Size(action) + 8 + len(name))
	put([16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1})
	put(uint16(2), machine, uint32(1), uint64(base+header), uint64(64), uint64(0),
		uint32(0), uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0))
	put(uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(4096))
	put(keeperCode, action, uint64(flags), name)
	return b.Bytes()
}

// startKeeper starts a keeper that is born into new namespaces (cloned) and makes others itself
// (unshared), both CLONE_NEW* flags. place, unless it is nil, is called between the two.
func startKeeper(cloned, unshared int, place func(pid int) error) (_ keeper, err error) {
	fd, err := unix.MemfdCreate(keeperName, unix.MFD_CLOEXEC)
	if err != nil {
		return keeper{}, fmt.Errorf("keeper: memfd: %w", err)
	}
	program := os.NewFile(uintptr(fd), keeperName)
	defer program.Close()
	if _, err := program.Write(keeperELF(unshared)); err != nil {
		return keeper{}, fmt.Errorf("keeper: %w", err)
	}
	in, feed, err := os.Pipe()
	if err != nil {
		return keeper{}, err
	}
	defer feed.Close()
	says, out, err := os.Pipe()
	if err != nil {
		in.Close()
		return keeper{}, err
	}
	defer says.Close()
	p, err := os.StartProcess(fmt.Sprintf("/proc/self/fd/%d", fd), []string{keeperName}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{},
		Files: []*os.File{in, out, nil},
		Sys:   &syscall.SysProcAttr{Setsid: true, Cloneflags: uintptr(cloned)},
	})
	in.Close()
	out.Close()
	if err != nil {
		return keeper{}, fmt.Errorf("keeper: %w", err)
	}
	k := keeper{pid: p.Pid}
	defer func() {
		if err != nil {
			p.Kill()
			p.Wait()
			return
		}
		p.Release()
	}()
	if k.start, err = startTime(k.pid); err != nil {
		return k, err
	}
	if place != nil {
		if err := place(k.pid); err != nil {
			return k, err
		}
	}
	if _, err := feed.Write([]byte{0}); err != nil {
		return k, fmt.Errorf("keeper: %w", err)
	}
	// It writes a byte when it has done so.
	if b, err := io.ReadAll(says); err != nil || len(b) == 0 {
		return k, errors.Join(err, exitOf(p, unshared))
	}
	return k, nil
}

// exitOf says why a keeper has exited: it could not unshare.
func exitOf(p *os.Process, flags int) error {
	state, err := p.Wait()
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	if code := state.ExitCode(); code > 0 {
		return fmt.Errorf("unshare(%#x): %w", flags, unix.Errno(code))
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
// errKeeperGone: it has died.
func keeperOf(pin string) (keeper, error) {
	b, err := os.ReadFile(record(pin))
	if err != nil {
		return keeper{}, err
	}
	var k keeper
	if _, err := fmt.Sscan(string(b), &k.pid, &k.start); err != nil {
		return k, fmt.Errorf("%s: %w", record(pin), err)
	}
	if !k.alive() {
		return k, errKeeperGone
	}
	return k, nil
}

// dismiss ends the keeper of a pin, if it has one.
func dismiss(pin string) error {
	k, err := keeperOf(pin)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil || errors.Is(err, errKeeperGone) {
		err = k.end()
	}
	if err != nil {
		return err
	}
	return os.Remove(record(pin))
}
