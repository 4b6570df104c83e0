package main

import (
	"fmt"
	"io"
)

// exitFound is the exit status of rcfs doctor where something was not as it should be.
const exitFound = 1

// doctor is a line for each finding.
func (m *model) doctor() ([]string, error) {
	findings, err := m.sys.Doctor()
	if err != nil {
		return nil, exit(exitSystem, fmt.Errorf("examine: %w", err))
	}
	lines := []string{}
	for _, f := range findings {
		lines = append(lines, f.String())
	}
	return lines, nil
}

// doctorVerb prints what was found since it was called last, and what was done about it.
func doctorVerb(args []string, stdout io.Writer) error {
	if len(args) > 0 {
		return exit(exitUsage, fmt.Errorf("argument %q: doctor takes none", args[0]))
	}
	c, err := dial()
	if err != nil {
		return exit(exitUsage, err)
	}
	defer c.Close()
	a, err := c.call(&request{Op: opDoctor}, -1)
	if err != nil {
		return exit(exitUsage, err)
	}
	for _, line := range a.Found {
		if _, err := fmt.Fprintln(stdout, line); err != nil {
			return err
		}
	}
	if len(a.Found) > 0 {
		return exit(exitFound, fmt.Errorf("found: %d", len(a.Found)))
	}
	return nil
}
