package proxy

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLines(t *testing.T) {
	for _, c := range []struct {
		data string
		want []string
	}{
		{"", nil},
		{"1", []string{"1"}},
		{"1\n", []string{"1\n"}},
		{"1\n2\n", []string{"1\n", "2\n"}},
		{"1\n2", []string{"1\n"}}, // more of the 2 may follow
		{"\n\n", []string{"\n", "\n"}},
	} {
		require.Equal(t, c.want, Lines([]byte(c.data)), "%q", c.data)
	}
}

func FuzzLines(f *testing.F) {
	for _, seed := range []string{"", "1", "1\n2\n3", "0x10\n", " 7 \n", "\n", "2147483648", "-1", "+5", "१\n", "1\x00\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		taken := strings.Join(Lines(data), "")
		if !strings.HasPrefix(string(data), taken) {
			t.Fatalf("%q taken from %q", taken, data)
		}
		for _, line := range Lines(data) {
			id, err := parseID(line)
			if err != nil {
				continue
			}
			digits := strings.Trim(line, " \t\n")
			if want, err := strconv.ParseInt(digits, 10, 32); err != nil || int(want) != id || id < 0 {
				t.Fatalf("%q is %d", line, id)
			}
		}
	})
}

func FuzzParseStatus(f *testing.F) {
	f.Add("Name:\tx\nState:\tS (sleeping)\nTgid:\t5\nUid:\t0\t1\t2\t3\nCapEff:\t00ff\nThreads:\t3\nTracerPid:\t0\n")
	f.Add("State:\nUid:\t1\n")
	f.Add("Name:\tTgid: 7\nTgid:\tx\n")
	f.Fuzz(func(t *testing.T, text string) {
		if st, err := parseStatus(text); err == nil && st.TGID == 0 {
			t.Fatalf("%q without Tgid", text)
		}
	})
}

func FuzzStatField(f *testing.F) {
	f.Add([]byte("5 (a b) c) S 1 2 3 4 5 2097216 0\n"))
	f.Add([]byte("("))
	f.Fuzz(func(_ *testing.T, stat []byte) { _, _ = statField(stat, 9) })
}

func FuzzAttrs(f *testing.F) {
	f.Add("tasks 1000 1000 644\ncpu.shares 0 0 600")
	f.Add("x")
	f.Fuzz(func(t *testing.T, text string) {
		attrs, err := parseAttrs(text)
		if err != nil {
			return
		}
		again, err := parseAttrs(formatAttrs(attrs))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(attrs) {
			t.Fatalf("%v became %v, %v", attrs, again, err)
		}
	})
}
