// Package victim holds programs that check themselves while something is done
// to them from outside: moved, frozen, traced, killed.
//
// A victim is the test binary itself, started again with an environment
// variable set, so one static test binary is all a bare machine or a guest
// needs. A package that uses victims calls Main first in its TestMain:
//
//	func TestMain(m *testing.M) {
//		victim.Main() // does not return in a victim
//		os.Exit(m.Run())
//	}
//
// and starts them in its tests:
//
//	v := victim.Start(t, "threads", "8")
//	… move v.Pid …
//	require.Empty(t, v.Stop())
//
// A victim says "ready" when all of it is set up (Start waits for that), works
// until its standard input ends (Stop, or the death of the test), checks itself,
// prints one line per fault, and says "done".
//
// # Kinds
//
//	single            a truly single-threaded program without libc or Go runtime, in read(2)
//	idle              a Go program that does nothing
//	threads [N]       N locked threads that sleep, do I/O and count; every errno is a fault
//	churn [N]         N goroutines that make and end OS threads all the time
//	forker            forks as fast as it can; children exit at once
//	spawner           starts itself again (fork and exec) as fast as it can
//	server            a Go web server: prints its port, and answers each request with the path that was asked for
//	execer            replaces itself by execve from a second thread, again and again
//	signals           counts SIGUSR1 sent to itself, SIGCHLD and timer signals; a lost or doubled one is a fault
//	blocked [CALL…]   one thread per CALL (see the table in blocked.go) that stays in it; EINTR or an end before its time is a fault
//	vfork             one thread that waits in vfork(2) until a line comes or standard input ends
//	futex [N]         N threads that wait for and wake each other by futexes, as Rust's std does; a lost wake is a fault
//	goroutines [N]    a Go program: N goroutines on sockets of the runtime's poller, timers, garbage collection
//	tracing           traces a child, whose number it says after ready; a stop that is lost or added is a fault
//	mover FILE        two threads, one of which writes each line of input to FILE, or one beside it, and prints the result
//	eater             takes as much memory as each line of input says
//	caller            makes the endless CALL that each line of input names, in one thread, and prints what it has answered
//	sleeper CALL…     one thread that makes each CALL in turn, one with a timeout, and prints its name
//	writer FILE N     one thread that writes N bytes to FILE for every line of input and prints the result
//
// # Words
//
// Arguments that begin with + change the victim before its kind begins:
//
//	+seccomp   a filter that kills the process on setns(2)
//	+strict    (single) a filter that kills the process on every call but the few that it makes
//	+fullfds   the descriptor table is full, soft limit and hard limit alike
//	+softfds   the descriptor table is full up to the soft limit
//	+all       threads that block signals block all of them
//	+chroot    the root directory is an empty one
//	+in=DIR    the working directory is DIR
//	+uid=N     user and group are N, without capabilities
//	+newns     a new pid namespace and a new mount namespace
//	+nocap     no capabilities in the whole process
//	+onenocap  (threads) the last thread alone drops its capabilities
//	+report    (blocked) print at the end which call has answered what and after how long
//	+ownfiles  (threads) the last thread has a descriptor table of its own
//	+onefull   (threads) and that one is full, soft limit and hard limit alike
//	+vfork     (blocked, mover) one more thread waits in vfork(2) until the end
//	+second    (mover) the thread that writes is not the process's first
package victim

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// environment is the variable that makes a test binary a victim.
const environment = "RCFS_TEST_VICTIM"

// Victim is a running victim.
type Victim struct {
	Pid int

	cmd    *exec.Cmd
	stdin  io.WriteCloser
	lines  chan string
	once   sync.Once
	faults []string
}

// Start starts a victim of a kind and waits until it is ready. The test's
// cleanup kills and reaps it.
func Start(t testing.TB, kind string, args ...string) *Victim {
	t.Helper()
	v := &Victim{lines: make(chan string, 1000)}
	self, err := os.Executable()
	if err != nil {
		t.Fatalf("victim: %v", err)
	}
	v.cmd = exec.Command(self)
	// Strings of arguments must not look like flags of the test binary.
	v.cmd.Env = append(os.Environ(), environment+"="+strings.Join(append([]string{kind}, args...), " "),
		"GORACE=atexit_sleep_ms=0") // the race detector otherwise waits for a second at the end
	if slices.Contains(args, "+strict") {
		// A signal of the runtime's between the filter and the new program would lead to calls that kill.
		v.cmd.Env = append(v.cmd.Env, "GODEBUG=asyncpreemptoff=1")
	}
	v.cmd.Stderr = os.Stderr
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if slices.Contains(args, "+newns") {
		v.cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS
	}
	if v.stdin, err = v.cmd.StdinPipe(); err != nil {
		t.Fatalf("victim %s: %v", kind, err)
	}
	stdout, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("victim %s: %v", kind, err)
	}
	if err := v.cmd.Start(); err != nil {
		t.Fatalf("victim %s: %v", kind, err)
	}
	v.Pid = v.cmd.Process.Pid
	go func() {
		defer close(v.lines)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			v.lines <- lines.Text()
		}
	}()
	t.Cleanup(v.Kill)
	if line := <-v.lines; line != "ready" {
		t.Fatalf("victim %s: not ready, says %q", kind, line)
	}
	return v
}

