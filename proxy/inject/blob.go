package inject

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// blobStep is one namespace to enter, by handle.
type blobStep struct {
	handle nsHandle
	typ    int
}

// nsHandle is a struct file_handle of an nsfs file: size, type, and 16 bytes.
type nsHandle [24]byte

// handleOf asks for the handle of an nsfs descriptor (Linux 6.18).
func handleOf(fd int) (h nsHandle, err error) {
	handle, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return h, err
	}
	if handle.Size() > len(h)-8 {
		return h, unix.EOVERFLOW
	}
	binary.NativeEndian.PutUint32(h[:], uint32(handle.Size()))
	binary.NativeEndian.PutUint32(h[4:], uint32(handle.Type()))
	copy(h[8:], handle.Bytes())
	return h, nil
}

// haveHandles says whether this kernel opens namespaces by handle. It is tried.
var haveHandles = sync.OnceValue(func() bool {
	const nsfsRoot = -10003 // FD_NSFS_ROOT
	if len(blobCode) == 0 {
		return false
	}
	own, err := unix.Open("/proc/thread-self/ns/uts", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(own)
	handle, _, err := unix.NameToHandleAt(own, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return false
	}
	fd, err := unix.OpenByHandleAt(nsfsRoot, handle, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
})

// runBlobs makes the threads take the steps planned, one thread after the
// other through the same slot. It says false when it cannot be done by handle.
func (s *tracer) runBlobs(plan map[int][]step) (did bool, err error) {
	handles := map[int]nsHandle{}
	for _, fd := range plannedFDs(slices.Collect(maps.Keys(plan)), plan) {
		if handles[fd], err = handleOf(fd); err != nil {
			return false, nil
		}
	}
	if s.code.room < blobSteps+stepSize*longest(plan) {
		return false, nil
	}
	defer s.code.disown()
	for _, tid := range slices.Sorted(maps.Keys(plan)) {
		if err := s.enterByHandle(s.threads[tid], plan[tid], handles); err != nil {
			return true, err
		}
	}
	return true, nil
}

func longest(plan map[int][]step) int {
	n := 0
	for _, steps := range plan {
		n = max(n, len(steps))
	}
	return n
}

// enterByHandle moves one thread. When its descriptor table is full, it gets
// room for the one descriptor that is open at a time.
func (s *tracer) enterByHandle(th *thread, steps []step, handles map[int]nsHandle) error {
	err := s.blobSteps(th, steps, handles)
	if !errors.Is(err, unix.EMFILE) {
		return err
	}
	room, limitErr := raiseLimit(s.pid, 1)
	if limitErr != nil {
		return errors.Join(err, limitErr)
	}
	done := len(th.entered)
	return errors.Join(s.blobSteps(th, steps[done:], handles), room.lower())
}

// blobSteps runs the blob in a thread, and notes the steps it has taken.
func (s *tracer) blobSteps(th *thread, steps []step, handles map[int]nsHandle) error {
	work := make([]blobStep, len(steps))
	for i, st := range steps {
		work[i] = blobStep{handles[st.to.FD], st.to.Type}
	}
	done, result, err := s.runBlob(th, work)
	if err != nil {
		return err
	}
	done = min(done, len(steps))
	th.entered = append(th.entered, steps[:done]...)
	if done < len(steps) {
		errno := unix.Errno(-result)
		if errno == unix.ESTALE {
			// We hold the namespace, so it exists: the thread lacks the
			// capability, which nsfs reports as a stale handle.
			errno = unix.EPERM
		}
		return &EnterError{TID: th.tid, Type: steps[done].to.Type, Err: errno}
	}
	return nil
}

// runBlob writes the slot, lets the thread run to the mark, and puts its
// registers and its mask back there.
func (s *tracer) runBlob(th *thread, steps []blobStep) (done int, result int64, err error) {
	marker, err := s.marker(th)
	if err != nil {
		return 0, 0, err
	}
	caught := s.caught&(uint64(1)<<(marker-1)) != 0
	s.code.owner = th.tid
	if err := s.code.write(s.code.slot, blobSlot(th.tid, th.regs, th.mask, marker, caught, steps)); err != nil {
		return 0, 0, s.lost(th, err)
	}
	r := th.regs
	r.setStart(s.code.slot)
	// Registers first: were the tracer to die between the two, a mask set
	// first would stay for ever.
	if err := ptraceSetRegs(th.tid, &r); err != nil {
		return 0, 0, s.lost(th, err)
	}
	if err := ptraceSetMask(th.tid, ^(uint64(1) << (marker - 1))); err != nil {
		return 0, 0, s.lost(th, err)
	}
	foreign, err := s.runToMark(th, marker, caught, &r)
	if err != nil {
		return 0, 0, err
	}
	if caught {
		if err := s.leaveMark(th); err != nil {
			return 0, 0, err
		}
	}
	if err := ptraceSetMask(th.tid, th.mask); err != nil {
		return 0, 0, s.lost(th, err)
	}
	if err := ptraceSetRegs(th.tid, &th.regs); err != nil {
		return 0, 0, s.lost(th, err)
	}
	s.code.owner = 0 // it has left
	if foreign {
		_ = unix.Tgkill(s.pid, th.tid, unix.Signal(marker))
	}
	done, result = r.blobResult()
	return done, result, nil
}

// runToMark lets the thread run until it has raised the marker, and reads its
// registers there. Nothing but SIGSTOP, and a marker of other origin, can come
// before. Both are passed on; but not a marker that is caught, whose handler
// would make the interrupted call answer EINTR (rt_sigreturn(2) forgets what
// restart_syscall(2) would go on with): the caller is to send it again. One
// that a blob has left pending, whose tracer died before the mask was set, is
// dropped.
func (s *tracer) runToMark(th *thread, marker int, caught bool, r *regs) (foreign bool, err error) {
	var origins []int32
	for sig := 0; ; {
		if err := ptraceCont(th.tid, sig); err != nil {
			return false, s.lost(th, err)
		}
		ev, err := s.awaitStop(th)
		if err != nil {
			return false, err
		}
		sig = 0
		if ev.code != 0 {
			continue // group stop: it stays stopped when we have left
		}
		if err := ptraceGetRegs(th.tid, r); err != nil {
			return false, s.lost(th, err)
		}
		if ev.sig == marker && r.ip() == s.code.slot+blobMarked {
			own := r.toldBy()
			return slices.ContainsFunc(origins, func(pid int32) bool { return pid != own }), nil
		}
		if ev.sig == marker && caught {
			origins = append(origins, signalOrigin(th.tid))
			continue
		}
		sig = ev.sig
	}
}

// leaveMark takes a thread on from the stop at the mark, where the tracer's death
// would deliver the marker, to an event stop. It is for a marker that the
// program catches: after its handler an interrupted nanosleep(2) and the like
// would answer EINTR. At the mark the blob's own registers are still set, so
// there the handler does no harm.
func (s *tracer) leaveMark(th *thread) error {
	for sig := 0; ; {
		if err := ptraceInterrupt(th.tid); err != nil {
			return s.lost(th, err)
		}
		if err := ptraceCont(th.tid, sig); err != nil {
			return s.lost(th, err)
		}
		ev, err := s.awaitStop(th)
		if err != nil || ev.code == unix.PTRACE_EVENT_STOP {
			return err
		}
		sig = ev.sig
	}
}

// awaitStop waits for the next stop of the one thread that runs.
func (s *tracer) awaitStop(th *thread) (event, error) {
	deadline := time.Now().Add(stepLimit)
	for pause := (backoff{}); ; {
		ev, ok, err := stopOf(th.tid)
		switch {
		case err != nil:
			return ev, s.lost(th, err)
		case ok:
			return ev, nil
		}
		if !pause.sleep() {
			continue
		}
		if s.killed(th) {
			return ev, s.lost(th, unix.ESRCH)
		}
		if time.Now().After(deadline) {
			th.stopped, s.dirty = false, true
			return ev, fmt.Errorf("thread %d runs an injected call: %w", th.tid, ErrTimeout)
		}
	}
}

// marker chooses the signal that marks the end of the blob: one that does
// nothing to the program when the tracer is dead and it is delivered.
func (s *tracer) marker(th *thread) (int, error) {
	if s.quiet == 0 {
		caught, ignored, err := dispositions(th.tid)
		if err != nil {
			return 0, err
		}
		s.caught = caught
		s.quiet = ignored &^ caught
		for _, sig := range []unix.Signal{unix.SIGWINCH, unix.SIGURG, unix.SIGCHLD} {
			s.quiet |= uint64(1) << (sig - 1) &^ caught
		}
		s.quiet &^= uint64(1)<<(unix.SIGKILL-1) | uint64(1)<<(unix.SIGSTOP-1) | uint64(1)<<(unix.SIGCONT-1)
	}
	free := s.quiet &^ th.mask
	winch := uint64(1) << (unix.SIGWINCH - 1)
	switch {
	case free&winch != 0:
		return int(unix.SIGWINCH), nil
	case free != 0:
		return bits.TrailingZeros64(free) + 1, nil
	case s.quiet&^winch == 0 || s.quiet&winch != 0:
		// Caught or blocked everywhere, as the Go runtime does: its handler
		// for this one does nothing unless the program asked for it.
		return int(unix.SIGWINCH), nil
	}
	return bits.TrailingZeros64(s.quiet) + 1, nil
}

// dispositions reads which signals a process catches and ignores.
func dispositions(tid int) (caught, ignored uint64, err error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/status")
	if err != nil {
		return 0, 0, fmt.Errorf("signals of thread %d: %w", tid, ErrGone)
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		if key != "SigCgt" && key != "SigIgn" {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("signals of thread %d: %w", tid, err)
		}
		if key == "SigCgt" {
			caught = set
		} else {
			ignored = set
		}
	}
	return caught, ignored, nil
}

// findSlot finds room for the blob behind the end of the vdso's ELF image, in
// the unused rest of its last page: nobody looks at it, and writing to it gives
// the process a copy of its own. Room is 0 when there is none.
func findSlot(vdso uint64, image []byte) (slot uint64, room int) {
	if len(image) < 64 || !bytes.HasPrefix(image, []byte("\x7fELF\x02")) {
		return 0, 0
	}
	// The section headers are the end of the image.
	sections := binary.NativeEndian.Uint64(image[0x28:])
	size := uint64(binary.NativeEndian.Uint16(image[0x3a:])) * uint64(binary.NativeEndian.Uint16(image[0x3c:]))
	end := (sections + size + 15) &^ 15
	if sections == 0 || end >= uint64(len(image)) {
		return 0, 0
	}
	return vdso + end, int(pageSize - end%pageSize)
}
