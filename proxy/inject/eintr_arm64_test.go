package inject

// What else answers EINTR on arm64, see doc.go.
func init() {
	for _, call := range []string{
		"epoll", "epoll2", "epoll-time", "semop", "sigwait", "io-events", "io-uring",
	} {
		blockingCalls[call] = "interrupted system call"
	}
}
