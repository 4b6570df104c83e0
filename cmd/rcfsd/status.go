package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
)

// status is what rcfs status --json prints.
type status struct {
	PID         int               `json:"pid"`
	Worker      int               `json:"worker"` // the process that serves
	Hierarchies []hierarchyStatus `json:"hierarchies"`
	Proxies     []string          `json:"proxies"` // lines as rcfs.proxies has them
	States      int               `json:"states"`
}

// hierarchyStatus is one hierarchy in it.
type hierarchyStatus struct {
	Name       string   `json:"name"`
	Subsystems []string `json:"subsystems"`
	Mounts     []string `json:"mounts"`
	Containers int      `json:"containers"` // without the root
	Tasks      int      `json:"tasks"`      // in containers other than the root
}

func (m *model) status() (*status, error) {
	taken, err := m.sys.Status()
	if err != nil {
		return nil, exit(exitSystem, fmt.Errorf("take stock: %w", err))
	}
	st := &status{PID: m.keeper, Worker: os.Getpid(), Hierarchies: []hierarchyStatus{}, Proxies: some(taken.Proxies), States: taken.States}
	for _, h := range taken.Hierarchies {
		st.Hierarchies = append(st.Hierarchies, hierarchyStatus{
			Name: h.Name, Subsystems: some(h.Subsystems), Mounts: some(h.Mounts), Containers: h.Containers, Tasks: h.Tasks,
		})
	}
	return st, nil
}

// some makes an empty list [] in JSON, never null.
func some(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func statusVerb(args []string, stdout io.Writer) error {
	set := flag.NewFlagSet("rcfs status", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	asJSON := set.Bool("json", false, "print JSON")
	if err := set.Parse(args); err != nil {
		return exit(exitUsage, err)
	}
	if set.NArg() > 0 {
		return exit(exitUsage, fmt.Errorf("argument %q: status takes none", set.Arg(0)))
	}
	st, err := askStatus()
	if err != nil {
		return exit(exitUsage, err)
	}
	if *asJSON {
		return printJSON(stdout, st)
	}
	return st.print(stdout)
}

func (st *status) print(w io.Writer) error {
	fmt.Fprintf(w, "daemon %d\n", st.PID)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if len(st.Hierarchies) > 0 {
		fmt.Fprintln(t, "\nHIERARCHY\tSUBSYSTEMS\tCONTAINERS\tTASKS\tMOUNTED ON")
	}
	for _, h := range st.Hierarchies {
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\n", h.Name, listed(h.Subsystems, ","), h.Containers, h.Tasks, listed(h.Mounts, " "))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d proxies of %d states\n", len(st.Proxies), st.States)
	for _, line := range st.Proxies {
		if err == nil {
			_, err = fmt.Fprintln(w, line)
		}
	}
	return err
}

func listed(list []string, sep string) string {
	if len(list) == 0 {
		return "-"
	}
	return strings.Join(list, sep)
}
