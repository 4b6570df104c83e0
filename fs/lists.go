package fs

import (
	"bytes"
	"strings"
	"sync"
)

// lists are what is being read of our own files, by the number of the open file. A list of tasks changes all the
// time; read in pieces of different moments it would have numbers that are no task's, or another's.
type lists struct {
	ledger *Ledger

	mu   sync.Mutex
	text map[uint64]string // guarded by mu; from the first read on
	size int               // guarded by mu; of all texts together
}

// maxLists bounds what is kept for all open files of a mount together. Beyond it others are forgotten, and go on
// with a list of another moment.
const maxLists = 64 << 20

// close forgets what has been read.
func (l *lists) close(number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(number)
}

// forget needs mu.
func (l *lists) forget(number uint64) {
	l.size -= len(l.text[number])
	delete(l.text, number)
}

// read reads what the list was when its beginning was read. Of number 0 nothing is kept. It ends with a whole
// line, where the buffer has room for one: a list whose beginning another process has read goes on with a line, too.
func (l *lists) read(number uint64, buf []byte, off int64, now func() (string, error)) (int, error) {
	l.mu.Lock()
	text, known := l.text[number]
	l.mu.Unlock()
	if off > 0 && !known && l.ledger.wasRead(number) {
		return 0, nil
	}
	if off == 0 || !known {
		var err error
		if text, err = now(); err != nil {
			return 0, err
		}
		if off > 0 && off < int64(len(text)) && number != 0 {
			text = text[:off] + text[int(off)+lineStart(text, int(off)):]
		}
		if number != 0 {
			l.keep(number, text)
		}
	}
	n := copyFrom(buf, text, off)
	if off+int64(n) >= int64(len(text)) {
		l.ledger.setRead(number)
	} else if end := bytes.LastIndexByte(buf[:n], '\n'); end >= 0 {
		n = end + 1
	}
	return n, nil
}

func (l *lists) keep(number uint64, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text == nil {
		l.text = make(map[uint64]string)
	}
	l.forget(number)
	for other := range l.text {
		if l.size+len(text) <= maxLists {
			break
		}
		l.forget(other)
	}
	l.text[number] = text
	l.size += len(text)
}

// lineStart returns how far it is from off to the beginning of a line, 0 at one.
func lineStart(text string, off int) int {
	if text[off-1] == '\n' {
		return 0
	}
	end := strings.IndexByte(text[off:], '\n')
	if end < 0 {
		return len(text) - off
	}
	return end + 1
}
