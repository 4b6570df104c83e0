package main

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"rcfs/testdata/rig"
	"rcfs/testdata/victim"
)

// mixOptions are of the mount: what containerOf looks at.
const mixOptions = "cpu,pids,uts,ipc,net"

// mixSize is how much a random mix is.
type mixSize struct {
	lasts                     time.Duration
	owners, containers, tasks int           // containers and tasks are of all owners together
	patience                  time.Duration // for the clients to make progress
}

func sizeOfMix(t *testing.T) mixSize {
	if text := os.Getenv("RCFS_STORM_MIX"); text != "" {
		lasts, err := time.ParseDuration(text)
		require.NoError(t, err)
		return mixSize{lasts, 10, 1000, 5000, 2 * time.Minute}
	}
	patience := time.Duration(victim.Slow()) * 20 * time.Second
	if rig.Guest() || victim.Slow() > 1 {
		return mixSize{10 * time.Second, 2, 12, 16, patience}
	}
	return mixSize{20 * time.Second, 6, 60, 100, patience}
}

// box is a container as its owner knows it.
type box struct {
	path   string // from the mount's directory
	parent *box
	below  map[string]*box
	uid    int
	mode   uint32
	values map[string]string // that have been written
	tasks  map[int]*mixTask
}

// mixTask is a process that is moved.
type mixTask struct {
	pid     int
	at      *box
	threads bool // it may have more than one
	end     func() error
}

// owner does random steps in a tree that nobody else changes, so that it knows all of it.
type owner struct {
	dir         string
	top         *box
	boxes       []*box // the first is top
	tasks       []*mixTask
	boxMax      int
	taskMax     int
	canRename   bool
	next        int // the number in the next name
	steps, asks map[string]int
}

func newOwner(dir, name string, size mixSize, canRename bool) (*owner, error) {
	o := &owner{
		dir: dir, boxMax: size.containers / size.owners, taskMax: size.tasks / size.owners, canRename: canRename,
		steps: make(map[string]int), asks: make(map[string]int),
	}
	err := os.Mkdir(dir+"/"+name, 0o755)
	o.top = o.add(nil, "/"+name)
	return o, err
}

func (o *owner) add(parent *box, path string) *box {
	b := &box{path: path, parent: parent, below: make(map[string]*box), mode: 0o755, values: make(map[string]string), tasks: make(map[int]*mixTask)}
	if parent != nil {
		parent.below[filepath.Base(path)] = b
	}
	o.boxes = append(o.boxes, b)
	return b
}

func (o *owner) name() string {
	o.next++
	return []string{"b", "with space ", "ümlaut", "\xff"}[o.next%4*rand.IntN(2)] + strconv.Itoa(o.next)
}

func (o *owner) anyBox() *box      { return o.boxes[rand.IntN(len(o.boxes))] }
func (o *owner) anyTask() *mixTask { return o.tasks[rand.IntN(len(o.tasks))] }

// step does something, and checks that it has happened.
func (o *owner) step() error {
	mkdirs, starts := 4, 4
	if len(o.boxes) < o.boxMax/2 { // for a beginning
		mkdirs *= 5
	}
	if len(o.tasks) < o.taskMax/2 {
		starts *= 10
	}
	kinds := []struct {
		name  string
		often int
		do    func() error
	}{
		{"mkdir", mkdirs, o.mkdir},
		{"rmdir", 2, o.rmdir},
		{"rename", 2, o.rename},
		{"chown", 1, o.chown},
		{"chmod", 1, o.chmod},
		{"write", 4, o.write},
		{"move", 10, func() error { return o.move(1) }},
		{"move several", 3, func() error { return o.move(2 + rand.IntN(4)) }},
		{"refused", 2, o.refused},
		{"look", 4, func() error { return o.look(o.anyBox()) }},
		{"start", starts, o.start},
		{"kill", 1, o.kill},
		{"kill all", 1, o.killAll},
	}
	all := 0
	for _, k := range kinds {
		all += k.often
	}
	n := rand.IntN(all)
	for _, k := range kinds {
		if n -= k.often; n < 0 {
			o.steps[k.name]++
			if err := k.do(); err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
			return nil
		}
	}
	return nil
}