// Stop makes the victim check itself and end, and returns its faults.
func (v *Victim) Stop() []string {
	v.once.Do(func() {
		v.stdin.Close()
		v.collect()
	})
	return v.faults
}

// Faults returns what Stop returned; none before.
func (v *Victim) Faults() []string { return v.faults }

// Say sends a line to the victim's standard input.
func (v *Victim) Say(line string) {
	_, _ = io.WriteString(v.stdin, line+"\n") // a dead one shows in Stop
}

// Hear returns the next line that the victim printed, "" when there is none
// any more.
func (v *Victim) Hear() string { return <-v.lines }

// Heard is Hear that does not wait: "" too when there is no line yet.
func (v *Victim) Heard() string {
	select {
	case line := <-v.lines:
		return line
	default:
		return ""
	}
}

// Kill kills the victim with SIGKILL and reaps it.
func (v *Victim) Kill() {
	v.once.Do(func() {
		_ = v.cmd.Process.Kill()
		v.stdin.Close()
		v.collect()
	})
}

// collect reads the faults and reaps.
func (v *Victim) collect() {
	done := false
	for line := range v.lines {
		if line == "done" {
			done = true
			continue
		}
		v.faults = append(v.faults, line)
	}
	err := v.cmd.Wait()
	if !done || err != nil {
		v.faults = append(v.faults, fmt.Sprintf("ended with %v, done: %v", err, done))
	}
}

// kinds are the victim programs. Each sets itself up, calls ready, works until
// the channel closes, and returns.
var kinds = map[string]func(p *program){
	"single":  single,
	"idle":    idle,
	"threads": threads,
	"churn":   churn,
	"forker":  forker,
	"spawner": spawner,
	"execer":  execer,
	"server":  server,
	"signals": signals,
	"blocked": blocked,
	"vfork":   vfork,
	"eater":   eater,
	"writer":  writer,
	"exit":    func(*program) { os.Exit(0) },
}

// Main runs the victim that the environment asks for and exits; it returns at
// once when none is asked for. Call it first in TestMain.
func Main() {
	words := strings.Fields(os.Getenv(environment))
	if len(words) == 0 {
		return
	}
	run := kinds[words[0]]
	if run == nil {
		fmt.Printf("no such victim: %q\n", words)
		os.Exit(2)
	}
	p := &program{stop: make(chan struct{})}
	for _, word := range words[1:] {
		if strings.HasPrefix(word, "+") {
			p.words = append(p.words, word)
		} else {
			p.args = append(p.args, word)
		}
	}
	time.Sleep(time.Nanosecond) // the Go runtime opens its poller's descriptors with the first timer
	p.prepare()
	run(p)
	fmt.Println("done")
	os.Exit(0)
}

// program is a victim from inside.
type program struct {
	args, words []string
	stop        chan struct{} // closed when the victim shall end
	mu          sync.Mutex
	remove      []func() // at the end
	noted       map[noted]span
}

// ready says so, and watches standard input for the end from now on.
func (p *program) ready() {
	fmt.Println("ready")
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(p.stop)
	}()
}

// stopped says whether the victim shall end.
func (p *program) stopped() bool {
	select {
	case <-p.stop:
		return true
	default:
		return false
	}
}

// fault prints a fault.
func (p *program) fault(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Printf(format+"\n", args...)
}

// must ends the victim when it cannot be set up.
func (p *program) must(what string, err error) {
	if err != nil {
		fmt.Printf("victim: %s: %v\n", what, err)
		os.Exit(2)
	}
}

// number returns the first argument as a number.
func (p *program) number(otherwise int) int {
	if len(p.args) == 0 {
		return otherwise
	}
	n, err := strconv.Atoi(p.args[0])
	p.must("argument", err)
	return n
}
