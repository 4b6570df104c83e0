package subsystems

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// How a thread is given processors: sched(7).
func init() {
	registerValue(&value{controller: controller{name: "sched"}, threads: true, items: []item{
		{name: "policy", read: readPolicy, write: writePolicy, parse: parsePolicy, admit: func(w proxy.Writer, text string) error {
			if _, err := parseOrdinary(text); err == nil {
				return nil
			}
			return w.Capable(unix.CAP_SYS_NICE)
		}},
		{name: "nice", read: readNice, write: writeNice, parse: func(text string) (string, error) {
			return number(text, -20, 19)
		}, admit: atLeastOwn(readNice, unix.CAP_SYS_NICE)},
		{name: "affinity", read: readAffinity, write: writeAffinity, parse: func(text string) (string, error) {
			set, err := parseProcessors(text)
			return processorsText(set), err
		}},
		{name: "timerslack", read: procValue("timerslack_ns"), write: setProcValue("timerslack_ns"), parse: func(text string) (string, error) {
			return number(text, 1, 1<<62)
		}},
		{name: "uclamp", read: readClamp, write: writeClamp, parse: func(text string) (string, error) {
			low, high, err := parseClamp(text)
			return clampText(low, high), err
		}},
	}})
}

// Policies by their numbers in include/uapi/linux/sched.h. A real-time one has a priority, "fifo:10"; +reset is behind one
// that children do not inherit (SCHED_RESET_ON_FORK). A deadline and a policy of a program's (sched_ext) cannot be asked for.
var policies = []string{"other", "fifo", "rr", "batch", "", "idle"}

const (
	policyFIFO  = 1
	policyRR    = 2
	resetOnFork = "+reset"
)

func readPolicy(tid int) (string, error) {
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		return "", err
	}
	if int(attr.Policy) >= len(policies) || policies[attr.Policy] == "" {
		return fmt.Sprintf("number:%d", attr.Policy), nil
	}
	text := policies[attr.Policy]
	if attr.Policy == policyFIFO || attr.Policy == policyRR {
		text += fmt.Sprintf(":%d", attr.Priority)
	}
	if attr.Flags&unix.SCHED_FLAG_RESET_ON_FORK != 0 {
		text += resetOnFork
	}
	return text, nil
}

func writePolicy(tid int, text string) error {
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		return err
	}
	word, reset := strings.CutSuffix(text, resetOnFork)
	policy, priority, err := policyOf(word)
	if err != nil {
		return err
	}
	if attr.Policy >= uint32(len(policies)) || policies[attr.Policy] == "" {
		return fmt.Errorf("the thread has a policy that could not be given back: %w", unix.EBUSY)
	}
	attr.Policy, attr.Priority = policy, priority
	attr.Flags &^= unix.SCHED_FLAG_RESET_ON_FORK
	if reset {
		attr.Flags |= unix.SCHED_FLAG_RESET_ON_FORK
	}
	return unix.SchedSetAttr(tid, attr, 0)
}

func parsePolicy(text string) (string, error) {
	word, reset := strings.CutSuffix(text, resetOnFork)
	policy, priority, err := policyOf(word)
	if err != nil {
		return "", err
	}
	text = policies[policy]
	if priority > 0 {
		text += fmt.Sprintf(":%d", priority)
	}
	if reset {
		text += resetOnFork
	}
	return text, nil
}

// parseOrdinary reads a policy without a priority.
func parseOrdinary(word string) (uint32, error) {
	n := slices.Index(policies, word)
	if n < 0 || word == "" || n == policyFIFO || n == policyRR {
		return 0, fmt.Errorf("not a policy of other, batch, idle, fifo:PRIORITY, rr:PRIORITY: %w", proxy.ErrValue)
	}
	return uint32(n), nil
}

func policyOf(word string) (policy, priority uint32, err error) {
	name, level, leveled := strings.Cut(word, ":")
	if !leveled {
		policy, err = parseOrdinary(name)
		return policy, 0, err
	}
	n := slices.Index(policies, name)
	if n != policyFIFO && n != policyRR {
		return 0, 0, fmt.Errorf("not a policy with a priority, fifo or rr: %w", proxy.ErrValue)
	}
	level, err = number(level, 1, 99)
	if err != nil {
		return 0, 0, err
	}
	p, err := strconv.Atoi(level)
	return uint32(n), uint32(p), err
}

// readNice undoes what the system call does to have no negative answers (getpriority(2)).
func readNice(tid int) (string, error) {
	n, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
	return strconv.Itoa(20 - n), err
}

func writeNice(tid int, text string) error {
	n, err := strconv.Atoi(text)
	if err != nil {
		return err
	}
	return unix.Setpriority(unix.PRIO_PROCESS, tid, n)
}

func readAffinity(tid int) (string, error) {
	var set unix.CPUSet
	err := unix.SchedGetaffinity(tid, &set)
	return processorsText(set), err
}

func writeAffinity(tid int, text string) error {
	set, err := parseProcessors(text)
	if err != nil {
		return err
	}
	return unix.SchedSetaffinity(tid, &set)
}

// maxProcessors is how many a unix.CPUSet has room for.
const maxProcessors = 1024

// processorsText writes a set as the kernel does, "0-3,8".
func processorsText(set unix.CPUSet) string {
	var parts []string
	for first := 0; first < maxProcessors; first++ {
		if !set.IsSet(first) {
			continue
		}
		last := first
		for last+1 < maxProcessors && set.IsSet(last+1) {
			last++
		}
		part := strconv.Itoa(first)
		if last > first {
			part += "-" + strconv.Itoa(last)
		}
		parts = append(parts, part)
		first = last
	}
	return strings.Join(parts, ",")
}

func parseProcessors(text string) (set unix.CPUSet, err error) {
	for part := range strings.SplitSeq(text, ",") {
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 16)
		to := from
		if err == nil {
			to, err = strconv.ParseUint(last, 10, 16)
		}
		if err != nil || from > to || to >= maxProcessors {
			return set, fmt.Errorf("not a list of processors like 0-3,8: %w", proxy.ErrValue)
		}
		for cpu := from; cpu <= to; cpu++ {
			set.Set(int(cpu))
		}
	}
	return set, nil
}

// Utilization clamps, "LEAST:MOST" of 1024: Documentation/scheduler/sched-util-clamp.rst.
func readClamp(tid int) (string, error) {
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		return "", err
	}
	if attr.Util_max == 0 {
		return "", fmt.Errorf("this kernel has no utilization clamps: %w", unix.EOPNOTSUPP)
	}
	return clampText(attr.Util_min, attr.Util_max), nil
}

func clampText(low, high uint32) string { return fmt.Sprintf("%d:%d", low, high) }

func writeClamp(tid int, text string) error {
	low, high, err := parseClamp(text)
	if err != nil {
		return err
	}
	return unix.SchedSetAttr(tid, &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Util_min: low, Util_max: high,
		Flags: unix.SCHED_FLAG_KEEP_ALL | unix.SCHED_FLAG_UTIL_CLAMP,
	}, 0)
}

const maxClamp = 1024 // SCHED_CAPACITY_SCALE

func parseClamp(text string) (low, high uint32, err error) {
	first, second, _ := strings.Cut(text, ":")
	a, errA := strconv.ParseUint(first, 10, 32)
	b, errB := strconv.ParseUint(second, 10, 32)
	if errA != nil || errB != nil || a > b || b > maxClamp {
		return 0, 0, fmt.Errorf("not LEAST:MOST of %d: %w", maxClamp, proxy.ErrValue)
	}
	return uint32(a), uint32(b), nil
}
