package lint

import (
	"go/ast"
	"path"
	"slices"
	"strings"
	"testing"
)

const (
	maxFileLines     = 600
	maxFunctionLines = 80
	maxTestLines     = 160 // of a test's function: tables are long and easy to read
)

// Functions and files that are longer, each with the reason; the number is their own ceiling.
var longer = map[string]int{}

func TestSizes(t *testing.T) {
	check := func(what string, lines, limit int) {
		if own, ok := longer[what]; ok {
			limit = own
		}
		if lines > limit {
			t.Errorf("%s has %d lines, more than %d: split it where it has a seam", what, lines, limit)
		}
	}
	for _, s := range sources(t) {
		end := files.Position(s.file.End()).Line
		check(s.path, end, maxFileLines)
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			limit := maxFunctionLines
			if s.test {
				limit = maxTestLines
			}
			check(s.path+" "+f.Name.Name, files.Position(f.End()).Line-position(f).Line+1, limit)
		}
	}
}

func TestPackageDocs(t *testing.T) {
	doc := map[string]string{}
	for _, s := range sources(t) {
		doc[s.dir] += ""
		if s.file.Doc != nil && (!s.test || strings.HasPrefix(s.dir, "test/")) {
			if len(doc[s.dir]) > 0 {
				t.Errorf("%s: the package has a second doc comment", s.path)
			}
			doc[s.dir] += s.file.Doc.Text()
		}
	}
	for dir, text := range doc {
		if len(text) < 80 {
			t.Errorf("package %s has no doc, or one of hardly a line: it says what the package owns and what it never does", dir)
		}
		if pkg, ok := strings.CutPrefix(dir, "internal/"); ok && !strings.HasPrefix(text, "Package "+path.Base(pkg)+" ") {
			t.Errorf("the doc of package %s begins with %.30q", dir, text)
		}
	}
}

func TestNames(t *testing.T) {
	refused := []string{"util", "utils", "common", "types", "helpers", "misc", "shared", "base", "lib"}
	for _, s := range sources(t) {
		if name := strings.TrimSuffix(s.file.Name.Name, "_test"); slices.Contains(refused, name) || slices.Contains(refused, path.Base(s.dir)) {
			t.Errorf("%s: a package called %s says nothing", s.path, name)
		}
	}
}

// The packages that hold state: what they do follows from their input alone, so that all members do the same and a
// simulation can repeat it.
var statePackages = []string{"kv", "wire", "command", "engine", "mvcc", "lease", "auth", "member", "alarm", "fsm"}

// What they use nevertheless, as "folder call", with the reason.
var stateExceptions = map[string]string{
	"internal/engine time.NewTimer": "a flush or compaction that failed is tried again after a pause; when a table is written changes no state",
	"internal/engine go":            "one goroutine passes on what the flushed state holds, outside of Pebble's own locks; it changes no state",
}

func TestStateIsDeterministic(t *testing.T) {
	clock := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"}
	for _, s := range sources(t) {
		if s.test || !slices.Contains(statePackages, strings.TrimPrefix(s.dir, "internal/")) {
			continue
		}
		refuse := func(n ast.Node, what string) {
			if _, ok := stateExceptions[s.dir+" "+what]; !ok {
				t.Errorf("%s: %s in a package that holds state", position(n), what)
			}
		}
		for _, i := range s.imports() {
			if i == "math/rand" || i == "math/rand/v2" || i == "crypto/rand" {
				refuse(s.file.Name, i)
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				refuse(n, "go")
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clock, n.Sel.Name) {
					refuse(n, "time."+n.Sel.Name)
				}
			case *ast.CallExpr:
				if f, ok := n.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "Go" && len(n.Args) == 1 {
					refuse(n, "go")
				}
			}
			return true
		})
	}
}

// Logging goes through log/slog, and nobody but main ends the process.
func TestNoPrintingNoExit(t *testing.T) {
	for _, s := range sources(t) {
		inside := strings.HasPrefix(s.dir, "internal/") && s.dir != "internal/cli"
		if s.test || !inside {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := f.X.(*ast.Ident)
			if !ok {
				return true
			}
			name := x.Name + "." + f.Sel.Name
			if name == "os.Exit" || name == "fmt.Println" || name == "fmt.Printf" || name == "fmt.Print" || strings.HasPrefix(name, "log.Print") || strings.HasPrefix(name, "log.Fatal") {
				t.Errorf("%s: %s: return an error or log through log/slog", position(n), name)
			}
			return true
		})
	}
}

// Tests in fake time begin through package bubble, without which the race detector may crash under them.
func TestFakeTime(t *testing.T) {
	for _, s := range sources(t) {
		if s.dir == "internal/bubble" {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if f, ok := n.(*ast.SelectorExpr); ok && f.Sel.Name == "Test" {
				if x, ok := f.X.(*ast.Ident); ok && x.Name == "synctest" {
					t.Errorf("%s: call bubble.Test instead of synctest.Test", position(n))
				}
			}
			return true
		})
	}
}
