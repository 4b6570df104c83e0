package proxy

import (
	"fmt"
	"strings"
)

// Finding is something that was not as rcfs had left it, or had begun to make it.
type Finding struct {
	Hierarchy string // "" where it is none's
	Container string // path
	Subsystem string // "" where it is none's
	Task      int    // 0 where it is none's
	What      string // what was found
	Done      string // what was done about it, "" for nothing
}

func (f Finding) String() string {
	var parts []string
	if f.Hierarchy != "" {
		parts = append(parts, fmt.Sprintf("%s %q", f.Hierarchy, "/"+f.Container))
	}
	if f.Subsystem != "" {
		parts = append(parts, f.Subsystem)
	}
	if f.Task != 0 {
		parts = append(parts, fmt.Sprint("task ", f.Task))
	}
	parts = append(parts, strings.ReplaceAll(f.What, "\n", "; "))
	text := strings.Join(parts, ": ")
	if f.Done != "" {
		text += ": " + f.Done
	}
	return text
}

// outcome says what was done about a finding.
func outcome(done string, err error) string {
	if err != nil {
		return "that failed: " + err.Error()
	}
	return done
}

// maxFindings bounds how many are kept until somebody asks. The log has them all.
const maxFindings = 1000

// report keeps a finding for whoever asks next, and logs it.
func (s *System) report(f Finding) {
	s.log.Warn("found", "finding", f.String())
	s.findingsMu.Lock()
	defer s.findingsMu.Unlock()
	if len(s.findings) < maxFindings {
		s.findings = append(s.findings, f)
	}
}

// taken returns the findings since it was called last.
func (s *System) taken() []Finding {
	s.findingsMu.Lock()
	defer s.findingsMu.Unlock()
	list := s.findings
	s.findings = nil
	return list
}

func (h *Hierarchy) report(f Finding) {
	f.Hierarchy = h.name
	h.sys.report(f)
}