func (o *owner) mkdir() error {
	if len(o.boxes) >= o.boxMax {
		return nil
	}
	in := o.anyBox()
	for in.depth() > 6 {
		in = in.parent
	}
	path := in.path + "/" + o.name()
	if err := os.Mkdir(o.dir+path, 0o755); err != nil {
		return err
	}
	b := o.add(in, path)
	if err := os.Mkdir(o.dir+path, 0o755); !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%q a second time: %v", path, err)
	}
	return o.look(b)
}

func (b *box) depth() (n int) {
	for ; b.parent != nil; b = b.parent {
		n++
	}
	return n
}

func (o *owner) rmdir() error {
	if len(o.boxes) < 2 {
		return nil
	}
	b := o.boxes[1+rand.IntN(len(o.boxes)-1)]
	err := unix.Rmdir(o.dir + b.path)
	if len(b.below) > 0 || len(b.tasks) > 0 {
		if err != unix.EBUSY {
			return fmt.Errorf("%q, in use: %v", b.path, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("%q: %w", b.path, err)
	}
	delete(b.parent.below, filepath.Base(b.path))
	o.boxes = slices.DeleteFunc(o.boxes, func(other *box) bool { return other == b })
	if err := unix.Rmdir(o.dir + b.path); err != unix.ENOENT {
		return fmt.Errorf("%q a second time: %v", b.path, err)
	}
	return o.look(b.parent)
}

func (o *owner) rename() error {
	if !o.canRename || len(o.boxes) < 2 {
		return nil
	}
	b := o.boxes[1+rand.IntN(len(o.boxes)-1)]
	to := b.parent.path + "/" + o.name()
	if err := os.Rename(o.dir+b.path, o.dir+to); err != nil {
		return err
	}
	delete(b.parent.below, filepath.Base(b.path))
	b.parent.below[filepath.Base(to)] = b
	b.setPath(to)
	return o.look(b.parent)
}

func (b *box) setPath(path string) {
	b.path = path
	for name, c := range b.below {
		c.setPath(path + "/" + name)
	}
}

func (o *owner) chown() error {
	b := o.anyBox()
	uid := rand.IntN(3) * 1000
	if err := os.Chown(o.dir+b.path, uid, uid); err != nil {
		return err
	}
	b.uid = uid
	return o.look(b)
}

func (o *owner) chmod() error {
	b := o.anyBox()
	mode := []uint32{0o755, 0o700, 0o750, 0o777}[rand.IntN(4)]
	if err := unix.Chmod(o.dir+b.path, mode); err != nil {
		return fmt.Errorf("%q: %w", b.path, err)
	}
	b.mode = mode
	return o.look(b)
}

func (o *owner) write() error {
	b := o.anyBox()
	file, value := "pids.max", strconv.Itoa(10000+rand.IntN(10000))
	if rand.IntN(2) == 0 {
		file, value = "uts.hostname", "host-"+value
	}
	if err := writeOnce(o.dir+b.path+"/"+file, value); err != nil {
		return err
	}
	b.values[file] = value
	return o.lookValues(b)
}

// start starts a process, in a container.
func (o *owner) start() error {
	if len(o.tasks) >= o.taskMax {
		return nil
	}
	cmd := exec.Command("sleep", "10000")
	if err := cmd.Start(); err != nil {
		return err
	}
	task := &mixTask{pid: cmd.Process.Pid, end: func() error {
		cmd.Process.Kill()
		cmd.Wait()
		return nil
	}}
	o.tasks = append(o.tasks, task)
	return o.moveTo(o.anyBox(), task)
}

func (o *owner) kill() error {
	if len(o.tasks) == 0 {
		return nil
	}
	task := o.anyTask()
	if task.threads {
		return nil // a victim stays
	}
	at := task.at
	task.end()
	o.forget(task)
	if at == nil {
		return nil
	}
	return o.look(at)
}

func (o *owner) forget(task *mixTask) {
	if task.at != nil {
		delete(task.at.tasks, task.pid)
	}
	o.tasks = slices.DeleteFunc(o.tasks, func(other *mixTask) bool { return other == task })
}

// killAll kills all tasks of a container, by its file.
func (o *owner) killAll() error {
	b := o.anyBox()
	if len(b.below) > 0 {
		return nil
	}
	for _, task := range b.tasks {
		if task.threads {
			return nil
		}
	}
	if err := writeOnce(o.dir+b.path+"/rcfs.kill", "1"); err != nil {
		return err
	}
	for _, task := range b.tasks {
		var info unix.Siginfo
		deadline := time.Now().Add(20 * time.Second)
		for unix.Waitid(unix.P_PID, task.pid, &info, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil) == nil && info.Signo == 0 {
			if time.Now().After(deadline) {
				return fmt.Errorf("%q: process %d is still there", b.path, task.pid)
			}
			time.Sleep(time.Millisecond)
		}
		task.end()
		o.forget(task)
	}
	return o.look(b)
}

func (o *owner) move(n int) error {
	var tasks []*mixTask
	for range min(n, len(o.tasks)) {
		if task := o.anyTask(); !slices.Contains(tasks, task) {
			tasks = append(tasks, task)
		}
	}
	if len(tasks) == 0 {
		return nil
	}
	return o.moveTo(o.anyBox(), tasks...)
}

// moveTo moves tasks in one write, or as many as it takes when one cannot be stopped in time.
func (o *owner) moveTo(b *box, tasks ...*mixTask) error {
	from := make(map[*box]bool)
	var wrote []string
	deadline := time.Now().Add(time.Duration(victim.Slow()) * 20 * time.Second)
	for len(tasks) > 0 {
		var text strings.Builder
		for _, task := range tasks {
			fmt.Fprintln(&text, task.pid)
		}
		n, err := writeSome(o.dir+b.path+"/cgroup.procs", text.String())
		if errors.Is(err, unix.EAGAIN) && time.Now().Before(deadline) {
			o.asks["again"]++
			continue
		}
		if err != nil {
			return err
		}
		wrote = append(wrote, fmt.Sprintf("%d of %q", n, text.String()))
		for _, task := range tasks[:strings.Count(text.String()[:n], "\n")] {
			if task.at != nil {
				delete(task.at.tasks, task.pid)
				from[task.at] = true
			}
			task.at = b
			b.tasks[task.pid] = task
			tasks = tasks[1:]
		}
	}
	for other := range from {
		if err := o.lookTasks(other); err != nil {
			return fmt.Errorf("%w, after a move to %q, %s", err, b.path, wrote)
		}
	}
	if err := o.lookTasks(b); err != nil {
		return fmt.Errorf("%w, after a move, %s", err, wrote)
	}
	return nil
}

// writeSome writes as much as is taken.
func writeSome(file, data string) (int, error) {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: file, Err: err}
	}
	defer unix.Close(fd)
	n, err := unix.Write(fd, []byte(data))
	if err != nil {
		return 0, &os.PathError{Op: "write", Path: file, Err: err}
	}
	return n, nil
}

