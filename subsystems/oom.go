package subsystems

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"rcfs/proxy"
)

// How soon a process is chosen when memory is short: proc_pid_oom_score_adj(5).
func init() {
	registerValue(&value{controller: controller{name: "oom"}, items: []item{{
		name:  "score_adj",
		read:  procValue("oom_score_adj"),
		write: setProcValue("oom_score_adj"),
		parse: func(text string) (string, error) { return number(text, -1000, 1000) },
		admit: atLeastOwn(procValue("oom_score_adj"), unix.CAP_SYS_RESOURCE),
	}}})
}

// procValue reads a number from a file in /proc/PID.
func procValue(file string) func(int) (string, error) {
	return func(tid int) (string, error) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", tid, file))
		return strings.TrimSpace(string(b)), err
	}
}

func setProcValue(file string) func(int, string) error {
	return func(tid int, text string) error {
		return os.WriteFile(fmt.Sprintf("/proc/%d/%s", tid, file), []byte(text), 0)
	}
}

// number reads a decimal number between two others.
func number(text string, least, most int64) (string, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < least || n > most {
		return "", fmt.Errorf("not a number from %d to %d: %w", least, most, proxy.ErrValue)
	}
	return strconv.FormatInt(n, 10), nil
}

// atLeastOwn lets a writer ask for less than its own value only with a capability.
func atLeastOwn(read func(int) (string, error), capability int) func(proxy.Writer, string) error {
	return func(w proxy.Writer, text string) error {
		own, err := read(w.TID)
		if err != nil {
			return gone(err)
		}
		have, err := strconv.ParseInt(own, 10, 64)
		if err != nil {
			return err
		}
		if n, err := strconv.ParseInt(text, 10, 64); err != nil || n >= have {
			return err
		}
		return w.Capable(capability)
	}
}
