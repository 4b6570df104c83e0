package inject

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rcfs/testdata/victim"
)

// TestMain fails the run when it leaves a descriptor, a thread, a child process
// or a goroutine behind.
func TestMain(m *testing.M) {
	victim.Main()
	wayMain()
	moverMain()
	before := openFiles()
	code := m.Run()
	if err := goleak.Find(goleak.IgnoreTopFunction("os/signal.loop")); err != nil {
		fmt.Println("leak:", err)
		code = 1
	}
	for name, check := range map[string]func() string{
		"descriptors": func() string { return extra(before, openFiles()) },
		"children":    childProcesses,
		"threads":     tooManyThreads,
	} {
		if left := eventually(check); left != "" {
			fmt.Printf("leak: %s: %s\n", name, left)
			code = 1
		}
	}
	os.Exit(code)
}

// eventually gives a check a second to come out empty.
func eventually(check func() string) string {
	left := check()
	for i := 0; left != "" && i < 100; i++ {
		time.Sleep(10 * time.Millisecond)
		left = check()
	}
	return left
}

func openFiles() map[string]bool {
	files := map[string]bool{}
	names, _ := filepath.Glob("/proc/self/fd/*")
	for _, name := range names {
		if to, err := os.Readlink(name); err == nil {
			files[filepath.Base(name)+" → "+to] = true
		}
	}
	return files
}

func extra(before, after map[string]bool) string {
	var left []string
	for file := range after {
		// The Go runtime opens its poller once, for ever.
		if !before[file] && !strings.Contains(file, "anon_inode:[event") {
			left = append(left, file)
		}
	}
	return strings.Join(left, ", ")
}

func childProcesses() string {
	var children strings.Builder
	names, _ := filepath.Glob("/proc/self/task/*/children")
	for _, name := range names {
		text, _ := os.ReadFile(name)
		children.Write(text)
	}
	return children.String()
}

func tooManyThreads() string {
	names, _ := filepath.Glob("/proc/self/task/*")
	if len(names) > 30+4*runtime.GOMAXPROCS(0) {
		return fmt.Sprint(len(names))
	}
	return ""
}
