package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// report is what is printed, and written to bench.md.
type report struct {
	head   string
	groups []string // names
	tables []*table
}

func (r *report) add(name string, t *table) {
	r.groups, r.tables = append(r.groups, name), append(r.tables, t)
	fmt.Printf("\n%s\n\n%s", t.title, markdown(t.lines()))
	if t.note != "" {
		fmt.Println("\n" + t.note)
	}
}

// summary is all that is wanted, and what came of it.
func (r *report) summary() string {
	lines := [][]string{{"work", "target", "measured", ""}}
	for _, t := range r.tables {
		for _, v := range t.verdicts() {
			lines = append(lines, []string{v.work, v.target, v.measured, v.says})
		}
	}
	return markdown(lines)
}

// markdown aligns the lines for those who read them as they are. A line of another length than the one before begins another table.
func markdown(lines [][]string) string {
	var b strings.Builder
	for len(lines) > 0 {
		n := 1
		for n < len(lines) && len(lines[n]) == len(lines[0]) && lines[n][0] != "figure" {
			n++
		}
		width := make([]int, len(lines[0]))
		for _, line := range lines[:n] {
			for i, cell := range line {
				width[i] = max(width[i], utf8.RuneCountInString(cell))
			}
		}
		for k, line := range lines[:n] {
			for i, cell := range line {
				fmt.Fprintf(&b, "| %-*s ", width[i], cell)
			}
			b.WriteString("|\n")
			for i := 0; k == 0 && i < len(line); i++ {
				b.WriteString("|" + strings.Repeat("-", width[i]+2))
			}
			if k == 0 {
				b.WriteString("|\n")
			}
		}
		if lines = lines[n:]; len(lines) > 0 {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// write writes bench.md and the pictures.
func (r *report) write(dir string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# What rcfs costs\n\nWritten by `make bench%s`; each figure is a ratio of medians of this one run. %s\n\n%s",
		either("", " FULL=1"), r.head, r.summary())
	for i, t := range r.tables {
		picture := "bench-" + r.groups[i] + ".svg"
		fmt.Fprintf(&b, "\n## %s\n\n", t.title)
		if svg := t.svg(); svg != "" {
			if err := os.WriteFile(filepath.Join(dir, picture), []byte(svg), 0o644); err != nil {
				return err
			}
			fmt.Fprintf(&b, "![%s](%s)\n\n", t.title, picture)
		}
		b.WriteString(markdown(t.lines()))
		if t.note != "" {
			fmt.Fprintf(&b, "\n%s\n", t.note)
		}
	}
	return os.WriteFile(filepath.Join(dir, "bench.md"), []byte(b.String()), 0o644)
}
