package inject

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// enter moves all threads, or none.
func (s *tracer) enter(to []Namespace, changes map[int][]Change) error {
	if s.running() > 0 || len(s.threads) == 0 {
		return errors.New("enter: the threads have not been stopped")
	}
	if err := s.forgetUndo(); err != nil {
		return err
	}
	plan, err := s.plan(to)
	if err != nil {
		return err
	}
	addChanges(plan, changes)
	if err := s.runPlan(plan); err != nil {
		return errors.Join(err, s.undo())
	}
	return nil
}

// undo puts the threads back, newest step first. A dead thread has nothing to
// put back.
func (s *tracer) undo() error {
	plan := map[int][]step{}
	var split error
	for tid, th := range s.threads {
		if !th.stopped {
			th.entered = nil
			continue
		}
		for _, st := range slices.Backward(th.entered) {
			plan[tid] = append(plan[tid], st.back(th.kept)...)
			if st.call != nil && st.call.nr == unix.SYS_UNSHARE && len(s.threads) > 1 {
				split = errors.New("the threads do not share root, working directory and umask any more")
			}
		}
		plan[tid] = append(plan[tid], th.kept.close()...)
		th.entered, th.kept = nil, none
	}
	if err := s.runPlan(plan); err != nil {
		return fmt.Errorf("put back: %w", err)
	}
	return errors.Join(split, s.forgetUndo())
}

// plan finds which steps each thread has to make, and holds its old namespaces.
func (s *tracer) plan(to []Namespace) (map[int][]step, error) {
	held := map[identity]int{}
	plan := map[int][]step{}
	for _, ns := range to {
		var st unix.Stat_t
		if err := unix.Fstat(ns.FD, &st); err != nil {
			return nil, fmt.Errorf("%s namespace, descriptor %d: %w", typeName(ns.Type), ns.FD, err)
		}
		for tid := range s.threads {
			old, err := s.hold(held, tid, ns.Type)
			if err != nil {
				return nil, &EnterError{TID: tid, Type: ns.Type, Err: err}
			}
			if old.id == identityOf(&st) {
				continue
			}
			enter := step{from: Namespace{Type: ns.Type, FD: old.fd}, to: ns}
			if ns.Type == unix.CLONE_NEWNS {
				plan[tid] = append(plan[tid], s.enterMount(tid, enter)...)
			} else {
				plan[tid] = append(plan[tid], enter)
			}
		}
	}
	return plan, nil
}

// heldNS is a namespace that a thread is in now.
type heldNS struct {
	id identity
	fd int
}

// hold opens a thread's namespace; the same one only once for all threads.
func (s *tracer) hold(held map[identity]int, tid, typ int) (heldNS, error) {
	path := nsPath(s.pid, tid, typ)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return heldNS{}, nsError(path, err)
	}
	id := identityOf(&st)
	if fd, ok := held[id]; ok {
		return heldNS{id, fd}, nil
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return heldNS{}, nsError(path, err)
	}
	held[id] = fd
	s.undoFDs = append(s.undoFDs, fd)
	return heldNS{id, fd}, nil
}

// nsError says what is wrong with a link in /proc/PID/task/TID/ns. The links of
// a dead thread cannot be followed; nor, for want of permission, those of one
// that is dying and has no memory any more.
func nsError(path string, err error) error {
	if err == unix.ENOENT || err == unix.ESRCH || err == unix.EACCES {
		return fmt.Errorf("%s: %w", path, ErrGone)
	}
	return fmt.Errorf("%s: %w", path, err)
}

// forgetUndo drops what is held for undo, here and in the threads.
func (s *tracer) forgetUndo() error {
	plan := map[int][]step{}
	for tid, th := range s.threads {
		if th.stopped && th.kept != none {
			plan[tid] = th.kept.close()
		}
		th.kept = none
	}
	err := s.runPlan(plan)
	for _, th := range s.threads {
		th.entered = nil
	}
	for _, fd := range s.undoFDs {
		unix.Close(fd)
	}
	s.undoFDs = nil
	if err != nil {
		return fmt.Errorf("close what was kept for undo: %w", err)
	}
	return nil
}

