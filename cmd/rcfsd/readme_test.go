package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The session in README.md is true to the letter: what follows each "# " is run, in one shell, and
// prints what the lines below it say.
func TestReadmeSession(t *testing.T) {
	machine(t)
	text, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(text), "```console\n")
	require.True(t, found)
	session, _, found := strings.Cut(rest, "```\n")
	require.True(t, found)

	var script strings.Builder
	for line := range strings.Lines(session) {
		if command, ok := strings.CutPrefix(line, "# "); ok {
			script.WriteString("cat <<'END-OF-LINE'\n" + line + "END-OF-LINE\n" + command)
		}
	}
	cmd := exec.Command("bash", "--norc")
	cmd.Stdin = strings.NewReader(script.String())
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/"}
	out, err := cmd.CombinedOutput()
	log, _ := os.ReadFile(logPath)
	require.NoError(t, err, "%s\n%s", out, log)
	require.Equal(t, session, string(out))
}
