// Package subsystems holds what tasks can be grouped by, one file for each: to add a subsystem,
// copy pids.go (a controller), uts.go (a namespace) or oom.go (values that a task carries) and change the names in it;
// nothing else needs to be edited. Each file registers itself with package proxy, which knows none of them.
//
// Some files are shared. cgroup.go is the controller of any name: where the kernel has it (tree.go
// finds out), how a group of it is made, entered and removed, and which control files it has.
// What differs between cgroup v1 and v2 stands in v1.go and v2.go. namespace.go is the namespace
// of any type: how one is made, pinned under /run/rcfs so that it outlives its tasks and us, and
// entered; capable.go whom the kernel lets in; keeper.go has the process that some of them need inside. value.go is what a
// task carries of any kind, and gets back when it leaves (umask.go and mempolicy.go are of those that only the task
// itself can change). roster.go keeps the record of
// containers and members, on a cgroup v1 hierarchy without controllers.
//
// A control file's contents pass through untouched: what "max" means is between the user and
// the controller.
package subsystems