// refused asks for what cannot be. Its words are lost with a worker.
func (o *owner) refused() error {
	b := o.anyBox()
	if err := writeOnce(o.dir+b.path+"/tasks", "nonsense"); !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%q takes nonsense: %v", b.path, err)
	}
	switch text, err := readOnce(o.dir + b.path + "/rcfs.error"); {
	case err != nil:
		return err
	case text == "":
		o.asks["words lost"]++
	case !strings.Contains(text, "nonsense") || !strings.Contains(text, "EINVAL"):
		return fmt.Errorf("%q: rcfs.error says %q", b.path, text)
	}
	return nil
}

// look checks that a container is what it has to be.
func (o *owner) look(b *box) error {
	at := o.dir + b.path
	var st unix.Stat_t
	if err := unix.Stat(at, &st); err != nil {
		return fmt.Errorf("stat %q: %w", b.path, err)
	}
	if int(st.Uid) != b.uid || int(st.Gid) != b.uid || st.Mode != unix.S_IFDIR|b.mode {
		return fmt.Errorf("%q is of %d, %d, %o, not of %d, %o", b.path, st.Uid, st.Gid, st.Mode, b.uid, b.mode)
	}
	entries, err := os.ReadDir(at)
	if err != nil {
		return err
	}
	var have []string
	for _, e := range entries {
		if e.IsDir() {
			have = append(have, e.Name())
		}
	}
	if want := slices.Sorted(maps.Keys(b.below)); !slices.Equal(have, want) {
		return fmt.Errorf("in %q are %q, not %q", b.path, have, want)
	}
	if err := o.lookValues(b); err != nil {
		return err
	}
	return o.lookTasks(b)
}

