// Package proxy is the model: what a task is grouped by, and how it gets from one grouping into
// another as one step.
//
// # Terms
//
//   - A Subsystem is one thing that tasks are grouped by, a kind of namespace or a controller. Its
//     place in the list of all, sorted by name, is its slot.
//   - A State is one group of a subsystem: a cgroup directory, a namespace. It is identified as the
//     kernel does it, by device and inode, and there is one State for each. Of what a task carries itself, limits and
//     priorities, a State is a value: equal values are the same State.
//   - A TaskProxy is a tuple with one State for each slot. Tasks with equal tuples have the same
//     TaskProxy; the Table finds it by the tuple itself, in a map.
//   - A Hierarchy is a set of bound subsystems (its binding) and a tree of Containers, each of which
//     has a State in each bound slot. A task in a container keeps what it has in all other slots.
//   - The Roster says which task is in which container. The kernel keeps it.
//   - An Attach puts a task into a container.
//
// # The life of an attach
//
// NewAttach reads the id, names the task by an open directory in /proc (its number may pass to
// another), and asks whether the writer may. Run then
//
//  1. waits for other moves of the same process;
//  2. looks where each thread is in what is bound. No difference, no work;
//  3. if a namespace differs, or what only the task itself can change (Changer), or what is handed down before it
//     can be seen (Stopper), lets every subsystem that differs refuse (Checker), so that nothing is stopped in vain;
//  4. stops all threads then (package inject) and looks again;
//  5. places the process in the container's groups, one write for each kernel hierarchy, first where
//     the kernel may refuse (Reluctant), and last gives it the values that it carries itself;
//  6. makes the stopped threads enter the namespaces, and make those changes;
//  7. after 6, places it in the groups that may be frozen, where it would run no call any more, and gives it the values then;
//  8. writes the roster: the move has happened. An error before that undoes 7, 6 and 5 in that
//     order, and leaves everything as it was;
//  9. lets the threads go on.
//
// From a user namespace there is no way back (Sovereign). A move into one does 8 before 6, so
// that next to nothing is left by then that might be refused. What the kernel would say to each
// setns(2) has been asked in 3; if one fails all the same, what cannot be put back is in the error. In
// which order the namespaces are entered depends on the task: what it may enter as it is comes before
// the user namespace, what that one makes possible comes after it.
//
// A move into groups alone stops nothing, so the target may fork between 5 and 8; whoever was
// born half in the container is moved after it (forks.go).
//
// A target that asks for its own move waits in the write(2) of its own request and can be stopped
// only after the answer. Run then calls OwnWrite.Answer between asking the threads to stop and
// waiting for it, and if the move fails replaces what that write(2) returns.
//
// # Lifetimes
//
// A group and a namespace are made by Create and last until Destroy; who enters takes part in them, and leaves nothing
// behind. A value is nobody's: it is made by being had, a copy in each task, and a task that leaves is to have what it had
// before. To the model that is the same, since a container has an object of its own in either case. For a value that is a
// group without a controller, which says what its members shall have (package subsystems, value.go); Place gives it to
// them, and what a task had before is written down where the kernel hands it down with the values: in the group that
// the task is in. So a child inherits its parent's home, a daemon's death forgets none, and it is forgotten with its last
// task. Two things are left that a Placer of values can say and others need not: how a task differs from what its group
// wants (Location.Own), to be put back to exactly that; and that Current is not what a container has, but what a
// task has, so that a proxy is made of values.
//
// # Locks
//
// In the order in which they may be taken:
//
//  1. moves: one move of a process at a time. Held while a target is waited for; it keeps nobody
//     waiting but other moves of that process, and never a target that moves itself.
//  2. System.mu: binding and unbinding. Held over system calls, never while the kernel takes down a
//     hierarchy: that can last as long as somebody's zombie.
//  3. Hierarchy.shape: what changes the tree, or what is bound. Held over system calls.
//  4. Hierarchy.mu: the containers' fields. Held over nothing.
//  5. Table.mu: states and proxies. Held over nothing.
//
// None of 2 to 5 is held while a target is waited for: one of its threads may itself wait for us,
// in a read of a tasks file, and stops only after that.
//
// # What survives the daemon
//
// Nothing of the above is written to a file. Containers, members, owners, modes and notes are in
// the roster, groups in their hierarchies, namespaces pinned under /run/rcfs. Open finds them all.
//
// A daemon can be killed between any two system calls. For all that it does there is one rule: word of it is
// in the kernel before the first call that changes anything, and goes after the last; the next daemon that
// finds such a word finishes the work or takes it back, before it answers anybody. What is not in the
// roster is in none of its states, and is removed.
//
//   - A hierarchy. Its roster says what is to be bound, and has a directory that is no container (holder),
//     by which the kernel keeps it; then the subsystems are bound. Unbinding goes the other way. A hierarchy
//     that is found without containers and without a view is bound once more and unbound, which leaves nothing.
//   - A change of the tree: mkdir, rmdir, rename, chown, chmod. The roster's root has a note of it (intent.go).
//     Whether it is finished or taken back the roster's directory says: rmdir removes it first, rename
//     renames it last, mkdir has it from the beginning and so is taken back as long as the note is there.
//     A chown is always finished.
//   - A move. The journal has a record of it, see below.
//   - A namespace. Its keeper, if it needs one, has no container before it is written down beside the pin; those
//     that are not are found by their name, and ended (Sweeper). Pins of no container are removed.
//   - A group on the way to the base. The group above has a note of it before it is made.
//
// What others take away or move is not put right by this rule. Doctor looks for it, as Open does: what a
// container had and has no more is held again where a task or a keeper is still in it, else made anew; tasks
// that somebody has moved by hand are said to be, and left where they are.
//
// A daemon that is killed leaves what it was moving where it is: alive (package inject), but perhaps
// half in the container. The journal says which tasks that are, and Open finishes their moves before
// anything is answered. It does not try to go back first: what a task has left may be gone, what it
// is to enter is held by the container. A task that does not stop in time stays written down and is tried again
// later, until it is moved, by that or by another move, or has ended.
package proxy
