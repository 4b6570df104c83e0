package fs

import (
	"bytes"
	"encoding/binary"
	goflag "flag"
	"io"
	stdlog "log"
	"log/slog"
	"os"
	"strings"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/testdata/rig"
)

// again opens the ledger as another process would.
func (l *Ledger) again(t testing.TB) *Ledger {
	fd, err := unix.FcntlInt(uintptr(l.Fd()), unix.F_DUPFD_CLOEXEC, 3)
	require.NoError(t, err)
	next, err := OpenLedger(os.NewFile(uintptr(fd), "ledger"))
	require.NoError(t, err)
	return next
}

// What a process had in hand when it died, its successor finds, and what it knew of it.
func TestLedger(t *testing.T) {
	l, err := NewLedger()
	require.NoError(t, err)
	require.NoError(t, l.SetNote("the mount"))
	require.ErrorIs(t, l.SetNote(strings.Repeat("x", maxNote+1)), unix.E2BIG)
	idle, busy, answered := l.take(), l.take(), l.take()
	*l.header(busy) = fuse.InHeader{Length: 40, Opcode: opMkdir, Unique: 7}
	*l.header(answered) = fuse.InHeader{Length: 40, Opcode: opRead, Unique: 8}
	*l.state(answered) = slotAnswers
	l.hold(7, busy)
	was, again := l.before(7, func() uint64 { return noName })
	require.Equal(t, uint64(noName), was)
	require.False(t, again)

	next := l.again(t)
	require.NoError(t, l.Close())
	require.Equal(t, "the mount", next.Note())
	require.ElementsMatch(t, []int{busy, answered}, next.inHand())
	require.NotContains(t, next.inHand(), idle, "nothing was read there")
	next.hold(7, busy)
	was, again = next.before(7, func() uint64 { return otherName })
	require.Equal(t, uint64(noName), was)
	require.True(t, again)
	next.letGo(7)
	next.give(busy)
	next.give(answered)
	seen := make(map[int]bool)
	for range slotCount {
		seen[next.take()] = true
	}
	require.Len(t, seen, slotCount)
	require.NoError(t, next.Close())
}

// A ledger that is none, or is garbage, is refused or is read without harm: no slot is lost or there twice.
func FuzzLedger(f *testing.F) {
	head := make([]byte, offSlots)
	copy(head, ledgerMagic)
	f.Add(head, uint32(40))
	f.Add([]byte(ledgerMagic), uint32(0))
	f.Add([]byte("something else"), uint32(40))
	wild := bytes.Clone(head)
	for i := offInit; i < len(wild); i++ {
		wild[i] = byte(i * 7)
	}
	f.Add(wild, uint32(1<<31))
	taken := bytes.Clone(head)
	for i := range slotCount {
		binary.NativeEndian.PutUint32(taken[offStates+i*stateSize:], uint32(i%4))
	}
	f.Add(taken, uint32(slotIn+1))
	f.Fuzz(func(t *testing.T, head []byte, length uint32) {
		l, err := NewLedger()
		require.NoError(t, err)
		copy(l.mem[:offSlots], head)
		for i := range slotCount {
			l.header(i).Length = length
		}
		fd, err := unix.FcntlInt(uintptr(l.Fd()), unix.F_DUPFD_CLOEXEC, 3)
		require.NoError(t, err)
		next, err := OpenLedger(os.NewFile(uintptr(fd), "ledger"))
		require.NoError(t, l.Close())
		if err != nil {
			return
		}
		_ = next.Note()
		require.LessOrEqual(t, len(next.text(offInit, maxInit)), maxInit)
		inHand := next.inHand()
		require.Equal(t, slotCount, len(inHand)+len(next.free))
		require.Len(t, next.room, len(next.free))
		w := newWatches(next, -1, rig.Log(t))
		for fh := range w.byFh {
			w.close(fh)
		}
		require.Empty(t, w.byFh)
		*(*uint32)(unsafe.Pointer(&next.mem[offBackingMark])) %= 2 * backingCount
		b := openBackings(next, -1, rig.Log(t), func(node uint64) bool { return node%2 == 0 })
		require.LessOrEqual(t, int(*b.mark()), backingCount)
		b.stop()
		require.Empty(t, b.at)
		require.NoError(t, next.Close())
	})
}

// standingView is a view that is not mounted.
type standingView struct{}

func (standingView) Where() string { return "nowhere" }
func (standingView) Alive() bool   { return true }

