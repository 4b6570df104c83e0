package inject

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// source is where a blob's steps find the namespaces: by handle, or as
// descriptors of the target.
type source struct {
	handles map[int]nsHandle // our descriptor → its handle; nil when they are not used
	parcel  *parcel          // nil as long as nothing has been received
}

// canRunBlob says whether the slot has room for the blob and any one step.
func (s *tracer) canRunBlob() bool {
	return len(blobCode) > 0 && s.code.room >= blobSteps+stepSize+stepEnd
}

// A step is 32 bytes: flags, the namespace's type or the number of the call, and
// a file_handle of 24 bytes or three arguments. Flags of 0 end the steps.
const (
	stepSize   = 32
	stepArgs   = 8
	stepCall   = 1 // a call, not a handle for setns(2)
	stepOpt    = 2 // it may fail
	stepKeep   = 4 // its result is a descriptor to be kept
	stepHandle = 8
	stepEnd    = 4 // the size of the flags that end the steps
)

// handles returns the handles of all namespaces planned, if any; nil when not all are to be had, or a
// step has a text for which the slot has no room.
func (s *tracer) handles(plan map[int][]step) map[int]nsHandle {
	handles := map[int]nsHandle{}
	fds := plannedFDs(slices.Collect(maps.Keys(plan)), plan)
	if len(fds) > 0 && !haveHandles() {
		return nil
	}
	for _, fd := range fds {
		handle, err := handleOf(fd)
		if err != nil {
			return nil
		}
		handles[fd] = handle
	}
	for _, steps := range plan {
		for _, st := range steps {
			if st.call != nil && blobSteps+stepSize+stepEnd+len(st.call.text)+1 > s.code.room {
				return nil
			}
		}
	}
	return handles
}

// runBlobs makes the threads take the steps planned, one thread after the
// other.
func (s *tracer) runBlobs(plan map[int][]step) error {
	defer holdSlot(s.pid)()
	if tid := s.code.awaited(s); tid != 0 {
		return fmt.Errorf("process %d: %w: a move of thread %d has not ended", s.pid, ErrTimeout, tid)
	}
	s.code.owners = [2]int{} // nobody comes back
	defer s.code.disown()
	tids := slices.Sorted(maps.Keys(plan))
	if handles := s.handles(plan); handles != nil {
		for _, tid := range tids {
			if err := s.blobThread(s.threads[tid], 0, plan[tid], source{handles: handles}); err != nil {
				return err
			}
		}
		return nil
	}
	for _, table := range groupByFiles(tids) {
		if err := s.blobTable(table, plan); err != nil {
			return err
		}
	}
	return nil
}

// blobTable moves the threads of one descriptor table. The first one receives the
// descriptors and keeps them, stopped at the mark, until the others have used
// them: were the tracer to die, it would close them.
func (s *tracer) blobTable(tids []int, plan map[int][]step) (err error) {
	fds := plannedFDs(tids, plan)
	room, err := raiseLimit(s.pid, len(fds)+2+len(tids)*len(kept{}))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, room.lower()) }()
	first := s.threads[tids[0]]
	v, err := s.visit(first, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.tidy(v)) }()
	p, err := s.receiveByBlob(v, fds)
	if err != nil {
		if !first.stopped {
			return err
		}
		return &EnterError{TID: first.tid, Type: 0, Err: err}
	}
	if err := s.take(v, plan[first.tid], source{parcel: p}); err != nil {
		return err
	}
	for _, tid := range tids[1:] {
		if err := s.blobThread(s.threads[tid], 1, plan[tid], source{parcel: p}); err != nil {
			return err
		}
	}
	return nil
}

// tidy has the thread at the mark give back what it has received, and leaves.
func (s *tracer) tidy(v *visit) error {
	if v.begun && v.th.stopped {
		if err := s.run(v, blobTidy); err != nil {
			return err
		}
	}
	return s.leave(v)
}

// blobThread moves one thread. When its descriptor table is full, it gets
// room for those that are open at a time.
func (s *tracer) blobThread(th *thread, state int, steps []step, from source) error {
	before := len(th.entered)
	err := s.visitOnce(th, state, steps, from)
	if from.handles == nil || !errors.Is(err, unix.EMFILE) {
		return err
	}
	room, limitErr := raiseLimit(s.pid, 1+len(kept{}))
	if limitErr != nil {
		return errors.Join(err, limitErr)
	}
	done := len(th.entered) - before
	return errors.Join(s.visitOnce(th, state, steps[done:], from), room.lower())
}

