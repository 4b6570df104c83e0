package fs

import "sync"

// lists are the lists of tasks that are being read, by the number of the open file. A list changes all the
// time; read in pieces of different moments it would have numbers that are no task's, or another's.
type lists struct {
	mu   sync.Mutex
	last uint64            // guarded by mu
	text map[uint64]string // guarded by mu; from the first read on
}

// open gives an open file its number.
func (l *lists) open() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	return l.last
}

// close forgets what has been read.
func (l *lists) close(number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.text, number)
}

// read reads what the list was when its beginning was read. Of number 0 nothing is kept.
func (l *lists) read(number uint64, buf []byte, off int64, now func() (string, error)) (int, error) {
	l.mu.Lock()
	text, known := l.text[number]
	l.mu.Unlock()
	if off == 0 || !known {
		var err error
		if text, err = now(); err != nil {
			return 0, err
		}
		if number == 0 {
			return copyFrom(buf, text, off), nil
		}
		l.mu.Lock()
		if l.text == nil {
			l.text = make(map[uint64]string)
		}
		l.text[number] = text
		l.mu.Unlock()
	}
	return copyFrom(buf, text, off), nil
}
