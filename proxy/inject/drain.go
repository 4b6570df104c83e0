package inject

import (
	"bytes"
	"encoding/binary"
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
// The first shows in the instruction pointer. For the second the slot names its
// owner, which the tracer takes out when the owner has left the slot. As long
// as a name stands there the owner is let run until it cannot be in a handler.

// handlerTime is the processor time in which a handler has ended.
const handlerTime = 2 * time.Millisecond

// unblockable are the signals that no mask holds.
const unblockable = uint64(1)<<(unix.SIGKILL-1) | uint64(1)<<(unix.SIGSTOP-1)

// drain lets threads leave the slot that are in it, or may come back to it. It
// says whether there were any; they must be waited for again.
func (s *tracer) drain() (again bool) {
	for _, th := range s.threads {
		if !th.stopped || !s.code.inSlot(th.regs.ip()) && !s.mayReturn(th) {
			continue
		}
		again = true
		th.stopped, th.before = false, nil
		_ = ptraceCont(th.tid, 0) // ESRCH: killed, sweep finds it
	}
	if s.threads[s.code.owner] == nil && s.code.owner != 0 {
		if s.code.refresh(); s.code.owner != 0 && s.strangerMayReturn() {
			again = true
		}
	}
	if !again {
		s.code.left, s.code.owner = s.code.owner, 0
		return false
	}
	ts := unix.NsecToTimespec(int64(time.Millisecond / 2))
	_ = unix.Nanosleep(&ts, nil)
	for _, th := range s.threads {
		if !th.stopped {
			_ = ptraceInterrupt(th.tid)
		}
	}
	return true
}

// mayReturn says whether a thread may come back to the slot from a handler.
func (s *tracer) mayReturn(th *thread) bool {
	if th.tid != s.code.owner {
		return false
	}
	return s.code.inHandler(th.mask) || !th.regs.interrupted() && !s.handlerOver()
}

// strangerMayReturn is mayReturn, for an owner that is not seized.
func (s *tracer) strangerMayReturn() bool {
	stat, err := readStat(s.code.owner)
	if err != nil || stat.dead() {
		return false
	}
	text, err := readFile(proc(s.pid, "task/"+strconv.Itoa(s.code.owner)+"/status"))
	if err != nil {
		return false // the number of a thread of another process
	}
	mask, err := strconv.ParseUint(statusField(string(text), "SigBlk"), 16, 64)
	if err == nil && s.code.inHandler(mask) {
		return true
	}
	asleep := stat.state == 'S' || stat.state == 'D'
	return !asleep && !s.handlerOver()
}

// inHandler says whether an owner with such a mask is certainly in a handler (or
// in the blob): all is blocked, as in every handler of the Go runtime, but was
// not when the blob began.
func (c *code) inHandler(mask uint64) bool {
	return mask|unblockable == ^uint64(0) && c.ownerMask|unblockable != ^uint64(0)
}

// handlerOver says whether the owner has computed for so long since the first
// question that no handler runs any more.
func (s *tracer) handlerOver() bool {
	text, err := readFile(proc(s.code.owner, "schedstat"))
	if err != nil {
		return false
	}
	field, _, _ := strings.Cut(string(text), " ")
	n, err := strconv.ParseInt(field, 10, 64)
	if err != nil {
		return false
	}
	if s.code.ownerTime == 0 {
		s.code.ownerTime = time.Duration(n)
	}
	return time.Duration(n)-s.code.ownerTime >= handlerTime
}

// inSlot says whether an address lies in the slot, as this or any earlier
// tracer used it.
func (c *code) inSlot(ip uint64) bool {
	return len(blobCode) > 0 && ip >= c.slot && ip < c.slot+uint64(c.room)
}

// readOwner finds in the image of the vdso whose slot it is.
func (c *code) readOwner(vdso uint64, image []byte) {
	at := int(c.slot - vdso)
	if len(blobCode) == 0 || c.room < blobSteps || len(image) < at+blobSteps {
		return
	}
	slot := image[at:]
	if !bytes.HasPrefix(slot, blobCode) {
		return // never written
	}
	c.owner = int(binary.NativeEndian.Uint32(slot[blobOwner:]))
	c.ownerMask = binary.NativeEndian.Uint64(slot[blobState:])
}

// refresh looks again whose slot it is: traces of single threads share it.
func (c *code) refresh() {
	before := c.owner
	slot := make([]byte, blobSteps)
	if len(blobCode) == 0 || c.room < blobSteps || c.read(c.slot, slot) != nil {
		return
	}
	c.readOwner(c.slot, slot)
	if c.owner != before {
		c.ownerTime = 0
	}
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

// disown notes in the slot that nobody will come back to it, if that is so.
func (c *code) disown() {
	if c.owner == 0 {
		_ = c.write(c.slot+blobOwner, make([]byte, 4)) // at worst the next tracer waits a little
	}
}
