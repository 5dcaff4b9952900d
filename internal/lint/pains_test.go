package lint

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	painTest  = regexp.MustCompile("`([^`]+)`( Test[A-Za-z0-9]+)?")
	painIssue = regexp.MustCompile(`E#[0-9]+`)
)

// TestPains holds docs/pains.md against the tree: each line has a test, or a scenario file, that is there and says the line's
// numbers; and no test names a number that is not on the page.
func TestPains(t *testing.T) {
	top := root(t)
	page, err := os.ReadFile(filepath.Join(top, "docs", "pains.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests := testsOf(t)
	rows := 0
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || strings.HasPrefix(line, "|---") || strings.TrimSpace(cells[3]) == "tests" {
			continue
		}
		rows++
		said := ""
		for _, m := range painTest.FindAllStringSubmatch(cells[3], -1) {
			text, ok := tests[m[1]+m[2]]
			if m[2] == "" {
				b, err := os.ReadFile(filepath.Join(top, filepath.FromSlash(m[1])))
				text, ok = string(b), err == nil
			}
			if !ok {
				t.Errorf("docs/pains.md:%s: there is no %s%s", cells[1], m[1], m[2])
			}
			said += text
		}
		if said == "" {
			t.Errorf("docs/pains.md:%s: no test", cells[1])
		}
		for _, issue := range painIssue.FindAllString(cells[2], -1) {
			if !slices.Contains(painIssue.FindAllString(said, -1), issue) && !strings.Contains(said, "func Test"+strings.Replace(issue, "#", "", 1)) {
				t.Errorf("docs/pains.md:%s: %s is named by none of its tests", cells[1], issue)
			}
		}
	}
	if rows < 50 {
		t.Errorf("%d lines were understood; the form of the page has changed", rows)
	}
	known := painIssue.FindAllString(string(page), -1)
	for name, text := range tests {
		for _, issue := range painIssue.FindAllString(text, -1) {
			if !slices.Contains(known, issue) {
				t.Errorf("%s names %s, which is not in docs/pains.md", name, issue)
			}
		}
	}
}

// testsOf are the tests of the module by "file TestName", each with its text and what its comment says.
func testsOf(t *testing.T) map[string]string {
	t.Helper()
	tests := make(map[string]string)
	for _, s := range sources(t) {
		if !s.test {
			continue
		}
		b, err := os.ReadFile(filepath.Join(root(t), filepath.FromSlash(s.path)))
		if err != nil {
			t.Fatal(err)
		}
		for i, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(f.Name.Name, "Test") || f.Recv != nil {
				continue
			}
			from := f.Pos()
			if f.Doc != nil {
				from = f.Doc.Pos()
			}
			// What stands before it belongs to it too, up to the test before: tables, and what it calls.
			for _, before := range slices.Backward(s.file.Decls[:i]) {
				if g, ok := before.(*ast.FuncDecl); ok && strings.HasPrefix(g.Name.Name, "Test") {
					break
				}
				from = before.Pos()
				if g, ok := before.(*ast.FuncDecl); ok && g.Doc != nil {
					from = g.Doc.Pos()
				}
			}
			tests[s.path+" "+f.Name.Name] = string(b[files.Position(from).Offset:files.Position(f.End()).Offset])
		}
	}
	return tests
}