func (o *owner) lookValues(b *box) error {
	for file, value := range b.values {
		if text, err := readOnce(o.dir + b.path + "/" + file); err != nil || text != value+"\n" {
			return fmt.Errorf("%q: %s is %q, not %q: %v", b.path, file, text, value, err)
		}
	}
	return nil
}

func (o *owner) lookTasks(b *box) error {
	read := func(file string) ([]string, error) {
		text, err := readOnce(o.dir + b.path + "/" + file)
		return slices.Collect(strings.Lines(text)), err
	}
	procs, err := read("cgroup.procs")
	if err != nil {
		return err
	}
	var want []string
	threads := false
	for _, pid := range slices.Sorted(maps.Keys(b.tasks)) {
		want = append(want, fmt.Sprintln(pid))
		threads = threads || b.tasks[pid].threads
	}
	if !slices.Equal(procs, want) {
		return fmt.Errorf("in %q are processes %q, not %q", b.path, procs, want)
	}
	events, err := read("rcfs.events")
	if err != nil {
		return err
	}
	populated := "populated 0\n"
	if b.populated() {
		populated = "populated 1\n"
	}
	if len(events) != 1 || events[0] != populated {
		return fmt.Errorf("%q: rcfs.events is %q, not %q", b.path, events, populated)
	}
	if threads || rand.IntN(4) > 0 {
		return nil // Go makes and ends threads; and proxies cost something
	}
	tasks, err := read("tasks")
	if err != nil {
		return err
	}
	proxies, err := read("rcfs.proxies")
	if err != nil {
		return err
	}
	if !slices.Equal(tasks, want) {
		return fmt.Errorf("in %q are tasks %q, not %q", b.path, tasks, want)
	}
	sum := 0
	for _, line := range proxies {
		n, err := strconv.Atoi(strings.Fields(line)[1])
		if err != nil {
			return fmt.Errorf("%q: rcfs.proxies: %q", b.path, line)
		}
		sum += n
	}
	if sum != len(want) {
		return fmt.Errorf("%q: rcfs.proxies have %d tasks, not %d: %q", b.path, sum, len(want), proxies)
	}
	return nil
}

func (b *box) populated() bool {
	if len(b.tasks) > 0 {
		return true
	}
	for _, c := range b.below {
		if c.populated() {
			return true
		}
	}
	return false
}

