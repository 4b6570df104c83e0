// Package inject runs system calls inside a stopped task. It knows nothing of
// rcfs: it is given threads and namespaces, and the threads enter them.
//
// Linux lets a thread change only its own namespaces, so to move a live task
// the task must make the call itself: it is stopped with ptrace(2), made to run
// setns(2), and goes on as if nothing had happened.
//
// # Terms
//
// A thread is named by its tid, a process (thread group) by its tgid. To seize
// is PTRACE_SEIZE: to become a thread's tracer without stopping it. To
// interrupt is PTRACE_INTERRUPT: it will stop soon. An event stop is the stop
// this leads to; a group stop (SIGSTOP) shows as one too. Both, like the stop
// before a signal is delivered, lie inside the kernel's get_signal, at the
// very edge to user space: registers put back there as they were read make the
// kernel restart an interrupted system call, its remaining time included,
// just as after any ignored signal.
//
// # The life of one injection
//
// All of it happens on one OS thread (Do), since to the kernel that is the tracer.
//
//  1. Seize: every thread is attached to and told to stop. The call does not
//     wait, since a thread may itself be waiting for an answer from the caller
//     (a FUSE write): answer it now.
//  2. Wait: until all threads, also those born meanwhile, have stopped. What
//     does not stop in time (a vfork parent, a thread in D state, a frozen
//     one) makes the whole fail with ErrTimeout and goes on unharmed.
//  3. Enter: each thread makes the calls. All or nothing.
//  4. Perhaps Undo, when a later step of the caller's transaction fails.
//  5. Release: every thread goes on, registers and signal mask as they were.
//
// Between 2 and 5 the process cannot run, fork or exit by itself; it can only
// be killed.
//
// A thread that enters a mount namespace does so with its working directory
// (mount.go). Undo brings root and working directory back as well. To go to the
// directory is the one injected call that may sleep, on a file system that does
// not answer.
//
// # When the tracer dies
//
// A thread makes the calls in a blob of machine code that completes by itself:
// it lies in the unused rest of the vdso's last page, uses no stack, raises a
// signal that does nothing at its end, and loads mask, flags and registers
// itself when no tracer does. Kill the tracer at any moment and every thread
// goes on, moved or not moved; a process of several threads may be left half
// moved, and the caller's journal must know of it. A program that catches every
// signal that otherwise would do nothing (any Go program) gets SIGCONT. Where that
// is caught, too, or would change something (the process is stopped, or blocks what
// stops it), no signal is raised, and the thread stops at each of the blob's system
// calls instead. A thread that was stopped inside the blob, or in a
// handler that returns there (its stack is searched for the frame), is let out
// of it by the next Wait.
//
// On kernels that open namespaces by handle (Linux 6.18; tried, not looked up by
// version) that is all. On others the blob makes pages and a pair of sockets
// first, and is sent the descriptors while it is stopped. It closes and unmaps
// everything itself when nothing comes because the tracer is dead. With several
// threads the first one keeps the descriptors, stopped inside, until the others
// have used them.
//
// Between Enter and Release a thread that has entered a mount namespace holds
// two descriptors more, close-on-exec; they stay when the tracer dies just then.
//
// What remains: a seccomp filter that kills on one of the blob's calls becomes
// active again with the tracer's death, and kills a thread that is inside the
// blob just then. An epoll_wait(2) and the like, which the kernel ends with EINTR
// at any stop, is made to go on by the tracer alone: it answers EINTR when the
// tracer dies between the stop and its first look. Without handles a program
// that forks while the tracer dies may pass descriptors to the child. On arm64,
// and where the vdso leaves no room, the calls are stepped through one by one:
// there the tracer's death in mid-move can kill the target.
//
// # System calls that a move interrupts
//
// All go on as after an ignored signal, with what remains of their time
// (TestBlockingCalls has the table). Those that answer EINTR to any stop are
// made again: epoll_wait, semop, msgrcv, rt_sigtimedwait, io_getevents and
// io_uring_enter without a timeout;
// epoll_wait and epoll_pwait in milliseconds with what remains, which the
// register of their timeout still holds when they return. The others that have
// one answer EINTR, as they do to SIGSTOP and SIGCONT:
//
//   - epoll_pwait2, semtimedop, rt_sigtimedwait: the timeout lies in the
//     program's memory. A change there would be seen by other threads, and
//     stay if the tracer died. A pointer to a copy of ours would stay in its
//     register after the call, where compilers rely on what they put there;
//     and code of ours that makes the call and puts the register back would
//     have the thread inside it for as long as the call takes, after the end of
//     this program and in the way of its next version.
//   - recv and the like on a socket with SO_RCVTIMEO: the time is the socket's,
//     which others use.
//   - io_getevents and io_uring_enter with a timeout, for the same reason.
//   - epoll_wait with a timeout on a kernel without /proc/PID/sched
//     (CONFIG_SCHED_DEBUG),
//     from which the time of its begin is known.
//
// A call on an object with a number in an ipc namespace (semop) looks for it in the
// namespace that its thread has entered.
//
// # Limits
//
// Workers that the kernel makes for io_uring cannot be traced and are passed
// over: they keep their namespaces. Descriptor tables that threads do not share
// take Linux 6.9 where namespaces do not come by handle.
//
// # What a caller must not do
//
// To wait for a child process (os/exec) while that very child is seized by the
// same process: the kernel reports a tracee's stops to any wait of the tracer's
// process, whatever its options, so os/exec would take a stop for the exit.
package inject
