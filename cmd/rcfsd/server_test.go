package main

import (
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/proxy"
	"rcfs/testdata/rig"
)

// fake is a backend that notes what is asked of it.
type fake struct {
	refuse error // what mount and serve say

	mu        sync.Mutex
	spec      proxy.Spec
	dir       string
	served    int
	device    uint64
	withdrawn int
	idleNow   bool
}

func (f *fake) mount(spec proxy.Spec, dir string) (offer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		return nil, f.refuse
	}
	f.spec, f.dir = spec, dir
	return f, nil
}

func (f *fake) remount(spec proxy.Spec, device uint64) (string, string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spec, f.device = spec, device
	return "work", "cpu,net,uts", f.refuse
}

func (f *fake) source() string { return "cpu,uts" }

func (f *fake) serve(fd int, device uint64) error {
	unix.Close(fd)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.served++
	f.device = device
	return nil
}

func (f *fake) withdraw() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.withdrawn++
}

func (f *fake) status() (*status, error) { return &status{PID: 42}, nil }

func (f *fake) restart()                  {}
func (f *fake) doctor() ([]string, error) { return []string{"one", "two"}, nil }

func (f *fake) idle() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.idleNow
}

func (f *fake) counts() (served, withdrawn int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.served, f.withdrawn
}

func serveFake(t *testing.T, f *fake) (*server, func() conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := listen(path)
	require.NoError(t, err)
	s := serve(l, f, make(chan struct{}, 1), slog.New(slog.DiscardHandler))
	t.Cleanup(s.close)
	return s, func() conn {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		return conn{c}
	}
}

var mountRequest = &request{Op: opMount, Spec: &proxy.Spec{Subsystems: []string{"cpu", "uts"}}, Dir: "/mnt"}

func openFuse(t *testing.T) int {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func TestServerStatus(t *testing.T) {
	_, dial := serveFake(t, &fake{})
	a, err := dial().call(&request{Op: opStatus}, -1)
	require.NoError(t, err)
	assert.Equal(t, 42, a.Status.PID)
}

func TestServerMount(t *testing.T) {
	f := &fake{}
	_, dial := serveFake(t, f)
	c := dial()
	a, err := c.call(mountRequest, -1)
	require.NoError(t, err)
	assert.Equal(t, "cpu,uts", a.Source)
	_, err = c.call(&request{Op: opServe, Device: 42}, openFuse(t))
	require.NoError(t, err)
	served, withdrawn := f.counts()
	assert.Equal(t, []int{1, 0}, []int{served, withdrawn})
	assert.Equal(t, *mountRequest.Spec, f.spec)
	assert.Equal(t, "/mnt", f.dir)
	assert.EqualValues(t, 42, f.device)
}

func TestServerRemount(t *testing.T) {
	f := &fake{}
	_, dial := serveFake(t, f)
	r := &request{Op: opRemount, Spec: &proxy.Spec{Subsystems: []string{"net"}}, Device: 43}
	a, err := dial().call(r, -1)
	require.NoError(t, err)
	assert.Equal(t, "work", a.Name)
	assert.Equal(t, "cpu,net,uts", a.Source)
	f.mu.Lock()
	defer f.mu.Unlock()
	assert.Equal(t, *r.Spec, f.spec)
	assert.EqualValues(t, 43, f.device)
}

func TestServerMountRefused(t *testing.T) {
	_, dial := serveFake(t, &fake{refuse: exit(exitMount, errors.New(`"cpu": in use`))})
	_, err := dial().call(mountRequest, -1)
	var e *exitError
	require.ErrorAs(t, err, &e)
	assert.Equal(t, exitMount, e.code)
	assert.EqualError(t, err, `"cpu": in use`)
}

func TestServerTakesOfferBack(t *testing.T) {
	for name, act := range map[string]func(c conn){
		"the helper dies": func(c conn) { c.Close() },
		"no descriptor":   func(c conn) { c.call(&request{Op: opServe, Device: 42}, -1) },
		"not /dev/fuse": func(c conn) {
			null, _ := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
			c.call(&request{Op: opServe, Device: 42}, null)
			unix.Close(null)
		},
		"another request": func(c conn) { c.call(&request{Op: opStatus}, -1) },
		"garbage":         func(c conn) { c.Write([]byte("\x00\x00\x00\x01x")); c.receive(maxReply, time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{}
			_, dial := serveFake(t, f)
			c := dial()
			_, err := c.call(mountRequest, -1)
			require.NoError(t, err)
			act(c)
			rig.Eventually(t, func() string {
				if served, withdrawn := f.counts(); served != 0 || withdrawn != 1 {
					return "the offer was not taken back"
				}
				return ""
			})
		})
	}
}

func TestServerOnlyOperationsFirst(t *testing.T) {
	_, dial := serveFake(t, &fake{})
	_, err := dial().call(&request{Op: opServe, Device: 42}, -1)
	assert.ErrorContains(t, err, "not how a conversation starts")
	c := dial()
	require.NoError(t, c.send("x", -1, time.Second))
	body, _, err := c.receive(maxReply, time.Second)
	require.NoError(t, err)
	assert.Contains(t, string(body), "message:")
}

// A client that says nothing holds nobody up, neither others nor the end.
func TestServerSilentClients(t *testing.T) {
	s, dial := serveFake(t, &fake{})
	for range 20 {
		dial()
	}
	_, err := dial().call(&request{Op: opStatus}, -1)
	require.NoError(t, err)
	start := time.Now()
	s.close()
	assert.Less(t, time.Since(start), requestPatience)
}

func TestServerClosesWhenIdle(t *testing.T) {
	f := &fake{}
	s, dial := serveFake(t, f)
	assert.False(t, s.closeIfIdle(), "there is a hierarchy")
	f.idleNow = true
	c := dial()
	_, err := c.call(mountRequest, -1)
	require.NoError(t, err)
	assert.False(t, s.closeIfIdle(), "a mount is being made")
	c.Close()
	rig.Eventually(t, func() string {
		if !s.closeIfIdle() {
			return "not closed"
		}
		return ""
	})
}
