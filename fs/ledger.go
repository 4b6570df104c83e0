package fs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Ledger is the memory of one mount that outlives whoever serves it: what the kernel said at the beginning,
// the open files that are polled, and every request from the moment in which it is read until the kernel has
// its answer. It lies in a memfd_create(2) file. Somebody who does not die keeps the file; a successor opens it
// and finds the requests that its predecessor had in hand.
//
// What is read from it is not trusted more than anything that comes from outside: it may be cut short, or be garbage.
type Ledger struct {
	file *os.File
	mem  []byte

	mu   sync.Mutex
	free []int          // guarded by mu; slots, the one used last at the end
	room chan struct{}  // a token for each free slot
	held map[uint64]int // guarded by mu; by unique, the slots of requests that have notes
}

// The layout: a page of fixed things, the table of watches, one of the slots' states, one of open files that have been read
// to their end, the slots, and the table of the kernel's files behind nodes.
const (
	ledgerMagic = "rcfs\x00v2\n"

	offInit        = 16 // length, then what the kernel sent
	maxInit        = 240
	offLastBacking = 512
	offBackingMark = 516
	offNote        = 1024 // length, then the text
	maxNote        = 4096 - offNote - 4
	offWatches     = 4096
	watchSize      = 32
	watchCount     = 1024
	offStates      = offWatches + watchSize*watchCount
	stateSize      = 16
	slotCount      = 512
	offRead        = offStates + 4096*((stateSize*slotCount+4095)/4096)
	readCount      = 4096
	offSlots       = offRead + 8*readCount

	// A read of a request needs room for the longest write (fuse_dev_do_read in fs/fuse/dev.c), an answer for the longest read.
	slotIn   = maxWrite + 8192
	slotOut  = maxWrite + 4096
	slotSize = slotIn + slotOut

	// The kernel's files behind nodes; what is not in use takes no memory.
	offBackings  = offSlots + slotCount*slotSize
	backingSize  = 16
	backingCount = 1 << 20

	ledgerSize = offBackings + backingCount*backingSize
)

