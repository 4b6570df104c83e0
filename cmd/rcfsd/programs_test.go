package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// moves is how often each program is moved.
func moves() int {
	if n, err := strconv.Atoi(os.Getenv("RCFS_STORM_MOVES")); err == nil {
		return n
	}
	return 60
}

// service is a program that is used while it is moved.
type service struct {
	pid   int // its first process
	loads []load
	stop  func() // ends it, and checks what it says of itself
}

// services are the programs that get moved. What they share: the tests run them as root, or with
// CAP_SYS_ADMIN, without which no task can enter a namespace.
var services = map[string]func(t *testing.T) *service{
	"redis":    redis,
	"nginx":    nginx,
	"postgres": postgres,
	"java":     java,
	"go":       goServer,
	"node":     node,
	"python":   python,
}

// Programs are moved between two containers all the time, process by process: no client of theirs
// sees an error, and no thread is left behind in any move.
func TestProgramsUnderLoad(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "cpu,pids,uts,ipc,net")
	for name, start := range services {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.NoError(t, os.MkdirAll(dir+"/"+name+"/a", 0o755))
			require.NoError(t, os.MkdirAll(dir+"/"+name+"/b", 0o755))
			s := start(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var answers []*atomic.Int64
			var loads sync.WaitGroup
			for i, load := range s.loads {
				n := new(atomic.Int64)
				answers = append(answers, n)
				loads.Go(func() {
					if err := load(ctx, n); err != nil {
						t.Errorf("load %d, after %d answers: %v", i, n.Load(), err)
						cancel()
					}
				})
			}
			moveService(ctx, t, dir, name, s.pid, answers)
			cancel()
			loads.Wait()
			for i, n := range answers {
				t.Logf("load %d: %d answers", i, n.Load())
			}
			// What it made in the ipc namespace that it started in can be removed there only.
			for _, pid := range family(s.pid) {
				moveTo(t, dir, "", pid)
			}
			s.stop()
		})
	}
}

// moveService moves the processes of a program in turn, each from one container to the other, until
// there were enough moves and answers of every load.
func moveService(ctx context.Context, t *testing.T, dir, name string, first int, answers []*atomic.Int64) {
	silent := func(n *atomic.Int64) bool { return n.Load() == 0 }
	at := make(map[int]int) // the container that a process goes to next
	n, again, ended := 0, 0, 0
	for ctx.Err() == nil && (n < moves() || slices.ContainsFunc(answers, silent)) {
		for _, pid := range family(first) {
			to := "/" + name + []string{"/a", "/b"}[at[pid]]
			switch err := moveTo(t, dir, to, pid); err {
			case nil:
				n++
				at[pid] = 1 - at[pid]
			case unix.EAGAIN: // it did not stop in time
				again++
			case unix.ESRCH: // it has ended
				require.NotEqual(t, first, pid, "the program has ended")
				ended++
			default:
				require.NoError(t, err, "move %d", n)
			}
		}
	}
	t.Logf("%d moves of %d processes, %d to be made again, %d processes ended before", n, len(at), again, ended)
}

// moveTo moves a process and looks where all of its threads are then.
func moveTo(t *testing.T, dir, to string, pid int) error {
	fd, err := unix.Open(dir+to+"/cgroup.procs", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	_, err = unix.Write(fd, []byte(strconv.Itoa(pid)))
	unix.Close(fd)
	if err != nil {
		return err
	}
	at, err := whole(dir, pid)
	if errors.Is(err, unix.ESRCH) {
		return unix.ESRCH
	}
	require.NoError(t, err)
	require.Equal(t, strings.TrimPrefix(to, "/"), strings.TrimPrefix(at, "/"))
	return nil
}

// family lists a process and what descends from it.
func family(pid int) []int {
	pids := []int{pid}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range files {
		text, _ := os.ReadFile(file)
		for _, word := range strings.Fields(string(text)) {
			child, _ := strconv.Atoi(word)
			pids = append(pids, family(child)...)
		}
	}
	return pids
}

// startService starts a program. It ends at a signal in the way that ends says, and complains of nothing.
func startService(t *testing.T, cmd *exec.Cmd, signal os.Signal, ends string) *service {
	t.Helper()
	var says bytes.Buffer
	cmd.Stderr = &says
	require.NoError(t, cmd.Start())
	wait := sync.OnceValue(cmd.Wait)
	t.Cleanup(func() {
		cmd.Process.Kill()
		wait()
		if t.Failed() {
			t.Logf("%s says:\n%s", cmd.Path, &says)
		}
	})
	return &service{pid: cmd.Process.Pid, stop: func() {
		require.NoError(t, cmd.Process.Signal(signal))
		end := ""
		if err := wait(); err != nil {
			end = err.Error()
		}
		assert.Equal(t, ends, end)
		assert.Empty(t, complaint.FindAllString(says.String(), -1))
	}}
}

// startWeb starts a web server that prints its port.
func startWeb(t *testing.T, cmd *exec.Cmd, ends string) *service {
	t.Helper()
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	s := startService(t, cmd, unix.SIGTERM, ends)
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err, "its port")
	s.loads = webLoads(t, line)
	return s
}

