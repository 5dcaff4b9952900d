package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const modulePath = "github.com/trivet-kv/trivet"

// source is one Go file of the module.
type source struct {
	path string // from the root of the module, with slashes
	dir  string // the folder of path: the package's place
	test bool
	file *ast.File
}

// root is the folder that holds go.mod.
func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("no go.mod above the working directory")
		}
		dir = parent
	}
}

// walk visits every file of the tree that belongs to the project.
func walk(t testing.TB, visit func(path string)) {
	t.Helper()
	top := root(t)
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if name == ".git" || name == "trivet-data" || name == "bin" || strings.HasSuffix(name, ".etcd") {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || name == ".git" { // a file in a linked work tree
			return nil
		}
		rel, err := filepath.Rel(top, path)
		visit(filepath.ToSlash(rel))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

var files = token.NewFileSet()

// sources parses the module's own Go files; folders with a go.mod of their own are other modules.
func sources(t testing.TB) []source {
	t.Helper()
	var paths, others []string
	walk(t, func(path string) {
		if strings.HasSuffix(path, ".go") && !strings.Contains(path, "testdata/") {
			paths = append(paths, path)
		}
		if strings.HasSuffix(path, "/go.mod") {
			others = append(others, strings.TrimSuffix(path, "go.mod"))
		}
	})
	var all []source
	for _, path := range paths {
		if slices.ContainsFunc(others, func(o string) bool { return strings.HasPrefix(path, o) }) {
			continue
		}
		f, err := parser.ParseFile(files, filepath.Join(root(t), filepath.FromSlash(path)), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Error(err)
			continue
		}
		dir := "."
		if i := strings.LastIndexByte(path, '/'); i >= 0 {
			dir = path[:i]
		}
		all = append(all, source{path: path, dir: dir, test: strings.HasSuffix(path, "_test.go"), file: f})
	}
	return all
}

// imports are the paths that a file imports.
func (s source) imports() []string {
	var all []string
	for _, i := range s.file.Imports {
		all = append(all, strings.Trim(i.Path.Value, `"`))
	}
	return all
}

func position(n ast.Node) token.Position { return files.Position(n.Pos()) }
