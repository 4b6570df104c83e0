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
//  3. Enter: each thread makes the calls: setns(2), and others that change something of its own (Change). All or nothing.
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
// tracer dies between the stop and its first look, which comes at once. Without handles a
// program that forks while the tracer dies may pass descriptors to the child. Where the
// vdso leaves no room the calls are stepped through one by one: there the
// tracer's death in mid-move can kill the target. On arm64 no instruction loads
// all registers and jumps: a thread that loads them itself comes back without
// what was in x17, unless it was in a shared library, or is to make a call again
// whose number the instruction before loads; and one that computes with vectors
// longer than 128 bits without the rest of them (vector_arm64.go).
//
// # System calls that a move interrupts
//
// All go on as after an ignored signal, with what remains of their time, and nothing else that the
// program can see (TestBlockingCalls has the table). Most are made again by the
// kernel itself. Those that answer EINTR to any stop (eintr.go) are made
// again by the tracer: epoll_wait(2), semop(2), sigtimedwait(2), io_getevents(2), io_uring_enter(2) and their kin,
// and what sleeps on a socket with SO_RCVTIMEO or SO_SNDTIMEO. If they have a timeout it begins anew, and
// the thread is stopped a second time when the call has waited for as long as it was to wait
// in all, and is given the answer that the call gives then (deadline.go). Should the thread be moved again before,
// the time goes on to count from the true beginning. From the timeout in which ppoll(2) and
// select(2) note what remains, the time of the stop is taken too.
//
// What is not exact:
//
//   - A call with a timeout waits longer by the time before the move when this program
//     ends before the call does; when the thread, awake for nothing or on the way into the
//     call, was not seen asleep; or when it cannot be stopped at its end (frozen, or traced by
//     another program).
//   - Select(2) with a timeout in memory that cannot be written, where the kernel cannot note what
//     remains, begins anew with every move: nobody else can give its answer, since it clears sets.
//     So does io_uring_enter(2) with an argument in a registered region
//     (IORING_ENTER_EXT_ARG_REG), which cannot be read, and any call with more than twelve days.
//   - Kernels that take a call's number from the whole of rax (before Linux 5.13) have no place for the
//     mark: the timeouts of the calls that answer EINTR begin anew with every move.
//   - Where the kernel has no /proc/PID/sched (CONFIG_SCHED_DEBUG) such a timeout begins anew with the first move,
//     not with the others.
//   - Connect(2) of a TCP socket with SO_SNDTIMEO may answer EALREADY at its end instead of EINPROGRESS,
//     when the whole timeout is over before the thread has been stopped in time.
//   - A call that is half done answers with the count of that half, as to any signal: a
//     write or send of more than there is room for, a read with MSG_WAITALL, sendfile(2), a read of many megabytes of /dev/urandom. To do
//     the rest and answer with the sum would take code of ours around the call for as long as it lasts.
//   - Close(2) of a socket that lingers (SO_LINGER) lingers no longer.
//   - An ioctl(2) that answers EINTR by itself (KVM_RUN, TCSBRK), a call on a file whose server does
//     (FUSE), is left alone: only sockets are known to have done nothing then.
//
// Another tracer that attaches to a thread during such a call may see the mark in orig_rax.
//
// A signal with a handler ends a call as ever, whenever it comes (TestHandlersInterrupt). Only in the
// instant in which a thread leaves the kernel, to make its call again, a handler may run and not end it, as
// after any ignored signal; a program that must not miss one has it blocked but in the call, which is then
// exact.
//
// On arm64 the kernel forgets the call before the stop. A call that answers EINTR is made again there
// if its thread was seen asleep when it was seized, and every thread that makes a call
// again is led to its entry before it is let go (eintr_arm64.go): there the instant above is none. What
// is not exact beyond that:
//
//   - A call that the thread was just entering when it was seized may answer EINTR: one in some thousand
//     stops, more where there is not processor enough.
//   - There is no place for the mark. The timeout of a call that answers EINTR begins anew when
//     the thread has been awake for nothing between two moves; when this program ends and the
//     process is moved again by the next; and, without /proc/PID/sched, with every move.
//   - A thread that is stopped by SIGSTOP, or frozen, when it is let go, is not led anywhere: its call answers
//     EINTR to the signal that stops it, as ever, or is made again even if a handler runs first.
//   - When the tracer dies while it leads a thread to the entry, the call may answer EINTR, and a signal that
//     has come just then stays blocked.
//
// A call on an object with a number in an ipc namespace (semop), or to an address in a net
// namespace (connect to a name of AF_UNIX), is made again in the namespace that its thread has entered, and
// looks for the object there.
//
// # Limits
//
// Workers that the kernel makes for io_uring cannot be traced and are passed
// over: they keep their namespaces. Descriptor tables that threads do not share
// take Linux 6.9 where namespaces do not come by handle.
//
// # Why there is no tracer process
//
// A process of its own for the tracing would outlive a crash of the caller. To hand it three
// descriptors and hear from it takes 14 µs, a tenth or so of a move of one thread. It would spare
// the program what remains above, and a process with threads the state of being half moved until the
// next start. But it can be killed as well, so the blob and the journal have to be there all the same;
// and what is left without it takes a filter that kills, or a few microseconds' luck.
//
// # What a caller must not do
//
// To wait for a child process (os/exec) while that very child is seized by the
// same process: the kernel reports a tracee's stops to any wait of the tracer's
// process, whatever its options, so os/exec would take a stop for the exit. It may be seized again,
// for an instant, by the end of a timeout.
package inject
