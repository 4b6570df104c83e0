// Command table keeps the table of README.md that says which subsystem works on which kernel. Every
// cell comes from a run of TestConformance: the host's output is the standard input, the guests' are
// the logs of testdata/vm.sh in build/vm. It rewrites the table, or with -check compares it with
// what was seen; the host's column only where the running kernel is the one of its heading.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"rcfs/proxy"
	_ "rcfs/subsystems"
)

// guests are the columns after the host's: logs of testdata/vm.sh.
var guests = []string{"6.1-v1", "6.1-v2", "6.12-v2", "6.12-hybrid"}

const (
	readme = "README.md"
	begin  = "<!-- what works where: written by make table -->\n"
	end    = "<!-- end of what works where -->\n"
)

func main() {
	check := flag.Bool("check", false, "compare the table with what was seen, and leave it")
	flag.Parse()
	if err := run(*check); err != nil {
		fmt.Fprintln(os.Stderr, "table:", err)
		os.Exit(1)
	}
}

func run(check bool) error {
	text, err := os.ReadFile(readme)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(text), begin)
	old, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		return errors.New(readme + " has no place for the table")
	}
	seen, err := columns()
	if err != nil {
		return err
	}
	if !check {
		return os.WriteFile(readme, []byte(before+begin+render(seen)+end+after), 0o644)
	}
	return compare(parseTable(old), seen)
}

// column is what one run of TestConformance saw.
type column struct {
	heading string
	cells   map[string]string // by subsystem
}

// columns reads what all runs saw.
func columns() ([]column, error) {
	out, err := io.ReadAll(os.Stdin)
	if err != nil {
		return nil, err
	}
	host, err := parse(string(out))
	if err != nil {
		return nil, fmt.Errorf("the host's run: %w", err)
	}
	host.heading = "host " + host.heading + " " + layout(host.cells)
	all := []column{host}
	for _, guest := range guests {
		log, err := os.ReadFile(filepath.Join("build/vm", guest+".log"))
		if err != nil {
			return nil, fmt.Errorf("guest %s was not run (make test-vm): %w", guest, err)
		}
		c, err := parse(string(log))
		if err != nil {
			return nil, fmt.Errorf("guest %s: %w", guest, err)
		}
		version, layout, _ := strings.Cut(guest, "-")
		switch {
		case c.heading != version:
			return nil, fmt.Errorf("guest %s ran Linux %s", guest, c.heading)
		case !strings.Contains(string(log), " layout "+layout+"\n"):
			return nil, fmt.Errorf("guest %s had another layout", guest)
		case !strings.Contains(string(log), "INIT END code=0\n"):
			return nil, fmt.Errorf("guest %s failed", guest)
		}
		c.heading = version + " " + layout
		all = append(all, c)
	}
	return all, nil
}

// parse finds the lines of TestConformance. Its column's heading is the kernel's version.
func parse(output string) (column, error) {
	c := column{cells: map[string]string{}}
	for line := range strings.Lines(output) {
		line, ok := strings.CutPrefix(strings.TrimSpace(line), "conformance: ")
		if !ok {
			continue
		}
		name, verdict, _ := strings.Cut(line, " ")
		backend, more, _ := strings.Cut(verdict, " ")
		switch {
		case name == "Linux":
			c.heading = strings.Join(strings.SplitN(verdict, ".", 3)[:2], ".")
			continue
		case backend == "absent:" && more != "":
			c.cells[name] = "–"
		case strings.HasPrefix(more, "not tested: "):
			c.cells[name] = "not tested"
		case slices.Contains([]string{"v1", "v2", "nsfs", "values"}, backend) && more == "":
			c.cells[name] = backend
		default:
			return c, fmt.Errorf("unexpected line %q", line)
		}
	}
	for _, s := range proxy.Registered() {
		if c.cells[s.Name()] == "" {
			return c, fmt.Errorf("subsystem %s has no verdict", s.Name())
		}
	}
	return c, nil
}

// layout names the versions of cgroups on which a machine has its controllers.
func layout(cells map[string]string) string {
	var versions []string
	for _, v := range []string{"v1", "v2"} {
		for _, s := range proxy.Registered() {
			if cells[s.Name()] == v {
				versions = append(versions, v)
				break
			}
		}
	}
	return strings.Join(versions, "+")
}

func render(columns []column) string {
	var b strings.Builder
	b.WriteString("| |")
	for _, c := range columns {
		b.WriteString(" " + c.heading + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
	for _, s := range proxy.Registered() {
		b.WriteString("| `" + s.Name() + "` |")
		for _, c := range columns {
			b.WriteString(" " + c.cells[s.Name()] + " |")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// parseTable is the opposite of render.
func parseTable(table string) []column {
	var all []column
	for line := range strings.Lines(table) {
		fields := strings.Split(strings.Trim(line, "|\n"), "|")
		name := strings.Trim(fields[0], " `")
		for i, cell := range fields[1:] {
			cell = strings.TrimSpace(cell)
			switch {
			case all == nil || i >= len(all):
				all = append(all, column{heading: cell, cells: map[string]string{}})
			case !strings.HasPrefix(cell, "---"):
				all[i].cells[name] = cell
			}
		}
	}
	return all
}

// compare returns in what the table differs from what was seen.
func compare(table, seen []column) error {
	var errs []error
	for _, want := range seen {
		i := slices.IndexFunc(table, func(c column) bool { return c.heading == want.heading })
		if i < 0 {
			if strings.HasPrefix(want.heading, "host ") {
				fmt.Printf("this machine, %q, is not the host of the table\n", want.heading)
				continue
			}
			errs = append(errs, fmt.Errorf("%s has no column %q", readme, want.heading))
			continue
		}
		for _, s := range proxy.Registered() {
			if have := table[i].cells[s.Name()]; have != want.cells[s.Name()] {
				errs = append(errs, fmt.Errorf("%s says %q of %s on %s, seen was %q (make table)",
					readme, have, s.Name(), want.heading, want.cells[s.Name()]))
			}
		}
	}
	for _, c := range table {
		if len(c.cells) != len(proxy.Registered()) {
			errs = append(errs, fmt.Errorf("column %q of %s has %d rows of %d", c.heading, readme, len(c.cells), len(proxy.Registered())))
		}
	}
	return errors.Join(errs...)
}
