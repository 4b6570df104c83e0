package main

import (
	"encoding/json"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestDecodeRequest(t *testing.T) {
	for text, ok := range map[string]bool{
		`{"op":"status"}`:            true,
		`{"op":"doctor"}`:            true,
		`{"op":"serve","device":42}`: true,
		`{"op":"remount","spec":{"Subsystems":["net"]},"device":42}`:             true,
		`{"op":"mount","spec":{"Subsystems":["cpu"],"Base":"a/b"},"dir":"/mnt"}`: true,
		``:                               false,
		`null`:                           false,
		`[]`:                             false,
		`{}`:                             false,
		`{"op":"format"}`:                false,
		`{"op":"status"} {}`:             false,
		`{"op":"status","spec":{}}`:      false,
		`{"op":"status","dir":"/"}`:      false,
		`{"op":"status","colour":"red"}`: false,
		`{"op":"mount"}`:                 false,
		`{"op":"serve"}`:                 false,
		`{"op":"remount","device":42}`:   false,
		`{"op":"remount","spec":{}}`:     false,
		`{"op":"remount","spec":{"Name":"a/b"},"device":42}`:    false,
		`{"op":"mount","spec":{}}`:                              false,
		`{"op":"mount","spec":{"Name":"a/b"},"dir":"/mnt"}`:     false,
		`{"op":"mount","spec":{"Base":"../../x"},"dir":"/mnt"}`: false,
		`{"op":"mount","spec":{"Base":"/x"},"dir":"/mnt"}`:      false,
	} {
		r, err := decodeRequest([]byte(text))
		assert.Equal(t, ok, err == nil, "%s: %v", text, err)
		assert.Equal(t, ok, r != nil, text)
	}
}

func FuzzDecode(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRequest(data)
		if err != nil {
			return
		}
		again, err := json.Marshal(r)
		require.NoError(t, err)
		same, err := decodeRequest(again)
		require.NoError(t, err)
		assert.Equal(t, r, same)
		if r.Spec != nil {
			for _, path := range []string{r.Spec.Name, r.Spec.Base} {
				assert.False(t, strings.HasPrefix(path, "/") || path == ".." || strings.Contains(path, "../"), path)
			}
		}
	})
}

// pair returns the two ends of a connection.
func pair(t *testing.T) (conn, conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	var ends [2]conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		f.Close()
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		ends[i] = conn{c.(*net.UnixConn)}
	}
	return ends[0], ends[1]
}

func TestSendDescriptor(t *testing.T) {
	a, b := pair(t)
	f, err := os.Open("/dev/null")
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, a.send(&request{Op: opServe, Device: 42}, int(f.Fd()), time.Second))
	require.NoError(t, a.send(&request{Op: opStatus}, -1, time.Second))
	body, fd, err := b.receive(maxRequest, time.Second)
	require.NoError(t, err)
	assert.JSONEq(t, `{"op":"serve","device":42}`, string(body))
	var st, want unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &st))
	require.NoError(t, unix.Fstat(int(f.Fd()), &want))
	assert.Equal(t, want.Rdev, st.Rdev)
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	require.NoError(t, err)
	assert.Equal(t, unix.FD_CLOEXEC, flags)
	unix.Close(fd)
	body, fd, err = b.receive(maxRequest, time.Second)
	require.NoError(t, err)
	assert.Equal(t, -1, fd)
	assert.JSONEq(t, `{"op":"status"}`, string(body))
}

func TestReceiveLong(t *testing.T) {
	a, b := pair(t)
	sent := reply{Error: strings.Repeat("x", 5<<20)}
	go a.send(&sent, -1, 10*time.Second)
	body, _, err := b.receive(maxReply, 10*time.Second)
	require.NoError(t, err)
	var got reply
	require.NoError(t, decode(body, &got))
	assert.Equal(t, sent, got)
}

func TestReceiveRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		bytes string
		want  string
	}{
		"nothing":       {"", "EOF"},
		"half a length": {"\x00\x00", "unexpected EOF"},
		"half a body":   {"\x00\x00\x00\x09abc", "unexpected EOF"},
		"too long":      {"\xff\xff\xff\xff", "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			_, err := a.Write([]byte(c.bytes))
			require.NoError(t, err)
			a.Close()
			_, _, err = b.receive(maxRequest, time.Second)
			assert.ErrorContains(t, err, c.want)
		})
	}
	t.Run("silence", func(t *testing.T) {
		_, b := pair(t)
		_, _, err := b.receive(maxRequest, 20*time.Millisecond)
		assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
	})
}

func TestReceiveSurplusDescriptors(t *testing.T) {
	a, b := pair(t)
	f, err := os.Open("/dev/null")
	require.NoError(t, err)
	defer f.Close()
	fd := int(f.Fd())
	frame := append([]byte{0, 0, 0, 2}, "{}"...)
	for _, chunk := range [][]byte{frame[:1], frame[1:]} { // rights twice, in one message
		_, _, err = a.WriteMsgUnix(chunk, unix.UnixRights(fd), nil)
		require.NoError(t, err)
	}
	before := openDescriptors(t)
	_, got, err := b.receive(maxRequest, time.Second)
	require.NoError(t, err)
	require.GreaterOrEqual(t, got, 0)
	assert.Equal(t, before+1, openDescriptors(t), "the second one is closed")
	unix.Close(got)
}

func openDescriptors(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(entries)
}
