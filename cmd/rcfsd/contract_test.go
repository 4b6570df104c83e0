package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Every bullet and every row of docs/interface.md ends with a comment that names the tests which
// hold the program to it, and those tests are there: TestX is a function, and the sub of TestX/sub
// a string in it.
func TestContractNamesItsTests(t *testing.T) {
	text, err := os.ReadFile("../../docs/interface.md")
	require.NoError(t, err)
	tests := testFunctions(t, "../..")
	lines := contractLines(string(text))
	assert.Greater(t, len(lines), 80)
	for number, line := range lines {
		names := testsOf(line)
		assert.NotEmpty(t, names, "line %d names no test: %s", number, line)
		for _, name := range names {
			function, subs, _ := strings.Cut(name, "/")
			words, ok := tests[function]
			assert.True(t, ok, "line %d: there is no %s", number, function)
			for sub := range strings.SplitSeq(subs, "/") {
				assert.True(t, !ok || sub == "" || words[sub], "line %d: %s has no %q", number, function, sub)
			}
		}
	}
}

// contractLines returns the bullets and rows by their line numbers. The first two lines of a table
// are its head.
func contractLines(text string) map[int]string {
	lines := make(map[int]string)
	table := 0
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "|") {
			table++
		} else {
			table = 0
		}
		if table > 2 || strings.HasPrefix(line, "- ") {
			lines[number] = line
		}
	}
	return lines
}

var testsComment = regexp.MustCompile(`<!-- ([^<>]+) -->( \|)?$`)

// testsOf returns the names in a line's comment.
func testsOf(line string) []string {
	m := testsComment.FindStringSubmatch(line)
	if m == nil {
		return nil
	}
	return strings.Split(m[1], ", ")
}

// testFunctions finds the tests in the sources below root, and the strings in each as package
// testing makes names of subtests from them.
func testFunctions(t *testing.T, root string) map[string]map[string]bool {
	tests := make(map[string]map[string]bool)
	require.NoError(t, filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && strings.HasPrefix(e.Name(), ".") && path != root || e.Name() == "build" {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Test") || f.Name.Name == "TestMain" {
				continue
			}
			words := make(map[string]bool)
			ast.Inspect(f, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					if s, err := strconv.Unquote(lit.Value); err == nil {
						words[strings.ReplaceAll(s, " ", "_")] = true
					}
				}
				return true
			})
			tests[f.Name.Name] = words
		}
		return nil
	}))
	return tests
}

func TestContractLines(t *testing.T) {
	lines := contractLines("text\n| a | b |\n|---|---|\n| c | d <!-- TestA --> |\n\n- bullet\n- two <!-- TestB/x, TestC -->\n")
	require.Equal(t, map[int]string{4: "| c | d <!-- TestA --> |", 6: "- bullet", 7: "- two <!-- TestB/x, TestC -->"}, lines)
	require.Equal(t, []string{"TestA"}, testsOf(lines[4]))
	require.Empty(t, testsOf(lines[6]))
	require.Equal(t, []string{"TestB/x", "TestC"}, testsOf(lines[7]))
}
