package main

import (
	"maps"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"rcfs/proxy"
)

// output is a run in which everything is on v2, but for some lines.
func output(other ...string) string {
	lines := map[string]string{"Linux": "conformance: Linux 6.1.0-x-amd64"}
	for _, s := range proxy.Registered() {
		lines[s.Name()] = "conformance: " + s.Name() + " v2"
	}
	for _, line := range other {
		lines[strings.Fields(line)[1]] = line
	}
	text := "=== RUN\n"
	for line := range maps.Values(lines) {
		text += line + "\n"
	}
	return text
}

func TestTable(t *testing.T) {
	c, err := parse(output("conformance: memory v1 not tested: not ours", "conformance: io absent: for a reason", "conformance: uts nsfs"))
	require.NoError(t, err)
	require.Equal(t, "6.1", c.heading)
	for name, cell := range map[string]string{"memory": "not tested", "io": "–", "uts": "nsfs", "cpu": "v2"} {
		require.Equal(t, cell, c.cells[name])
	}
	c.heading = "6.1 v2"
	table := render([]column{{"host 6.9 v1", c.cells}, c})
	require.NoError(t, compare(parseTable(table), []column{{"host 7.0 v2", nil}, c}))

	for what, broken := range map[string]string{
		`says "–" of cpu on 6.1 v2, seen was "v2"`: strings.Replace(table, "| `cpu` | v2 | v2 |", "| `cpu` | v2 | – |", 1),
		`says "" of cpu on 6.1 v2`:                 strings.Replace(table, "| `cpu` | v2 | v2 |\n", "", 1),
		`has no column "6.1 v2"`:                   strings.Replace(table, "6.1 v2", "6.1 v3", 1),
	} {
		require.NotEqual(t, table, broken)
		require.ErrorContains(t, compare(parseTable(broken), []column{c}), what)
	}
	// The host's column is compared where it is the host.
	other := column{"host 6.9 v1", maps.Clone(c.cells)}
	other.cells["cpu"] = "v1"
	require.ErrorContains(t, compare(parseTable(table), []column{other}), `says "v2" of cpu on host 6.9 v1`)
}

func TestUnfinishedRun(t *testing.T) {
	_, err := parse(strings.Replace(output(), "conformance: pids v2\n", "", 1))
	require.ErrorContains(t, err, "pids has no verdict")
	for _, line := range []string{"conformance: pids absent: ", "conformance: pids v3", "conformance: pids"} {
		_, err := parse(output(line))
		require.ErrorContains(t, err, "unexpected line", line)
	}
}