// NewLedger makes an empty ledger. ENOMEM, EMFILE as memfd_create(2) and mmap(2) give them.
func NewLedger() (*Ledger, error) {
	fd, err := unix.MemfdCreate("rcfs-ledger", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	file := os.NewFile(uintptr(fd), "ledger")
	if err := file.Truncate(ledgerSize); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if _, err := file.WriteAt([]byte(ledgerMagic), 0); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return OpenLedger(file)
}

// OpenLedger opens what NewLedger of this or another process has made, and takes the file over. An error: it is none.
func OpenLedger(file *os.File) (*Ledger, error) {
	head := make([]byte, len(ledgerMagic))
	if _, err := file.ReadAt(head, 0); err != nil || string(head) != ledgerMagic {
		return nil, errors.Join(errors.New("not a ledger"), file.Close())
	}
	if st, err := file.Stat(); err != nil || st.Size() != ledgerSize {
		return nil, errors.Join(errors.New("a ledger of another size"), err, file.Close())
	}
	mem, err := unix.Mmap(int(file.Fd()), 0, ledgerSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mmap a ledger: %w", err), file.Close())
	}
	l := &Ledger{file: file, mem: mem, room: make(chan struct{}, slotCount), held: make(map[uint64]int)}
	for i := slotCount - 1; i >= 0; i-- {
		if *l.state(i) == slotFree {
			l.free = append(l.free, i)
			l.room <- struct{}{}
		}
	}
	return l, nil
}

// Fd returns the descriptor of the file, for whoever keeps it.
func (l *Ledger) Fd() int { return int(l.file.Fd()) }

// Close unmaps the ledger. Nobody may use it any more.
func (l *Ledger) Close() error {
	return errors.Join(unix.Munmap(l.mem), l.file.Close())
}

// text returns a stored text, "" where its length makes no sense.
func (l *Ledger) text(off, limit int) string {
	n := int(binary.LittleEndian.Uint32(l.mem[off:]))
	if n < 0 || n > limit {
		return ""
	}
	return string(l.mem[off+4 : off+4+n])
}

func (l *Ledger) setText(off, limit int, text string) error {
	if len(text) > limit {
		return fmt.Errorf("%d bytes, at most %d can be kept: %w", len(text), limit, unix.E2BIG)
	}
	copy(l.mem[off+4:], text)
	binary.LittleEndian.PutUint32(l.mem[off:], uint32(len(text)))
	return nil
}

// Note returns what SetNote has written, "" if nothing.
func (l *Ledger) Note() string { return l.text(offNote, maxNote) }

// SetNote keeps a short text with the ledger: what its keeper has to know of the mount. E2BIG: it is longer than 3 KiB.
func (l *Ledger) SetNote(note string) error { return l.setText(offNote, maxNote, note) }

// setRead notes that an open file has been read to its end. Later ones may take the place of the note.
func (l *Ledger) setRead(fh uint64) { atomic.StoreUint64(l.readNote(fh), fh) }

// wasRead reports whether there is a note of it.
func (l *Ledger) wasRead(fh uint64) bool { return atomic.LoadUint64(l.readNote(fh)) == fh }

func (l *Ledger) readNote(fh uint64) *uint64 {
	return (*uint64)(unsafe.Pointer(&l.mem[offRead+8*int(fh%readCount)]))
}

// States of a slot.
const (
	slotFree    = uint32(iota)
	slotTaken   // the reader has it; its request, if it has one, is not answered
	slotAnswers // the answer stands in it, and may have reached the kernel already
)

// Behind the state of a slot: how much its request is suspected of having killed those who served it, and a note
// of whoever handles it.
func (l *Ledger) state(i int) *uint32 {
	return (*uint32)(unsafe.Pointer(&l.mem[offStates+i*stateSize]))
}

func (l *Ledger) suspicion(i int) *uint32 {
	return (*uint32)(unsafe.Pointer(&l.mem[offStates+i*stateSize+4]))
}

func (l *Ledger) handlerNote(i int) *uint64 {
	return (*uint64)(unsafe.Pointer(&l.mem[offStates+i*stateSize+8]))
}

// request is where a request is read to, and answer where its answer is made.
func (l *Ledger) request(i int) []byte { return l.mem[offSlots+i*slotSize:][:slotIn:slotIn] }
func (l *Ledger) answer(i int) []byte  { return l.mem[offSlots+i*slotSize+slotIn:][:slotOut:slotOut] }

func (l *Ledger) header(i int) *fuse.InHeader {
	return (*fuse.InHeader)(unsafe.Pointer(&l.request(i)[0]))
}

// take returns a free slot, and waits for one.
func (l *Ledger) take() int {
	<-l.room
	return l.taken()
}

// tryTake returns a free slot if there is one.
func (l *Ledger) tryTake() (int, bool) {
	select {
	case <-l.room:
		return l.taken(), true
	default:
		return 0, false
	}
}

func (l *Ledger) taken() int {
	l.mu.Lock()
	i := l.free[len(l.free)-1]
	l.free = l.free[:len(l.free)-1]
	l.mu.Unlock()
	l.header(i).Length = 0 // here, and not when a ledger is opened: it would take memory for all that are never used
	*l.suspicion(i), *l.handlerNote(i) = 0, 0
	atomic.StoreUint32(l.state(i), slotTaken)
	return i
}

// give returns a slot. What is in it is of no use any more.
func (l *Ledger) give(i int) {
	atomic.StoreUint32(l.state(i), slotFree)
	l.mu.Lock()
	l.free = append(l.free, i)
	l.mu.Unlock()
	l.room <- struct{}{}
}

// inHand returns the slots that a predecessor has left.
func (l *Ledger) inHand() []int {
	var slots []int
	for i := range slotCount {
		switch *l.state(i) {
		case slotFree:
		case slotTaken, slotAnswers:
			if n := l.header(i).Length; n >= uint32(unsafe.Sizeof(fuse.InHeader{})) && n <= slotIn {
				slots = append(slots, i)
				continue
			}
			fallthrough // it died before a request came
		default:
			l.give(i)
		}
	}
	return slots
}

// hold makes notes of a request possible while slot i has it.
func (l *Ledger) hold(unique uint64, i int) {
	l.mu.Lock()
	l.held[unique] = i
	l.mu.Unlock()
}

func (l *Ledger) letGo(unique uint64) {
	l.mu.Lock()
	delete(l.held, unique)
	l.mu.Unlock()
}

// before returns what was so when a request was handled for the first time, and whether that was by a predecessor, which
// may have done what it asks for. What now returns is not 0.
func (l *Ledger) before(unique uint64, now func() uint64) (was uint64, again bool) {
	l.mu.Lock()
	i, ok := l.held[unique]
	l.mu.Unlock()
	if !ok {
		return now(), false
	}
	note := l.handlerNote(i)
	if *note != 0 {
		return *note, true
	}
	*note = now()
	return *note, false
}