func webLoads(t *testing.T, line string) []load {
	port, err := strconv.Atoi(strings.TrimSpace(line))
	require.NoError(t, err)
	return []load{web(port, echo), web(port, echo), web(port, echo), newcomers(port, echo)}
}

const sources = "../../testdata/programs/"

func java(t *testing.T) *service {
	return startWeb(t, exec.Command("java", "-Dsun.net.httpserver.nodelay=true", sources+"Server.java"), "exit status 143")
}

func node(t *testing.T) *service {
	return startWeb(t, exec.Command("node", sources+"server.js"), "signal: terminated")
}

func python(t *testing.T) *service {
	return startWeb(t, exec.Command("python3", sources+"server.py"), "signal: terminated")
}

func goServer(t *testing.T) *service {
	v := victim.Start(t, "server")
	return &service{pid: v.Pid, loads: webLoads(t, v.Hear()), stop: func() { assert.Empty(t, v.Stop()) }}
}

// freePort returns a port that nobody listens on.
func freePort(t *testing.T) int {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// listens waits until somebody listens on a port.
func listens(t *testing.T, port int) {
	rig.Eventually(t, func() string {
		c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return err.Error()
		}
		c.Close()
		return ""
	})
}

func redis(t *testing.T) *service {
	port := freePort(t)
	text := strconv.Itoa(port)
	s := startService(t, exec.Command("redis-server", "--port", text, "--bind", "127.0.0.1", "--dir", t.TempDir(),
		"--save", "", "--appendonly", "yes", "--loglevel", "warning"), unix.SIGTERM, "")
	listens(t, port)
	const requests = 2000
	benchmark := []string{"-p", text, "-q", "-c", "10", "-n", strconv.Itoa(requests), "-r", "1000"}
	s.loads = []load{
		generator(4*requests, "redis-benchmark", append(benchmark, "-t", "set,get,incr,lpush")...),
		generator(requests, "redis-benchmark", append(benchmark, "-k", "0", "-t", "get")...), // a connection for each
	}
	return s
}

// nginx has a master and two workers, and a file that is too large for one write.
func nginx(t *testing.T) *service {
	port, dir := freePort(t), t.TempDir()
	content := make([]byte, 4<<20)
	for i := range content {
		content[i] = byte(rand.Int())
	}
	require.NoError(t, os.WriteFile(dir+"/file", content, 0o644))
	conf := fmt.Sprintf(`
daemon off;
user root;
worker_processes 2;
pid %[1]s/pid;
error_log stderr;
events {}
http {
	access_log off;
	sendfile on;
	keepalive_requests 1000000000;
	server {
		listen 127.0.0.1:%[2]d;
		location / { return 200 $request_uri; }
		location = /file { root %[1]s; }
	}
}
`, dir, port)
	require.NoError(t, os.WriteFile(dir+"/nginx.conf", []byte(conf), 0o644))
	s := startService(t, exec.Command("nginx", "-e", "stderr", "-c", dir+"/nginx.conf"), unix.SIGTERM, "")
	listens(t, port)
	s.loads = []load{
		web(port, echo), web(port, echo), newcomers(port, echo),
		web(port, func(int) (path, body string) { return "/file", string(content) }),
	}
	return s
}

// postgres has a process for each connection.
func postgres(t *testing.T) *service {
	dirs, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	require.NoError(t, err)
	require.NotEmpty(t, dirs, "postgresql is not installed")
	tool := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(dirs[len(dirs)-1], name), args...)
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		return cmd
	}
	owner, err := user.Lookup("postgres")
	require.NoError(t, err)
	uid, err := strconv.Atoi(owner.Uid)
	require.NoError(t, err)
	gid, err := strconv.Atoi(owner.Gid)
	require.NoError(t, err)
	dir, err := os.MkdirTemp("/run", "postgres")
	require.NoError(t, err)
	require.NoError(t, os.Chown(dir, uid, gid))
	as := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}

	initdb := tool("initdb", "--auth=trust", "--no-sync", "--username=root", "--encoding=UTF8", "--pgdata="+dir+"/data")
	initdb.Dir = dir
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	out, err := initdb.CombinedOutput()
	require.NoError(t, err, "%s", out)

	cmd := tool("postgres", "-D", dir+"/data", "-k", dir, "-c", "listen_addresses=", "-c", "max_wal_size=64MB")
	cmd.Dir = dir
	// It refuses to be root.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as, AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN}}
	s := startService(t, cmd, unix.SIGINT, "")
	rig.Eventually(t, func() string {
		if state, err := os.ReadFile(dir + "/data/postmaster.pid"); !strings.Contains(string(state), "ready") {
			return fmt.Sprintf("postgres is not ready: %s, %v", state, err)
		}
		return ""
	})
	bench := func(requests int, args ...string) load {
		cmd := tool("pgbench", args...)
		return generator(requests, cmd.Path, append(cmd.Args[1:], "-h", dir, "-n", "postgres")...)
	}
	out, err = tool("pgbench", "-i", "-q", "-h", dir, "postgres").CombinedOutput()
	require.NoError(t, err, "%s", out)
	s.loads = []load{
		bench(4*200, "-c", "4", "-j", "2", "-t", "200"),
		bench(20, "-C", "-t", "20"), // a connection for each
		bench(2*200, "-S", "-M", "prepared", "-c", "2", "-t", "200"),
	}
	return s
}
