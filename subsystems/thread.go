package subsystems

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// onOwnThread runs f on an OS thread that ends afterwards, since f changes its namespaces. It is
// never the process's first thread, which cannot end and for which /proc/self stands.
func onOwnThread(f func() error) error {
	done := make(chan error)
	var start func()
	start = func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its goroutine
		if unix.Gettid() != os.Getpid() {
			done <- f()
			return
		}
		elsewhere := make(chan struct{})
		go func() { close(elsewhere); start() }()
		<-elsewhere
		runtime.UnlockOSThread() // untouched
	}
	go start()
	return <-done
}
