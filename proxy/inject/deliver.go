package inject

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// parcel is what a descriptor table of the target holds for us during a move:
// our namespace descriptors under the target's numbers, and three pages of memory.
type parcel struct {
	page   uint64
	remote map[int]uint64 // our descriptor → the target's
}

// Layout of the pages. The blob knows it too.
const (
	pageSize    = 4096
	parcelSize  = 3 * pageSize
	headerAt    = 0    // struct msghdr
	pairAt      = 0x38 // int[2]
	controlAt   = 0x40
	controlSize = 1024
	textAt      = pageSize // PATH_MAX, and some short ones
)

// deliver copies our descriptors into the descriptor table of th, by
// SCM_RIGHTS through a socket pair that th makes and we take one end of
// (pidfd_getfd): that works on every kernel, and from within a chroot or other
// pid and mount namespaces. Needs begin.
func (s *tracer) deliver(th *thread, fds []int) (*parcel, error) {
	p := &parcel{remote: map[int]uint64{}}
	var err error
	p.page, err = s.call(th, unix.SYS_MMAP, 0, parcelSize, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uint64(0), 0)
	if err != nil {
		return nil, fmt.Errorf("mmap in thread %d: %w", th.tid, err)
	}
	err = s.receive(th, p, fds)
	if err != nil {
		return nil, errors.Join(err, s.takeBack(th, p))
	}
	return p, nil
}

// takeBack frees what deliver made.
func (s *tracer) takeBack(th *thread, p *parcel) error {
	var errs []error
	for _, fd := range p.remote {
		if _, err := s.call(th, unix.SYS_CLOSE, fd); err != nil {
			errs = append(errs, fmt.Errorf("close in thread %d: %w", th.tid, err))
		}
	}
	if _, err := s.call(th, unix.SYS_MUNMAP, p.page, parcelSize); err != nil {
		errs = append(errs, fmt.Errorf("munmap in thread %d: %w", th.tid, err))
	}
	return errors.Join(errs...)
}

// receive passes the descriptors through a socket pair.
func (s *tracer) receive(th *thread, p *parcel, fds []int) (err error) {
	_, err = s.call(th, unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0, p.page+pairAt)
	if err != nil {
		return fmt.Errorf("socketpair in thread %d: %w", th.tid, err)
	}
	var raw [8]byte
	if err := s.code.read(p.page+pairAt, raw[:]); err != nil {
		return err
	}
	pair := [2]int{int(binary.NativeEndian.Uint32(raw[:])), int(binary.NativeEndian.Uint32(raw[4:]))}
	defer func() {
		for _, fd := range pair {
			if _, closeErr := s.call(th, unix.SYS_CLOSE, uint64(fd)); closeErr != nil {
				err = errors.Join(err, fmt.Errorf("close in thread %d: %w", th.tid, closeErr))
			}
		}
	}()
	if err := s.send(th, pair[0], fds); err != nil {
		return err
	}
	return s.collect(th, p, pair[1], fds)
}

// send takes one end of the pair and sends the descriptors.
func (s *tracer) send(th *thread, end int, fds []int) error {
	pidfd, err := s.openPidfd(th.tid)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	local, err := unix.PidfdGetfd(pidfd, end, 0)
	if err != nil {
		return fmt.Errorf("pidfd_getfd from thread %d: %w", th.tid, err)
	}
	defer unix.Close(local)
	if !sameFile(th.tid, end, unix.Getpid(), local) { // its process has left the table meanwhile
		return fmt.Errorf("descriptor table of thread %d: %w", th.tid, unix.EAGAIN)
	}
	if err := unix.Sendmsg(local, nil, unix.UnixRights(fds...), nil, unix.MSG_DONTWAIT); err != nil {
		return fmt.Errorf("send descriptors to thread %d: %w", th.tid, err)
	}
	return nil
}