// runPlan makes the threads take the steps planned, and notes those taken in the
// threads.
func (s *tracer) runPlan(plan map[int][]step) error {
	maps.DeleteFunc(plan, func(_ int, steps []step) bool { return len(steps) == 0 })
	if len(plan) == 0 {
		return nil
	}
	tids := slices.Sorted(maps.Keys(plan))
	if err := s.openCode(tids[0]); err != nil {
		return fmt.Errorf("process %d: %w", s.pid, err)
	}
	if s.canRunBlob() {
		return s.runBlobs(plan)
	}
	for _, table := range groupByFiles(tids) {
		if err := s.runTable(table, plan); err != nil {
			return err
		}
	}
	return nil
}

// groupByFiles groups threads that share a descriptor table.
func groupByFiles(tids []int) [][]int {
	var groups [][]int
next:
	for _, tid := range tids {
		for i, group := range groups {
			if sameFiles(group[0], tid) {
				groups[i] = append(group, tid)
				continue next
			}
		}
		groups = append(groups, []int{tid})
	}
	return groups
}

// runTable moves the threads of one descriptor table: the first one receives
// the descriptors and closes them at the end.
func (s *tracer) runTable(tids []int, plan map[int][]step) (err error) {
	first := s.threads[tids[0]]
	room, err := raiseLimit(s.pid, len(plannedFDs(tids, plan))+2+len(tids)*len(kept{}))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, room.lower()) }()
	if err := s.begin(first); err != nil {
		return err
	}
	p, err := s.deliver(first, plannedFDs(tids, plan))
	if err != nil {
		err = &EnterError{TID: first.tid, Type: 0, Err: err}
		return errors.Join(err, s.finishIf(first))
	}
	err = s.runThreads(tids, plan, p)
	if first.stopped {
		err = errors.Join(err, s.takeBack(first, p))
	}
	return errors.Join(err, s.finishIf(first))
}

// finishIf is finish, for a thread that still is in our hands.
func (s *tracer) finishIf(th *thread) error {
	if !th.stopped {
		return nil
	}
	return s.finish(th)
}

// runThreads makes the setns calls of all threads of a table.
func (s *tracer) runThreads(tids []int, plan map[int][]step, p *parcel) error {
	for i, tid := range tids {
		th := s.threads[tid]
		if i > 0 {
			if err := s.begin(th); err != nil {
				return err
			}
		}
		err := s.runThread(th, plan[tid], p)
		if i > 0 {
			err = errors.Join(err, s.finishIf(th))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *tracer) runThread(th *thread, steps []step, p *parcel) error {
	for _, st := range steps {
		if err := s.runStep(th, st, p); err != nil {
			return &EnterError{TID: th.tid, Type: st.to.Type, Change: st.change, Err: err}
		}
		th.entered = append(th.entered, st)
	}
	return nil
}

func (s *tracer) runStep(th *thread, st step, p *parcel) error {
	if st.call == nil {
		_, err := s.call(th, unix.SYS_SETNS, p.remote[st.to.FD], uint64(st.to.Type))
		return err
	}
	args := st.call.args
	if st.call.text != "" {
		args[st.call.textArg] = p.page + textAt
		if err := s.code.write(p.page+textAt, append([]byte(st.call.text), 0)); err != nil {
			return err
		}
	}
	n, err := s.call(th, st.call.nr, args[:]...)
	if err != nil && st.call.optional && th.stopped {
		return nil
	}
	if err == nil && st.call.keep {
		th.kept = kept{int(n), th.kept[0]}
	}
	return err
}

// plannedFDs are the descriptors that the steps need, each once.
func plannedFDs(tids []int, plan map[int][]step) []int {
	var fds []int
	for _, tid := range tids {
		for _, st := range plan[tid] {
			if st.call == nil && !slices.Contains(fds, st.to.FD) {
				fds = append(fds, st.to.FD)
			}
		}
	}
	return fds
}
