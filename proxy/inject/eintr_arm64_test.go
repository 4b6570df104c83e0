package inject

// What else answers EINTR on arm64, see doc.go.
func init() {
	for _, call := range []string{
		"epoll", "epoll2", "epoll-time", "epoll2-time", "ppoll-readonly", "select-readonly",
		"semop", "sem-time", "sigwait", "sig-time",
		"io-events", "io-events-time", "io-pevents-time", "io-uring", "io-uring-time", "io-uring-abs",
		"accept-time", "connect-time", "tcp-con-time", "recv-time", "recvmsg-time", "recvmmsg", "read-time", "splice-time",
		"send-time", "write-time",
	} {
		blockingCalls[call] = "interrupted system call"
	}
}
