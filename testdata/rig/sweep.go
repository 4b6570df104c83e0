package rig

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What a test run that was killed leaves behind is known by its base directory, rcfs-test-PID, of a PID
// that is no process any more. Nothing else is touched, and nothing at all while another run is alive.
// (The caller has the lock of all test runs, but with another TMPDIR that is another lock.)

const basePrefix = "rcfs-test-"

// sweep removes it.
func sweep() {
	if len(leftovers()) == 0 {
		return
	}
	bases, rosters := testBases(), testRosters()
	for _, base := range bases {
		if alive(base) {
			return
		}
	}
	endDaemons()
	for _, base := range bases {
		killMembers(base)
		removeGroups(base)
	}
	for _, label := range rosters {
		takeDown(label)
	}
}

// endDaemons kills the daemons that tests of cmd/rcfsd left: their program is a test binary.
func endDaemons() {
	files, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, file := range files {
		exe, err := os.Readlink(file)
		comm, _ := os.ReadFile(filepath.Dir(file) + "/comm")
		if err != nil || !strings.HasPrefix(string(comm), "rcfsd") || !strings.HasSuffix(strings.TrimSuffix(exe, " (deleted)"), ".test") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			fmt.Fprintln(os.Stderr, "rig: sweep: daemon", pid)
			unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// alive reports whether the process that a base is named after has not ended.
func alive(base string) bool {
	stat, err := os.ReadFile("/proc/" + strings.TrimPrefix(filepath.Base(base), basePrefix) + "/stat")
	_, state, _ := strings.Cut(string(stat), ") ")
	return err == nil && !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

func testBases() []string {
	var bases []string
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, _ := filepath.Glob(pattern + basePrefix + "*")
		bases = append(bases, found...)
	}
	return bases
}

// killMembers kills what is in a group and below it: victims.
func killMembers(base string) {
	filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return nil
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if pid, err := strconv.Atoi(lines.Text()); err == nil {
				fmt.Fprintln(os.Stderr, "rig: sweep: process", pid, "of", path)
				unix.Kill(pid, unix.SIGKILL)
			}
		}
		return nil
	})
}

// removeGroups removes a directory and those below it. The killed take a moment to be gone.
func removeGroups(base string) {
	var dirs []string
	filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for _, dir := range slices.Backward(dirs) {
		for deadline := time.Now().Add(2 * time.Second); os.Remove(dir) != nil && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
	}
	fmt.Fprintln(os.Stderr, "rig: sweep: group", base)
}

// testRosters returns the labels of rcfs's own hierarchies whose base is a test's.
func testRosters() []string {
	var labels []string
	text, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(line, ":", 3)
		if len(f) != 3 || !strings.HasPrefix(f[1], "name=rcfs.") && !strings.HasPrefix(f[1], "name=rcfs-") {
			continue
		}
		root, err := mountRoster(f[1])
		if err != nil {
			continue
		}
		if hasTestBase(root) {
			labels = append(labels, f[1])
		}
		unix.Close(root)
	}
	return labels
}

// hasTestBase looks at the note of a roster's base, or, of a hierarchy of values, at the base itself.
func hasTestBase(root int) bool {
	base := make([]byte, 256)
	if n, err := unix.Fgetxattr(root, "trusted.rcfs.base", base); err == nil && strings.HasPrefix(string(base[:n]), basePrefix) {
		return true
	}
	bases, _ := filepath.Glob(fmt.Sprintf("/proc/self/fd/%d/%s*", root, basePrefix))
	return len(bases) > 0
}

// takeDown removes the directories of a hierarchy, and mounts and unmounts it until it is gone.
func takeDown(label string) {
	fmt.Fprintln(os.Stderr, "rig: sweep: hierarchy", label)
	for range 20 {
		root, err := mountRoster(label)
		if err == nil {
			killMembersBelow(fmt.Sprintf("/proc/self/fd/%d", root))
			time.Sleep(100 * time.Millisecond)
			unix.Close(root)
		}
		time.Sleep(20 * time.Millisecond)
		text, _ := os.ReadFile("/proc/self/cgroup")
		if !strings.Contains(string(text), ":"+label+":") {
			return
		}
	}
}

// killMembersBelow empties and removes the directories below a roster's root, whose own members are
// all the machine's other processes.
func killMembersBelow(root string) {
	entries, _ := os.ReadDir(root)
	for _, e := range entries {
		if e.IsDir() {
			killMembers(filepath.Join(root, e.Name()))
			removeGroups(filepath.Join(root, e.Name()))
		}
	}
}

// mountRoster mounts a hierarchy of rcfs where nobody sees it and returns its root directory.
func mountRoster(label string) (int, error) {
	fsfd, err := unix.Fsopen("cgroup", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fsfd)
	for _, flag := range []string{"none", "xattr"} {
		if err := unix.FsconfigSetFlag(fsfd, flag); err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigSetString(fsfd, "name", strings.TrimPrefix(label, "name=")); err != nil {
		return -1, err
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, err
	}
	mount, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(mount)
	return unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}
