package proxy

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// Lines splits what was written to tasks into its whole lines. A last line without its newline
// is whole when it comes alone; otherwise the rest of it may still be on its way, and write(2)
// answers short.
func Lines(data []byte) []string {
	var lines []string
	for len(data) > 0 {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			if lines == nil {
				lines = append(lines, string(data))
			}
			break
		}
		lines = append(lines, string(data[:i+1]))
		data = data[i+1:]
	}
	return lines
}

// parseID reads a task id: decimal digits with blanks around them. Nothing else may pass: the
// kernel's own files take "0x10" as 16, and a wrong id moves a stranger.
func parseID(line string) (int, error) {
	s := strings.Trim(line, " \t\n")
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, fmt.Errorf("%q: %w", line, ErrNotANumber)
	}
	id, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q: %w", line, ErrNotANumber)
	}
	return int(id), nil
}