func (s *tracer) visitOnce(th *thread, state int, steps []step, from source) error {
	v, err := s.visit(th, state)
	if err != nil {
		return err
	}
	err = s.take(v, steps, from)
	return errors.Join(err, s.leave(v))
}

// take makes the thread take steps, as many at a time as the slot has room for,
// and notes those it has taken.
func (s *tracer) take(v *visit, steps []step, from source) error {
	for len(steps) > 0 {
		n, err := s.writeSteps(steps, from)
		if err != nil {
			return s.lost(v.th, err)
		}
		if err := s.run(v, blobNext); err != nil {
			return err
		}
		at, result, _, _ := v.regs.blobResult()
		done := min(int(at-s.code.slot-blobSteps)/stepSize, n)
		v.th.entered = append(v.th.entered, steps[:done]...)
		if done < n {
			errno := unix.Errno(-result)
			if errno == unix.ESTALE {
				// We hold the namespace, so it exists: the thread lacks the
				// capability, which nsfs reports as a stale handle.
				errno = unix.EPERM
			}
			return &EnterError{TID: v.th.tid, Type: steps[done].to.Type, Change: steps[done].change, Err: errno}
		}
		steps = steps[n:]
	}
	return nil
}

// writeSteps writes steps into the slot, and says how many have found room. Their texts lie
// behind them, or in the parcel's pages.
func (s *tracer) writeSteps(steps []step, from source) (n int, err error) {
	room := s.code.room - blobSteps - stepEnd
	for _, st := range steps {
		if room -= stepSize; st.call != nil && st.call.text != "" && from.parcel == nil {
			room -= len(st.call.text) + 1
		}
		if room < 0 {
			break
		}
		n++
	}
	// The call behind a setns belongs to it, as the chdir of a mount namespace: with a tracer that dies
	// between two runs it would not be made.
	if n > 1 && n < len(steps) && steps[n-1].call == nil && steps[n].call != nil {
		n--
	}
	b := make([]byte, n*stepSize+stepEnd)
	at := s.code.slot + blobSteps + uint64(len(b))
	if from.parcel != nil {
		at = from.parcel.page + textAt
	}
	var texts []byte
	for i, st := range steps[:n] {
		entry := b[i*stepSize:]
		switch {
		case st.call == nil && from.parcel == nil:
			handle := from.handles[st.to.FD]
			putSetns(entry, st.to.Type, &handle)
		case st.call == nil:
			setns := call{nr: unix.SYS_SETNS}
			putCall(entry, &setns, [3]uint64{from.parcel.remote[st.to.FD], uint64(st.to.Type)})
		default:
			args := st.call.args
			if st.call.text != "" {
				args[st.call.textArg] = at + uint64(len(texts))
				texts = append(append(texts, st.call.text...), 0)
			}
			putCall(entry, st.call, args)
		}
	}
	if from.parcel == nil {
		return n, s.code.write(s.code.slot+blobSteps, append(b, texts...))
	}
	if err := s.code.write(at, texts); err != nil {
		return n, err
	}
	return n, s.code.write(s.code.slot+blobSteps, b)
}

// putSetns writes a step that enters a namespace by handle.
func putSetns(b []byte, typ int, handle *nsHandle) {
	binary.LittleEndian.PutUint32(b, stepHandle)
	binary.LittleEndian.PutUint32(b[4:], uint32(typ))
	copy(b[stepArgs:], handle[:])
}

// putCall writes a step that makes another call.
func putCall(b []byte, c *call, args [3]uint64) {
	flags := uint32(stepCall)
	if c.optional {
		flags |= stepOpt
	}
	if c.keep {
		flags |= stepKeep
	}
	binary.LittleEndian.PutUint32(b, flags)
	binary.LittleEndian.PutUint32(b[4:], uint32(c.nr))
	for i, arg := range args {
		binary.LittleEndian.PutUint64(b[stepArgs+8*i:], arg)
	}
}
