package inject

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// blobStep is one namespace to enter, by handle, or another call.
type blobStep struct {
	handle nsHandle
	typ    int
	call   *call
}

// blobSize is the room that a blob with such steps takes.
func blobSize(steps []blobStep) int {
	n := blobSteps + stepSize*len(steps)
	for _, st := range steps {
		if st.call != nil && st.call.text != "" {
			n += len(st.call.text) + 1
		}
	}
	return n
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
	for _, steps := range plan {
		if s.code.room < blobSize(blobStepsOf(steps, handles)) {
			return false, nil
		}
	}
	defer holdSlot(s.pid)()
	if s.code.refresh(); s.code.owner != s.code.left && s.threads[s.code.owner] == nil && s.strangerMayReturn() {
		return true, fmt.Errorf("process %d: %w: a move of thread %d has not ended", s.pid, ErrTimeout, s.code.owner)
	}
	s.code.owner = 0
	defer s.code.disown()
	for _, tid := range slices.Sorted(maps.Keys(plan)) {
		if err := s.enterByHandle(s.threads[tid], plan[tid], handles); err != nil {
			return true, err
		}
	}
	return true, nil
}

func blobStepsOf(steps []step, handles map[int]nsHandle) []blobStep {
	work := make([]blobStep, len(steps))
	for i, st := range steps {
		work[i] = blobStep{handles[st.to.FD], st.to.Type, st.call}
	}
	return work
}

// enterByHandle moves one thread. When its descriptor table is full, it gets
// room for those that are open at a time.
func (s *tracer) enterByHandle(th *thread, steps []step, handles map[int]nsHandle) error {
	before := len(th.entered)
	err := s.blobSteps(th, steps, handles)
	if !errors.Is(err, unix.EMFILE) {
		return err
	}
	room, limitErr := raiseLimit(s.pid, 1+len(kept{}))
	if limitErr != nil {
		return errors.Join(err, limitErr)
	}
	done := len(th.entered) - before
	return errors.Join(s.blobSteps(th, steps[done:], handles), room.lower())
}

// blobSteps runs the blob in a thread, and notes the steps it has taken.
func (s *tracer) blobSteps(th *thread, steps []step, handles map[int]nsHandle) error {
	done, result, err := s.runBlob(th, blobStepsOf(steps, handles))
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
	s.code.owner = th.tid
	if err := s.code.write(s.code.slot, blobSlot(s.code.slot, th, marker, steps)); err != nil {
		return 0, 0, s.lost(th, err)
	}
	r := th.regs
	r.setStart(s.code.slot, th.kept)
	// Registers first: were the tracer to die between the two, a mask set
	// first would stay for ever.
	if err := ptraceSetRegs(th.tid, &r); err != nil {
		return 0, 0, s.lost(th, err)
	}
	blocked := ^uint64(0)
	if marker != 0 {
		blocked &^= uint64(1) << (marker - 1)
	}
	if err := ptraceSetMask(th.tid, blocked); err != nil {
		return 0, 0, s.lost(th, err)
	}
	if marker != 0 {
		err = s.runToMark(th, marker, &r)
	} else {
		if err = s.stepToMark(th, &r); err == nil {
			err = s.toEventStop(th)
		}
	}
	if err != nil {
		return 0, 0, err
	}
	if err := ptraceSetMask(th.tid, th.mask); err != nil {
		return 0, 0, s.lost(th, err)
	}
	if err := ptraceSetRegs(th.tid, &th.regs); err != nil {
		return 0, 0, s.lost(th, err)
	}
	s.code.owner = 0 // it has left
	done, result, th.kept = r.blobResult()
	return done, result, nil
}

// runToMark lets the thread run until it has raised the marker, and reads its
// registers there. Nothing but SIGSTOP, and a marker of other origin, can come
// before; both are passed on.
func (s *tracer) runToMark(th *thread, marker int, r *regs) error {
	for sig := 0; ; {
		if err := ptraceCont(th.tid, sig); err != nil {
			return s.lost(th, err)
		}
		ev, err := s.awaitStop(th)
		if err != nil {
			return err
		}
		sig = 0
		if ev.code != 0 {
			continue // group stop: it stays stopped when we have left
		}
		if err := ptraceGetRegs(th.tid, r); err != nil {
			return s.lost(th, err)
		}
		if ev.sig == marker && r.ip() == s.code.slot+blobMarked {
			return nil
		}
		sig = ev.sig
	}
}

// stepToMark is runToMark for a program that catches every signal: were the
// tracer to die, the marker's handler would run, and make a sleep answer EINTR (rt_sigreturn(2) forgets what restart_syscall(2) would go on
// with). The thread runs the same blob without a marker, and stops at every
// system call instead. At such a stop the tracer's death delivers nothing, since
// it is not a signal's number that PTRACE_O_TRACESYSGOOD reports (send_sig() in
// ptrace_report_syscall() refuses it).
func (s *tracer) stepToMark(th *thread, r *regs) error {
	for sig := 0; ; {
		if err := ptraceSyscall(th.tid, sig); err != nil {
			return s.lost(th, err)
		}
		ev, err := s.awaitStop(th)
		if err != nil {
			return err
		}
		sig = 0
		switch {
		case ev.code != 0:
			continue // group stop
		case ev.sig != syscallStop:
			sig = ev.sig // SIGSTOP
			continue
		}
		if err := ptraceGetRegs(th.tid, r); err != nil {
			return s.lost(th, err)
		}
		if r.ip() == s.code.slot+blobAsked {
			return nil
		}
	}
}

// toEventStop takes a thread from the stop at a system call to an event stop:
// registers put back at the former would show the program -ERESTART.
func (s *tracer) toEventStop(th *thread) error {
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
// nothing to the program when the tracer is dead and it is delivered. It is 0
// when the program catches every signal that might do.
func (s *tracer) marker(th *thread) (int, error) {
	const winch = uint64(1) << (unix.SIGWINCH - 1)
	if !s.asked {
		caught, ignored, err := dispositions(th.tid)
		if err != nil {
			return 0, err
		}
		ignored |= winch | uint64(1)<<(unix.SIGURG-1) | uint64(1)<<(unix.SIGCHLD-1)
		s.quiet = ignored &^ caught &^ unblockable &^ jobControl
		s.asked = true
	}
	for _, fit := range []uint64{s.quiet &^ th.mask, s.quiet} {
		switch {
		case fit&winch != 0:
			return int(unix.SIGWINCH), nil
		case fit != 0:
			return bits.TrailingZeros64(fit) + 1, nil
		}
	}
	return 0, nil
}

// jobControl are the signals that do something when they are sent, even to a
// process that ignores them (prepare_signal() in kernel/signal.c).
const jobControl = uint64(1)<<(unix.SIGCONT-1) | uint64(1)<<(unix.SIGTSTP-1) |
	uint64(1)<<(unix.SIGTTIN-1) | uint64(1)<<(unix.SIGTTOU-1)

// dispositions reads which signals a process catches and ignores.
func dispositions(tid int) (caught, ignored uint64, err error) {
	text, err := readFile(proc(tid, "status"))
	if err != nil {
		return 0, 0, fmt.Errorf("signals of thread %d: %w", tid, ErrGone)
	}
	for key, set := range map[string]*uint64{"SigCgt": &caught, "SigIgn": &ignored} {
		if *set, err = strconv.ParseUint(statusField(string(text), key), 16, 64); err != nil {
			return 0, 0, fmt.Errorf("signals of thread %d: %w", tid, err)
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
