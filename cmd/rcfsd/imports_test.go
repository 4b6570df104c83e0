package main

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Imports go only downwards: what each package may import of ours.
var allowed = map[string][]string{
	"cmd/rcfsd":    {"rcfs/fs", "rcfs/proxy", "rcfs/proxy/census", "rcfs/subsystems"},
	"fs":           {"rcfs/proxy"},
	"subsystems":   {"rcfs/proxy"},
	"proxy":        {"rcfs/proxy/inject"},
	"proxy/census": nil,
	"proxy/inject": nil,
}

func TestImportsGoDownwards(t *testing.T) {
	const root = "../.."
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && (e.Name() == "testdata" || e.Name() == ".git" || e.Name() == "bin" || e.Name() == "build") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		require.NoError(t, err)
		may, known := allowed[dir]
		require.True(t, known, "%s: a package that this test does not know", dir)
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		require.NoError(t, err)
		for _, spec := range file.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			require.NoError(t, err)
			if strings.HasPrefix(name, "rcfs/") {
				require.True(t, slices.Contains(may, name), "%s imports %s", path, name)
			}
		}
		return nil
	})
	require.NoError(t, err)
}