// Many containers and tasks, all that can be done with them at random, and workers and keepers that are killed
// meanwhile: nobody sees an error, and at the end all is exactly what it has to be.
func TestRandomMix(t *testing.T) {
	machine(t)
	size := sizeOfMix(t)
	dir := place(t)
	mountOn(t, dir, mixOptions)
	canRename := renames(t, dir)
	var owners []*owner
	t.Cleanup(func() {
		for _, o := range owners {
			for _, task := range o.tasks {
				task.end()
			}
		}
	})
	kinds := [][]string{{"single"}, {"threads", "2"}, {"futex", "2"}}
	for i := range size.owners {
		o, err := newOwner(dir, fmt.Sprint("o", i), size, canRename)
		require.NoError(t, err)
		owners = append(owners, o)
		if i >= len(kinds) {
			continue // they need processors themselves
		}
		kind := kinds[i]
		v := victim.Start(t, kind[0], kind[1:]...)
		task := &mixTask{pid: v.Pid, threads: true, end: func() error {
			if faults := v.Stop(); len(faults) > 0 {
				return fmt.Errorf("victim %v: %q", kind, faults)
			}
			return nil
		}}
		o.tasks = append(o.tasks, task)
		require.NoError(t, o.moveTo(o.top, task))
	}

	kills := stir(t, owners, size)

	steps, asks, tasks, boxes := make(map[string]int), make(map[string]int), 0, 0
	for _, o := range owners {
		for name, n := range o.steps {
			steps[name] += n
		}
		for name, n := range o.asks {
			asks[name] += n
		}
		tasks += len(o.tasks)
		boxes += len(o.boxes)
	}
	t.Logf("steps %v, asked %v; kills %v; at the end %d containers, %d tasks", steps, asks, kills, boxes, tasks)
	if t.Failed() {
		log, _ := os.ReadFile(logPath)
		t.Fatalf("%s", log[max(0, len(log)-20000):])
	}
	requireNothingElse(t, dir)
	for _, o := range owners {
		for _, b := range o.boxes {
			require.NoError(t, o.look(b))
		}
		for _, task := range o.tasks {
			require.Equal(t, task.at.path, requireWhole(t, dir, task.pid))
		}
	}
	for _, o := range owners {
		for _, task := range slices.Clone(o.tasks) {
			if task.threads {
				require.NoError(t, o.moveTo(o.top, task))
				require.NoError(t, writeOnce(dir+"/tasks", strconv.Itoa(task.pid)))
			}
			assert.NoError(t, task.end())
			o.forget(task)
		}
	}
	removeContainers(t, dir)
	requireNothingElse(t, dir)
}

