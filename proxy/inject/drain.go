package inject

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A slot whose tracer died may still be in use: a thread is inside it; or it is
// in the handler of a signal that was delivered inside, as soon as the blob put
// the mask back, and rt_sigreturn(2) will take it back there. To write the slot
// before would send the thread on with the registers of another, or with its
// own of another time.
//
// The first shows in the instruction pointer. For the second each state names its
// owner, which the tracer takes out when the owner has left the slot. As long
// as a name stands there, the owner's stack is searched for the frame of a
// handler that returns into the slot, and while there is one, it is let run. That the
// signal mask is as it was outside proves nothing: a program may block everything in
// its threads.

// handlerTime is the processor time in which a handler has ended that does not
// block its own signal (SA_NODEFER).
const handlerTime = 2 * time.Millisecond

// stackSearched is how much of a stack is searched.
const stackSearched = 1 << 20

// unblockable are the signals that no mask holds.
const unblockable = uint64(1)<<(unix.SIGKILL-1) | uint64(1)<<(unix.SIGSTOP-1)

// drain lets threads leave the slot that are in it, or may come back to it. It
// says whether there were any; they must be waited for again.
func (s *tracer) drain() (again bool) {
	s.code.refresh()
	for _, th := range s.threads {
		if !th.stopped || !s.code.inSlot(th.regs.ip()) && !s.mayReturn(th) {
			continue
		}
		again, s.code.current = true, false
		th.stopped, th.before, th.sleep, th.seen, th.due = false, nil, nil, false, 0
		_ = ptraceCont(th.tid, 0) // ESRCH: killed, sweep finds it
	}
	if s.code.awaited(s) != 0 {
		again = true
	}
	if !again {
		s.left = s.code.owners
		return false
	}
	// Longer each time: on a busy machine a thread may not have run at all
	// before it is interrupted, and each time it may first have to handle another signal.
	s.pause = min(max(2*s.pause, time.Millisecond/2), 16*time.Millisecond)
	nap(s.pause)
	if s.passSignals() {
		nap(time.Millisecond / 2)
	}
	for _, th := range s.threads {
		// One that has stopped already, for a signal or with its group, keeps the
		// interrupt and would obey it when it is let run next, without a step on.
		if _, already, _ := stopOf(th.tid); !th.stopped && !already {
			_ = ptraceInterrupt(th.tid)
		}
	}
	return true
}

// passSignals passes on the signals for which threads have stopped meanwhile. One that a timer sends comes once in
// every pause, at the moment in which the handler of the last has led back to the slot: a
// thread that is interrupted with it does not take a step there.
func (s *tracer) passSignals() (any bool) {
	for _, th := range s.threads {
		if th.stopped {
			continue
		}
		if ev, ok, err := stopOf(th.tid); ok && err == nil && ev.code == 0 {
			_ = ptraceCont(th.tid, ev.sig) // ESRCH: killed, sweep finds it
			any = true
		}
	}
	return any
}

func nap(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil)
}

// awaited returns an owner that is not seized here and may come back, as far as is known.
func (c *code) awaited(s *tracer) (tid int) {
	c.refresh()
	for _, tid := range c.owners {
		if tid != 0 && !slices.Contains(s.left[:], tid) && s.threads[tid] == nil && s.strangerMayReturn(tid) {
			return tid
		}
	}
	return 0
}

// mayReturn says whether a stopped thread may come back to the slot from a handler.
func (s *tracer) mayReturn(th *thread) bool {
	return s.code.owns(th.tid) && s.inHandler(th.tid, th.regs.stack(), th.mask, th.regs.interrupted(s.code))
}

// inHandler says whether a thread is in the handler of a signal that came in the slot.
func (s *tracer) inHandler(tid int, sp, mask uint64, asleep bool) bool {
	signals := framesInto(s.code.readStack(tid, sp), sp, s.code.slot, s.code.slot+uint64(s.code.room))
	switch {
	case signals == 0:
		return false
	case signals&mask != 0: // a handler's own signal is blocked
		return true
	}
	return !asleep && !s.handlerOver(tid) // remains of a frame, or SA_NODEFER
}

// strangerMayReturn is mayReturn, for an owner that is not seized.
func (s *tracer) strangerMayReturn(tid int) bool {
	stat, err := readStat(tid)
	if err != nil || stat.dead() {
		return false
	}
	path := proc(s.pid, "task/"+strconv.Itoa(tid))
	text, err := readFile(path + "/status")
	if err != nil {
		return false // the number of a thread of another process
	}
	mask, err := strconv.ParseUint(statusField(string(text), "SigBlk"), 16, 64)
	if err != nil {
		return true
	}
	if text, err = readFile(path + "/syscall"); err != nil {
		return true
	}
	sp, ip, asleep := parseSyscall(string(text))
	if !asleep { // it runs
		return !s.handlerOver(tid)
	}
	return s.code.inSlot(ip) || s.inHandler(tid, sp, mask, true)
}

