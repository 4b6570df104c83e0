package inject

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// writeCalls are the system calls whose result SetResult may replace.
var writeCalls = map[int64]bool{
	unix.SYS_WRITE:           true,
	unix.SYS_WRITEV:          true,
	unix.SYS_PWRITE64:        true,
	unix.SYS_PWRITEV:         true,
	unix.SYS_PWRITEV2:        true,
	unix.SYS_SENDFILE:        true,
	unix.SYS_SPLICE:          true,
	unix.SYS_TEE:             true,
	unix.SYS_VMSPLICE:        true,
	unix.SYS_COPY_FILE_RANGE: true,
}

// setResult replaces the result of the call that tid has just completed.
func (s *tracer) setResult(tid, n int) error {
	th := s.threads[tid]
	if th == nil || !th.stopped {
		return fmt.Errorf("set result: thread %d has not stopped: %w", tid, ErrTimeout)
	}
	if th.before != nil && th.before.ip() != th.regs.ip() {
		return s.setFrameResult(th, int64(n))
	}
	if !s.endOfWrite(th, &th.regs) {
		return fmt.Errorf("set result: thread %d is not at the end of a write", tid)
	}
	th.regs.setResult(int64(n))
	if err := ptraceSetRegs(tid, &th.regs); err != nil {
		return s.lost(th, err)
	}
	return nil
}

// setFrameResult replaces the result where it lies when a signal handler is
// about to run first: in the frame from which rt_sigreturn(2) restores it.
func (s *tracer) setFrameResult(th *thread, n int64) error {
	if !s.endOfWrite(th, th.before) {
		return fmt.Errorf("set result: thread %d is not at the end of a write", th.tid)
	}
	if err := s.openCode(th.tid); err != nil {
		return fmt.Errorf("set result of thread %d: %w", th.tid, err)
	}
	at := th.regs.stack() + frameResult
	var raw [8]byte
	if err := s.code.read(at, raw[:]); err != nil {
		return fmt.Errorf("set result of thread %d: %w", th.tid, err)
	}
	if int64(binary.NativeEndian.Uint64(raw[:])) != th.before.result() {
		return fmt.Errorf("set result: thread %d has an unknown signal frame", th.tid)
	}
	binary.NativeEndian.PutUint64(raw[:], uint64(n))
	if err := s.code.write(at, raw[:]); err != nil {
		return fmt.Errorf("set result of thread %d: %w", th.tid, err)
	}
	return nil
}

// endOfWrite says whether the registers are those of a completed write: not one
// that the kernel is about to restart (-ERESTARTSYS and its kin, 512 to 516).
func (s *tracer) endOfWrite(th *thread, r *regs) bool {
	n := r.result()
	return writeCalls[r.callNumber()] && (n > -512 || n < -516) && s.afterCall(th, r)
}
