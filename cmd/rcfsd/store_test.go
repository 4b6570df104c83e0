package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// manager is a service manager's descriptor store, sd_notify(3).
type manager struct {
	conn *net.UnixConn
	path string
	done chan struct{}

	mu    sync.Mutex
	files map[string]*os.File // guarded by mu
	ready int                 // guarded by mu; how often a service was
	pid   int                 // guarded by mu; what it said its main process is
}

func startManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{path: t.TempDir() + "/notify", done: make(chan struct{}), files: make(map[string]*os.File)}
	var err error
	m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	require.NoError(t, err)
	go m.listen()
	t.Cleanup(func() {
		m.conn.Close()
		<-m.done
		for _, f := range m.files {
			f.Close()
		}
	})
	return m
}

func (m *manager) listen() {
	defer close(m.done)
	body, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := m.conn.ReadMsgUnix(body, oob)
		if err != nil {
			return
		}
		fd := -1
		keepOne(oob[:oobn], &fd)
		said := make(map[string]string)
		for _, line := range strings.Split(string(body[:n]), "\n") {
			key, value, _ := strings.Cut(line, "=")
			said[key] = value
		}
		m.mu.Lock()
		name := said["FDNAME"]
		if old := m.files[name]; old != nil && (said["FDSTOREREMOVE"] == "1" || fd >= 0) {
			old.Close()
			delete(m.files, name)
		}
		if fd >= 0 && said["FDSTORE"] == "1" {
			m.files[name] = os.NewFile(uintptr(fd), name)
		}
		if said["READY"] == "1" {
			m.ready++
			m.pid, _ = strconv.Atoi(said["MAINPID"])
		}
		m.mu.Unlock()
	}
}

// start starts a service with what is stored, and returns when it is ready.
func (m *manager) start(t *testing.T, managed bool) *exec.Cmd {
	t.Helper()
	m.mu.Lock()
	before := m.ready
	cmd := exec.Command("sh", "-c", "LISTEN_PID=$$ exec rcfsd")
	var names []string
	for name, f := range m.files {
		names = append(names, name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	m.mu.Unlock()
	cmd.Env = append(os.Environ(), "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	if managed {
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+m.path)
	}
	require.NoError(t, cmd.Start())
	if managed {
		rig.Eventually(t, func() string {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.ready == before || m.pid != cmd.Process.Pid {
				return "the service is not ready"
			}
			return ""
		})
	}
	return cmd
}

func (m *manager) names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for name := range m.files {
		name, _, _ = strings.Cut(name, ".")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Under a service manager with a descriptor store a restart of the whole service is an upgrade: who works with a
// mount meanwhile waits, and sees no error.
func TestDescriptorStore(t *testing.T) {
	machine(t)
	m := startManager(t)
	dir := place(t)
	service := m.start(t, true)
	stop := func() {
		require.NoError(t, service.Process.Signal(unix.SIGTERM))
		require.NoError(t, service.Wait())
	}
	t.Cleanup(func() { // the last one ends as one does that nobody manages
		stop()
		service = m.start(t, false)
		rig.Eventually(t, func() string {
			if _, err := askStatus(); err != nil {
				return err.Error()
			}
			return ""
		})
		removeContainers(t, dir)
		unmountAll(t, dir)
		stop()
	})
	mountOn(t, dir, "pids,uts")
	assert.Equal(t, []string{"fuse", "ledger", "lock", "socket"}, m.names())
	require.NoError(t, os.Mkdir(dir+"/a", 0o755))
	v := victim.Start(t, "threads", "2")
	file, err := unix.Open(dir+"/a/pids.max", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(file)
	for i := range 3 {
		stop()
		moved := make(chan error, 1)
		go func() { moved <- writeOnce([]string{dir + "/a", dir}[i%2]+"/tasks", strconv.Itoa(v.Pid)) }()
		service = m.start(t, true)
		require.NoError(t, <-moved)
		_, err := unix.Pwrite(file, []byte(strconv.Itoa(100+i)), 0)
		require.NoError(t, err)
		got, err := readOnce(dir + "/a/pids.max")
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintln(100+i), got)
	}
	require.NoError(t, writeOnce(dir+"/tasks", strconv.Itoa(v.Pid)))
	assert.Empty(t, v.Stop())
	other := place(t)
	mountOn(t, other, "ipc")
	assert.Len(t, m.names(), 6)
	ok(t, "umount", other)
	rig.Eventually(t, func() string {
		if names := m.names(); len(names) != 4 {
			return fmt.Sprint("stored: ", names)
		}
		return ""
	})
}

// What a worker says to its keeper has one meaning, or none.
func FuzzStore(f *testing.F) {
	for _, seed := range []struct {
		message string
		fd      bool
	}{
		{"hfuse.41.18eccdb", true}, {"hlock", false}, {"dlock", false}, {"dlock", true}, {"r", false}, {"rx", false},
		{"", false}, {"h", true}, {"ha:b", true}, {"ha\nb", true}, {"x", true}, {"h" + strings.Repeat("a", maxName+1), true},
	} {
		f.Add([]byte(seed.message), seed.fd)
	}
	f.Fuzz(func(t *testing.T, message []byte, with bool) {
		fd := -1
		if with {
			fd = 3
		}
		op, name, ok := parseStore(message, fd)
		if !ok {
			return
		}
		require.Contains(t, []byte{storeHold, storeDrop, storeReady}, op)
		require.Equal(t, op == storeHold, with)
		require.Equal(t, op == storeReady, name == "")
		require.LessOrEqual(t, len(name), maxName)
		// It goes through the environment, and through the manager's messages, as it is.
		require.NotContains(t, name, ":")
		require.NotContains(t, name, "\n")
		require.Equal(t, append([]byte{op}, name...), message)
	})
}

// Nonsense from the manager or a former self is passed over, and closed.
func TestInheritedNonsense(t *testing.T) {
	machine(t)
	for _, env := range [][]string{
		{"RCFS_ADOPTED="}, {"RCFS_ADOPTED=a:b 900"}, {"RCFS_ADOPTED=a:b x:y"}, {"LISTEN_FDS=x"}, {"LISTEN_FDS=1", "LISTEN_FDNAMES=a b"},
		{"LISTEN_FDS=2", "LISTEN_FDNAMES=lock:ledger.5"},
	} {
		null, err := os.Open("/dev/null")
		require.NoError(t, err)
		cmd := exec.Command("sh", "-c", "LISTEN_PID=$$ exec rcfsd")
		cmd.Env = append(os.Environ(), env...)
		cmd.ExtraFiles = []*os.File{null, null}
		said, err := os.CreateTemp(t.TempDir(), "log")
		require.NoError(t, err)
		defer said.Close()
		cmd.Stderr = said
		require.NoError(t, cmd.Start())
		null.Close()
		rig.Eventually(t, func() string {
			if _, err := askStatus(); err != nil {
				text, _ := os.ReadFile(said.Name())
				return fmt.Sprintf("%v: %v: %s", env, err, text)
			}
			return ""
		})
		require.NoError(t, cmd.Process.Signal(unix.SIGTERM), "%v", env)
		require.NoError(t, cmd.Wait(), "%v", env)
	}
}