// openPidfd opens a pidfd by which the descriptor table of a thread can be reached: that of its process,
// whose table is its leader's, or where the thread has another table one of the thread itself.
func (s *tracer) openPidfd(tid int) (int, error) {
	pid, flags := s.pid, 0
	if !sameFiles(s.pid, tid) {
		const pidfdThread = unix.O_EXCL // PIDFD_THREAD, Linux 6.9
		pid, flags = tid, pidfdThread
	}
	fd, err := unix.PidfdOpen(pid, flags)
	if err == unix.EINVAL && flags != 0 {
		return -1, fmt.Errorf("thread %d: %w: it has a descriptor table of its own", tid, ErrUnsupported)
	}
	if err != nil {
		return -1, fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	return fd, nil
}

// collect has the thread receive the descriptors.
func (s *tracer) collect(th *thread, p *parcel, end int, fds []int) error {
	if err := s.code.write(p.page+headerAt, messageHeader(p.page)); err != nil {
		return err
	}
	_, err := s.call(th, unix.SYS_RECVMSG, uint64(end), p.page+headerAt, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return fmt.Errorf("recvmsg in thread %d: %w", th.tid, err)
	}
	return s.unpack(th, p, fds)
}

// unpack reads which numbers the thread has received the descriptors under.
func (s *tracer) unpack(th *thread, p *parcel, fds []int) error {
	raw := make([]byte, controlAt+controlSize)
	if err := s.code.read(p.page, raw); err != nil {
		return err
	}
	got := parseRights(raw)
	if len(got) > len(fds) {
		return fmt.Errorf("thread %d received %d descriptors, not %d", th.tid, len(got), len(fds))
	}
	for i, fd := range got {
		p.remote[fds[i]] = uint64(fd)
	}
	if len(got) < len(fds) { // the kernel leaves out what finds no room
		return fmt.Errorf("descriptor table of thread %d: %w", th.tid, unix.EMFILE)
	}
	return nil
}

// receiveByBlob is deliver by the blob. The page is always made, for texts.
func (s *tracer) receiveByBlob(v *visit, fds []int) (*parcel, error) {
	if err := s.run(v, blobAsk); err != nil {
		return nil, err
	}
	_, result, _, page := v.regs.blobResult()
	if result < 0 && result >= -4095 {
		return nil, fmt.Errorf("pages and sockets in thread %d: %w", v.th.tid, unix.Errno(-result))
	}
	p := &parcel{page: page, remote: map[int]uint64{}}
	if len(fds) == 0 {
		return p, nil
	}
	pair := make([]byte, 8)
	if err := s.code.read(page+pairAt, pair); err != nil {
		return nil, err
	}
	if err := s.send(v.th, int(binary.NativeEndian.Uint32(pair)), fds); err != nil {
		return nil, err
	}
	if err := s.code.write(page+headerAt, messageHeader(page)); err != nil {
		return nil, err
	}
	if err := s.run(v, blobReceive); err != nil {
		return nil, err
	}
	if _, result, _, _ = v.regs.blobResult(); result < 0 {
		return nil, fmt.Errorf("recvmsg in thread %d: %w", v.th.tid, unix.Errno(-result))
	}
	return p, s.unpack(v.th, p, fds)
}

// messageHeader builds the struct msghdr of a message without bytes.
func messageHeader(page uint64) []byte {
	b := make([]byte, pairAt)
	binary.NativeEndian.PutUint64(b[32:], page+controlAt)
	binary.NativeEndian.PutUint64(b[40:], controlSize)
	return b
}

// parseRights finds the descriptors in the control data of a read page.
func parseRights(page []byte) []int {
	n := binary.NativeEndian.Uint64(page[headerAt+40:])
	if n > controlSize {
		return nil
	}
	messages, err := unix.ParseSocketControlMessage(page[controlAt : controlAt+n])
	if err != nil || len(messages) == 0 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil
	}
	return fds
}

// sameFiles says whether two threads share their descriptor table.
func sameFiles(a, b int) bool {
	const kcmpFiles = 2
	return a == b || kcmp(a, b, kcmpFiles, 0, 0) == nil
}

// sameFile says whether descriptor x of thread a and y of b are the same open file, as far as the
// kernel compares any.
func sameFile(a, x, b, y int) bool {
	const kcmpFile = 0
	err := kcmp(a, b, kcmpFile, x, y)
	return err == nil || err == unix.ENOSYS
}

// kcmp asks kcmp(2); EINVAL where the two differ.
func kcmp(a, b, what, x, y int) error {
	order, _, errno := unix.RawSyscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), uintptr(what), uintptr(x), uintptr(y), 0)
	switch {
	case errno != 0:
		return errno
	case order != 0:
		return unix.EINVAL
	}
	return nil
}