// parseSyscall reads stack and instruction pointer in the text of
// /proc/PID/syscall; there are none while the task runs.
func parseSyscall(text string) (sp, ip uint64, ok bool) {
	fields := strings.Fields(text)
	if len(fields) < 3 {
		return 0, 0, false
	}
	sp, err := strconv.ParseUint(fields[len(fields)-2], 0, 64)
	if err != nil {
		return 0, 0, false
	}
	ip, err = strconv.ParseUint(fields[len(fields)-1], 0, 64)
	return sp, ip, err == nil
}

// readStack reads the stack of a thread from sp to the end of its mapping.
func (c *code) readStack(tid int, sp uint64) []byte {
	maps, err := os.ReadFile(proc(tid, "maps"))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(maps)) {
		var lo, hi uint64
		if n, _ := fmt.Sscanf(line, "%x-%x", &lo, &hi); n == 2 && sp >= lo && sp < hi {
			stack := make([]byte, min(hi-sp, stackSearched))
			n, err := unix.Pread(c.mem, stack, int64(sp))
			if err != nil {
				return nil
			}
			return stack[:n]
		}
	}
	return nil
}

// handlerOver says whether an owner has computed for so long since the first
// question that no handler runs any more.
func (s *tracer) handlerOver(tid int) bool {
	text, err := readFile(proc(tid, "schedstat"))
	if err != nil {
		return false
	}
	field, _, _ := strings.Cut(string(text), " ")
	n, err := strconv.ParseInt(field, 10, 64)
	if err != nil {
		return false
	}
	now := time.Duration(n)
	if _, asked := s.computed[tid]; !asked {
		if s.computed == nil {
			s.computed = map[int]time.Duration{}
		}
		s.computed[tid] = now
	}
	return now-s.computed[tid] >= handlerTime
}

// inSlot says whether an address lies in the slot, as this or any earlier
// tracer used it.
func (c *code) inSlot(ip uint64) bool {
	return len(blobCode) > 0 && ip >= c.slot && ip < c.slot+uint64(c.room)
}

// owns says whether a thread is an owner.
func (c *code) owns(tid int) bool { return tid == c.owners[0] || tid == c.owners[1] }

// stateAt is the address of a state.
func (c *code) stateAt(i int) uint64 { return c.slot + blobStates + uint64(i)*stateSize }

// install writes the blob's code, once for all.
func (c *code) install() error {
	if c.installed {
		return nil
	}
	blank := make([]byte, blobSteps)
	copy(blank, blobCode)
	if err := c.write(c.slot, blank); err != nil {
		return err
	}
	c.installed = true
	return nil
}

// readOwners finds in an image of the slot whose it is.
func (c *code) readOwners(image []byte) {
	c.installed = len(blobCode) > 0 && bytes.HasPrefix(image, blobCode) && len(image) >= blobSteps
	c.owners = [2]int{}
	for i := range c.owners {
		if !c.installed {
			return // never written
		}
		c.owners[i] = int(binary.NativeEndian.Uint32(image[blobStates+i*stateSize+stateOwner:]))
		c.noted[i] = c.owners[i] != 0
	}
}

// refresh looks again whose slot it is: traces of single threads share it.
func (c *code) refresh() {
	image := make([]byte, blobSteps)
	if c.current || c.room < blobSteps || c.read(c.slot, image) != nil {
		return
	}
	c.readOwners(image)
}

// slots says, by pid, which slots are in use by a tracer of this program.
var slots sync.Map

// holdSlot waits until no other trace in this program uses the slot of a process.
// Traces of whole processes exclude each other, those of single threads do not.
func holdSlot(pid int) (free func()) {
	mine := make(chan struct{})
	for {
		other, taken := slots.LoadOrStore(pid, mine)
		if !taken {
			return func() { slots.Delete(pid); close(mine) }
		}
		<-other.(chan struct{})
	}
}

// disown notes in the slot that nobody will come back to it, for the states of which that is so.
func (c *code) disown() {
	for i, tid := range c.owners {
		if tid == 0 && c.noted[i] {
			_ = c.write(c.stateAt(i)+stateOwner, make([]byte, 4)) // at worst the next tracer waits a little
			c.noted[i] = false
		}
	}
}