// stir has owners do random steps while workers and keepers are killed, and returns how often that was.
func stir(t *testing.T, owners []*owner, size mixSize) map[string]int {
	var count atomic.Int64
	var group sync.WaitGroup
	stop := make(chan struct{})
	for _, o := range owners {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := o.step(); err != nil {
					t.Errorf("%s: %v", o.top.path, err)
					return
				}
				count.Add(1)
			}
		})
	}
	defer func() {
		close(stop)
		ended := make(chan struct{})
		go func() { group.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(size.patience):
			t.Error("the clients hang")
			killDaemon(t)
			<-ended
		}
	}()

	kills := make(map[string]int)
	keeper := currentStatus(t).PID
	var longest time.Duration
	wait := func(f func() string) {
		t.Helper()
		begun := time.Now()
		for problem := f(); problem != ""; problem = f() {
			if time.Since(begun) > size.patience {
				t.Fatal(problem)
			}
			if t.Failed() {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		longest = max(longest, time.Since(begun))
	}
	workerOf := func(keeper int) int {
		if pids := childrenNamed(t, strconv.Itoa(keeper), workerComm); len(pids) == 1 {
			return pids[0]
		}
		return 0
	}
	for end := time.Now().Add(size.lasts); time.Now().Before(end) && !t.Failed(); {
		time.Sleep(time.Duration(rand.IntN(150000)) * time.Microsecond)
		worker := 0
		wait(func() string {
			if worker = workerOf(keeper); worker == 0 {
				return "no worker"
			}
			return ""
		})
		switch what := rand.IntN(10); {
		case what < 7:
			kills["worker"]++
			require.NoError(t, unix.Kill(worker, unix.SIGKILL))
			wait(func() string {
				if pid := workerOf(keeper); pid == 0 || pid == worker {
					return "no new worker"
				}
				return ""
			})
		case what < 9:
			kills["restart"]++
			ok(t, "rcfs", "restart")
		default:
			if st, err := askStatus(); err != nil || st.Worker != worker {
				continue // one that has not begun to serve does not know what to keep
			}
			kills["keeper"]++
			require.NoError(t, unix.Kill(keeper, unix.SIGKILL))
			_, err := unix.Wait4(keeper, nil, 0, nil)
			require.NoError(t, err)
			keeper = worker
			wait(func() string {
				if workerOf(keeper) == 0 {
					return "the worker does not become the keeper"
				}
				return ""
			})
		}
		if rand.IntN(4) == 0 {
			continue // before it serves
		}
		wait(func() string {
			if st, err := askStatus(); err != nil || st.PID != keeper {
				return fmt.Sprintf("no worker serves: %v", err)
			}
			return ""
		})
		before := count.Load()
		wait(func() string {
			if count.Load() < before+8 {
				return "the clients make no progress"
			}
			return ""
		})
	}
	t.Logf("longest wait %s", longest.Round(time.Millisecond))
	return kills
}

// renames says whether containers can be renamed.
func renames(t *testing.T, dir string) bool {
	from, to := dir+"/rename", dir+"/renamed"
	require.NoError(t, os.Mkdir(from, 0o755))
	if err := os.Rename(from, to); err != nil {
		require.ErrorIs(t, err, unix.EPERM)
		to = from
	}
	require.NoError(t, os.Remove(to))
	return to != from
}

// requireNothingElse checks that there is no group and no pin but those of the containers that can be seen, each
// of which has its own, and that rcfs doctor finds nothing that it has not put right.
func requireNothingElse(t *testing.T, dir string) {
	t.Helper()
	if _, said, _ := call(t, "rcfs", "doctor"); said != "" {
		t.Logf("rcfs doctor: %s", said)
	}
	require.Empty(t, found(t), "rcfs doctor")
	wantPins, paths := make(map[string]bool), []string{""}
	var walk func(path string)
	walk = func(path string) {
		entries, err := os.ReadDir(dir + path)
		require.NoError(t, err)
		for _, e := range entries {
			switch {
			case e.IsDir():
				paths = append(paths, path+"/"+e.Name())
				walk(path + "/" + e.Name())
			case strings.HasSuffix(e.Name(), ".ns"):
				pin, err := os.Readlink(dir + path + "/" + e.Name())
				require.NoError(t, err)
				wantPins[pin] = true
			}
		}
	}
	walk("")
	slices.Sort(paths)
	pins, err := filepath.Glob(runDir + "/ns/*/*")
	require.NoError(t, err)
	require.Equal(t, slices.Sorted(maps.Keys(wantPins)), pins, "pins")

	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	require.NoError(t, err)
	have := make(map[string][]string) // by mount
	for _, line := range groups(t) {
		group, err := strconv.Unquote(strings.TrimPrefix(line, "group "))
		require.NoError(t, err)
		for _, m := range mounts {
			if path, below := strings.CutPrefix(group, m.Mountpoint+"/"+rig.Base()); below && filepath.Base(path) != ".rcfs" {
				have[m.Mountpoint] = append(have[m.Mountpoint], path)
			}
		}
	}
	if len(paths) == 1 {
		return // the tests' directory itself may be there or not
	}
	require.NotEmpty(t, have)
	for mount, groups := range have {
		slices.Sort(groups)
		require.Equal(t, paths, groups, mount)
	}
}

// Stock is taken, too, while a container with a task is renamed, and while a task leaves one that is removed.
func TestStatusMeanwhile(t *testing.T) {
	machine(t)
	dir := place(t)
	mountOn(t, dir, "cpu,pids")
	canRename := renames(t, dir)
	v := victim.Start(t, "single")
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- func() error {
			for {
				for _, f := range []func() error{
					func() error { return os.Mkdir(dir+"/a", 0o755) },
					func() error { return moveOnce(dir+"/a", v.Pid) },
					func() error {
						for i := 0; canRename && i < 20; i++ {
							err := errors.Join(os.Rename(dir+"/a", dir+"/b"), os.Rename(dir+"/b", dir+"/a"))
							if err != nil {
								return err
							}
						}
						return nil
					},
					func() error { return moveOnce(dir, v.Pid) },
					func() error { return unix.Rmdir(dir + "/a") },
				} {
					err := f()
					for try := 0; try < 20 && err == unix.EAGAIN; try++ {
						err = f()
					}
					if err != nil {
						return err
					}
				}
				select {
				case <-stop:
					return nil
				default:
				}
			}
		}()
	}()
	for range victim.Times(1000) {
		if _, err := askStatus(); !assert.NoError(t, err) {
			break
		}
	}
	close(stop)
	require.NoError(t, <-ended)
	assert.Empty(t, v.Stop())
}