// Whatever the kernel sends, there is an answer or none is due, and no harm: nonsense for node ids, sizes,
// offsets, names.
// (go test -fuzz FuzzRequest -parallel 1: the hierarchy is there once.)
func FuzzRequest(f *testing.F) {
	before := stdlog.Writer()
	stdlog.SetOutput(io.Discard) // go-fuse says each time what it does not understand
	f.Cleanup(func() { stdlog.SetOutput(before) })
	for opcode := range uint32(54) {
		for kind := range uint8(8) {
			f.Add(opcode, kind, uint64(1<<63|uint64(kind)), uint32(0), []byte("b\x00c\x00"))
		}
		f.Add(opcode, uint8(0), uint64(0), ^uint32(0), bytes.Repeat([]byte{0xff}, 120))
		f.Add(opcode, uint8(3), uint64(0), uint32(40), []byte{})
	}
	var l *standing
	if goflag.Lookup("test.fuzz").Value.String() == "" || goflag.Lookup("test.fuzzworker").Value.String() == "true" {
		l = standingLoop(f) // else others do the work
	}
	f.Fuzz(func(t *testing.T, opcode uint32, kind uint8, node uint64, length uint32, body []byte) {
		if opcode == opMkdir || opcode == opInit || opcode == opWrite && bytes.ContainsAny(body, "0123456789") {
			return // makes what nobody removes, begins anew, moves a stranger
		}
		if a := l.h.Root().Child("a"); kind < 8 {
			node = []uint64{0, 1, 2, nodeID(a, 0), nodeID(a, 1), nodeID(a, 4), nodeID(a, 999), node}[kind]
		}
		i := l.ledger.take()
		in := l.ledger.request(i)
		*l.ledger.header(i) = fuse.InHeader{Length: length, Opcode: opcode, Unique: 5, NodeId: node}
		n := int(unsafe.Sizeof(fuse.InHeader{}))
		clear(in[n : n+256])
		n += copy(in[n:], body)
		l.handle(i, n)
		require.Len(t, l.ledger.free, slotCount, "the slot is free again")
	})
}

// standingLoop serves a hierarchy with a container "a", and sends its answers nowhere.
func standingLoop(f *testing.F) *standing {
	sys := rig.System(f)
	h, err := sys.Mount(rig.Spec(), standingView{})
	require.NoError(f, err)
	_, err = h.Make(h.Root(), "a", proxy.Owner{}, isOwnName)
	require.NoError(f, err)
	ledger, err := NewLedger()
	require.NoError(f, err)
	log := slog.New(slog.DiscardHandler)
	v := &View{sys: sys, h: h, ledger: ledger, log: log}
	s := newServer(h, v, log)
	v.loop = &loop{fd: -1, ledger: ledger, log: log, watch: newWatches(ledger, -1, log), containerOf: s.containerOf,
		backings: openBackings(ledger, -1, log, func(uint64) bool { return false }),
		server:   fuse.NewProtocolServer(s, &fuse.MountOptions{AllowOther: true, MaxWrite: maxWrite, DisableXAttrs: true, Logger: stdlog.New(io.Discard, "", 0)})}
	f.Cleanup(func() {
		require.NoError(f, h.Remove(h.Root(), "a"))
		sys.Unmount(h, standingView{})
		require.NoError(f, ledger.Close())
	})
	v.loop.replay([]byte("garbage")) // serves all the same
	return &standing{v.loop, h}
}

type standing struct {
	*loop
	h *proxy.Hierarchy
}

// Lists that many open files keep do not take more than a bound together; a forgotten one goes on with a line.
func TestListsAreBounded(t *testing.T) {
	ledger, err := NewLedger()
	require.NoError(t, err)
	defer ledger.Close()
	l := lists{ledger: ledger}
	text := strings.Repeat("12345\n", 1<<20)
	buf := make([]byte, 100)
	for number := uint64(1); number <= 50; number++ {
		n, err := l.read(number, buf, 0, func() (string, error) { return text, nil })
		require.NoError(t, err)
		require.Equal(t, strings.Repeat("12345\n", 16), string(buf[:n]))
		require.LessOrEqual(t, l.size, maxLists)
	}
	for number := uint64(1); number <= 50; number++ {
		n, err := l.read(number, buf, 98, func() (string, error) { return strings.Repeat("678901\n", 100), nil })
		require.NoError(t, err)
		require.NotZero(t, n)
		if strings.HasPrefix(string(buf[:n]), "345") { // not forgotten; a read in the middle of a line is the reader's wish
			continue
		}
		require.True(t, strings.HasPrefix(string(buf[:n]), "678901\n"), "%q", buf[:n])
	}
	for number := range uint64(51) {
		l.close(number)
	}
	require.Zero(t, l.size)

	// What has been read to its end has ended, also for a successor, whatever is there by then.
	short := func() (string, error) { return "12345\n", nil }
	n, err := l.read(99, buf, 0, short)
	require.NoError(t, err)
	require.Equal(t, 6, n)
	successor := lists{ledger: ledger}
	n, err = successor.read(99, buf, 6, func() (string, error) { return "12345\n67890\n", nil })
	require.NoError(t, err)
	require.Zero(t, n)
	n, err = successor.read(99, buf, 0, short)
	require.NoError(t, err)
	require.Equal(t, 6, n, "from the beginning it is read anew")
}

// A ledger has room for hundreds of requests, and takes memory for those that there are.
func TestLedgerTakesNoMemoryForNothing(t *testing.T) {
	l, err := NewLedger()
	require.NoError(t, err)
	defer l.Close()
	size := func() int64 {
		var st unix.Stat_t
		require.NoError(t, unix.Fstat(l.Fd(), &st))
		return 512 * st.Blocks
	}
	require.Less(t, size(), int64(64<<10))
	i := l.take()
	require.Zero(t, l.header(i).Length, "no request has been read")
	l.header(i).Length = 100
	l.give(i)
	require.Equal(t, i, l.take(), "the one used last")
	require.Zero(t, l.header(i).Length)
	l.give(i)
	require.Less(t, size(), int64(64<<10))
}
