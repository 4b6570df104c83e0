package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"rcfs/proxy/census"
)

// psReport is what rcfs ps --json prints.
type psReport struct {
	By      string    `json:"by"` // "bpf" or "proc"
	Tasks   int       `json:"tasks"`
	Unseen  int       `json:"unseen"`  // tasks besides whose namespaces may not be seen
	Proxies []psProxy `json:"proxies"` // the largest first
}

// psProxy is a proxy in it: how many tasks have it, and its states by subsystem.
type psProxy struct {
	Tasks  int               `json:"tasks"`
	States map[string]string `json:"states"`
}

// psTask is what rcfs ps --json PID prints.
type psTask struct {
	Task   int               `json:"task"`
	States map[string]string `json:"states"`
}

// psVerb shows the proxies of all tasks, or that of one. It asks the kernel, not the daemon.
func psVerb(args []string, stdout io.Writer) error {
	set := flag.NewFlagSet("rcfs ps", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	asJSON := set.Bool("json", false, "print JSON")
	byProc := set.Bool("proc", false, "read /proc only")
	if err := set.Parse(args); err != nil {
		return exit(exitUsage, err)
	}
	if set.NArg() > 1 {
		return exit(exitUsage, fmt.Errorf("argument %q: ps takes one task", set.Arg(1)))
	}
	tid := 0
	if set.NArg() == 1 {
		var err error
		if tid, err = taskID(set.Arg(0)); err != nil {
			return exit(exitUsage, err)
		}
	}
	if os.Geteuid() != 0 {
		return exit(exitUsage, errors.New("only root can see the namespaces of all tasks"))
	}
	if set.NArg() == 1 {
		return psOne(tid, *asJSON, stdout)
	}
	take := census.Take
	if *byProc {
		take = census.TakeProc
	}
	c, err := take()
	if err != nil {
		return exit(exitSystem, err)
	}
	if *asJSON {
		return printJSON(stdout, newPSReport(c))
	}
	return printCensus(stdout, c)
}

// taskID reads an id as the file tasks does: digits only.
func taskID(word string) (int, error) {
	n, err := strconv.ParseUint(word, 10, 31)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q: not a decimal task id", word)
	}
	return int(n), nil
}

func psOne(tid int, asJSON bool, stdout io.Writer) error {
	p, err := census.Of(tid)
	switch {
	case errors.Is(err, census.ErrNoTask), errors.Is(err, census.ErrZombie):
		return exit(exitUsage, err)
	case err != nil:
		return exit(exitSystem, err)
	case asJSON:
		return printJSON(stdout, psTask{tid, states(p)})
	}
	t := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	for _, s := range p {
		fmt.Fprintf(t, "%s\t%s\n", s.Subsystem, s.State)
	}
	return t.Flush()
}

func newPSReport(c *census.Census) *psReport {
	r := &psReport{By: c.By, Tasks: c.Tasks, Unseen: c.Unseen, Proxies: []psProxy{}}
	for _, g := range c.Groups {
		r.Proxies = append(r.Proxies, psProxy{g.Tasks, states(g.Proxy)})
	}
	return r
}

func states(p census.Proxy) map[string]string {
	m := make(map[string]string, len(p))
	for _, s := range p {
		m[s.Subsystem] = s.State
	}
	return m
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printCensus prints a line for each proxy, with a column for each subsystem in which not all are the same;
// then, once, what all have.
func printCensus(w io.Writer, c *census.Census) error {
	fmt.Fprintf(w, "%d tasks, %d proxies", c.Tasks, len(c.Groups))
	if c.Unseen > 0 {
		fmt.Fprintf(w, "; %d tasks may not be seen", c.Unseen)
	}
	fmt.Fprintln(w)
	differ, same := columns(c.Groups)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if len(c.Groups) > 0 {
		fmt.Fprintf(t, "\n%s\n", strings.Join(append([]string{"TASKS"}, differ...), "\t"))
	}
	for _, g := range c.Groups {
		row := []string{strconv.Itoa(g.Tasks)}
		for _, subsystem := range differ {
			row = append(row, g.Proxy.State(subsystem))
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	if len(same) > 0 {
		fmt.Fprint(t, "\nall of them:\n")
	}
	for _, s := range same {
		fmt.Fprintf(t, "%s\t%s\n", s.Subsystem, s.State)
	}
	return t.Flush()
}

// columns sorts the subsystems of groups into those in which they differ, and the states that they all have.
func columns(groups []census.Group) (differ []string, same []census.Slot) {
	var order []string
	for _, g := range groups {
		for _, s := range g.Proxy {
			if !slices.Contains(order, s.Subsystem) { // a hierarchy may have come meanwhile
				order = append(order, s.Subsystem)
			}
		}
	}
	for _, subsystem := range order {
		state := groups[0].Proxy.State(subsystem)
		if slices.ContainsFunc(groups, func(g census.Group) bool { return g.Proxy.State(subsystem) != state }) {
			differ = append(differ, subsystem)
		} else {
			same = append(same, census.Slot{Subsystem: subsystem, State: state})
		}
	}
	return differ, same
}
