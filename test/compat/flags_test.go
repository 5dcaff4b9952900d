package compat

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// setting is a row of docs/flags.md, which a test of internal/config holds to what the program takes.
type setting struct {
	flag, kind, value, file, support, help string // value is the default
	section                                string
}

// documented reads docs/flags.md.
func documented(t *testing.T) (rows []setting) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "flags.md"))
	if err != nil {
		t.Fatal(err)
	}
	section := ""
	for line := range strings.Lines(string(text)) {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			section = strings.TrimSpace(title)
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.Trim(strings.TrimSpace(cells[i]), "`")
		}
		switch {
		case strings.HasPrefix(cells[0], "---"): // the line under a table's head
		case len(cells) >= 7 && strings.HasPrefix(cells[0], "--"):
			rows = append(rows, setting{strings.TrimPrefix(cells[0], "--"), cells[1], cells[2], cells[4], cells[5], cells[6], section})
		case len(cells) == 5 && section == "Keys of the file that no flag sets" && strings.Contains(cells[0], "."):
			rows = append(rows, setting{"", cells[1], cells[2], cells[0], cells[3], cells[4], section})
		}
	}
	if len(rows) < 100 {
		t.Fatalf("docs/flags.md has only %d rows", len(rows))
	}
	return rows
}

// ours tells that etcd 3.7 does not have a flag.
func (s setting) ours() bool {
	return strings.HasPrefix(s.section, "Names of etcd up to") || strings.Contains(s.help, "Trivet's own")
}

// output runs a program and returns what it prints.
func output(t *testing.T, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	out, err := cmd.Output()
	if err != nil {
		var text string
		if e := (*exec.ExitError)(nil); errors.As(err, &e) {
			text = string(e.Stderr)
		}
		t.Fatalf("%s: %v\n%s\n%s", program, err, text[max(0, len(text)-2000):], out)
	}
	return string(out)
}

// asker builds the program that tells what etcd can be set to.
func asker(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "flags")
	if err := build(filepath.Join("..", "..", "bench", "etcd"), program, "./flags"); err != nil {
		t.Fatal(err)
	}
	return program
}

// isListed tells that docs/compat.md names a flag or key among the differences.
func isListed(t *testing.T, name string) bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "compat.md"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(text), "`"+name+"`")
}

// Every flag, feature gate and key of the configuration file that etcd has is one here, with the same default, and none is
// here that etcd does not have, but for Trivet's own.
func TestFlags(t *testing.T) {
	rows := documented(t)
	byFlag, byKey := map[string]setting{}, map[string]setting{}
	for _, r := range rows {
		if r.flag != "" {
			byFlag[r.flag] = r
		}
		byKey[r.file] = r
	}
	// What the help shows beside the flags of the server's package: those of the main program, but for two in its head.
	names := map[string]bool{"config-file": true, "version": true}
	for line := range strings.Lines(output(t, systems.etcd.command[0], "--help")) {
		if strings.HasPrefix(line, "  --discovery ") || strings.HasPrefix(line, "  --discovery-proxy ") {
			continue // shown by mistake: etcd does not take them
		}
		if m := regexp.MustCompile(`^ {2}--([a-z0-9-]+)`).FindStringSubmatch(line); m != nil {
			names[m[1]] = true
		}
	}
	for line := range strings.Lines(output(t, asker(t))) {
		what, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		name, quoted, hasDefault := strings.Cut(rest, " ")
		switch what {
		case "flag":
			names[name] = true
			want, err := strconv.Unquote(quoted)
			if err != nil || !hasDefault {
				t.Fatalf("%s: %v", line, err)
			}
			if got := byFlag[name].value; got != want {
				t.Errorf("--%s: the default is %q, etcd's is %q", name, got, want)
			}
		case "key":
			if _, ok := byKey[name]; !ok && !isListed(t, name) {
				t.Errorf("the key %s of etcd's configuration file is not known, nor named in docs/compat.md", name)
			}
		case "gate":
			if !strings.Contains(byFlag["feature-gates"].help, name) {
				t.Errorf("the feature gate %s is not known", name)
			}
		}
	}
	for name := range names {
		if _, ok := byFlag[name]; !ok && !isListed(t, "--"+name) {
			t.Errorf("--%s of etcd is not known, nor named in docs/compat.md", name)
		}
	}
	var ignored []string // etcd takes them without showing them
	for _, r := range rows {
		switch {
		case r.flag == "" || names[r.flag]:
		case r.kind == "anything":
			ignored = append(ignored, "--"+r.flag)
		case !r.ours():
			t.Errorf("--%s is not a flag of etcd, and its help does not say so", r.flag)
		}
	}
	if out := output(t, systems.etcd.command[0], append(ignored, "--version")...); !strings.Contains(out, "etcd Version") || len(ignored) < 10 {
		t.Errorf("with %q etcd says %s", ignored, out)
	}
	for _, name := range hiddenKeys(t) {
		if _, ok := byKey[name]; !ok {
			t.Errorf("the key %s of etcd's configuration file is not known", name)
		}
	}
}

// hiddenKeys are those keys of etcd's configuration file that its package keeps to itself.
func hiddenKeys(t *testing.T) (names []string) {
	t.Helper()
	dir := strings.TrimSpace(output(t, "go", "list", "-C", filepath.Join("..", "..", "bench", "etcd"), "-m", "-f", "{{.Dir}}", "go.etcd.io/etcd/server/v3"))
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, "embed", "config.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string][]string{} // by struct
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, s := range g.Specs {
			ts, ok := s.(*ast.TypeSpec)
			if !ok || ts.Name.Name != "configJSON" && ts.Name.Name != "securityConfig" {
				continue
			}
			for _, field := range ts.Type.(*ast.StructType).Fields.List {
				tag, err := strconv.Unquote(field.Tag.Value)
				if err != nil {
					t.Fatal(err)
				}
				name, _, _ := strings.Cut(reflect.StructTag(tag).Get("json"), ",")
				fields[ts.Name.Name] = append(fields[ts.Name.Name], name)
			}
		}
	}
	for _, name := range fields["configJSON"] {
		if !strings.HasSuffix(name, "-transport-security") {
			names = append(names, name)
			continue
		}
		for _, inner := range fields["securityConfig"] {
			names = append(names, name+"."+inner)
		}
	}
	if len(names) < 20 {
		t.Fatalf("found only %q", names)
	}
	return names
}

// Every key of the configuration file is one that etcd takes.
func TestFileKeys(t *testing.T) {
	dir := t.TempDir()
	var files []string
	write := func(name string, content any) {
		text, err := json.Marshal(content) // which is YAML too
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, filepath.Join(dir, name))
		if err := os.WriteFile(files[len(files)-1], text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("unknown", map[string]any{"no-such-key": "x"})
	keys := []string{"no-such-key"}
	for _, r := range documented(t) {
		if r.file == "" || r.ours() {
			continue
		}
		v, ok := map[string]any{
			"true or false": r.value != "true", "duration": 7000000000, "milliseconds": 7, "whole number": 7, "whole number from 0": 7,
			"whole number from 0 (32 bits)": 7, "URLs": "http://127.0.0.1:7777", "text": "other", "list": "http://other:1", "list of NAME=true or false": "CompactHashCheck=true",
		}[r.kind]
		if !ok {
			t.Fatalf("%s has the kind %q", r.file, r.kind)
		}
		if r.file == "log-level" {
			v = "debug" // etcd ends at one that is none
		}
		for _, p := range slices.Backward(strings.Split(r.file, ".")) {
			v = map[string]any{p: v}
		}
		write(strconv.Itoa(len(keys)), v)
		keys = append(keys, r.file)
	}
	answers := strings.Split(strings.TrimSpace(output(t, asker(t), files...)), "\n")
	if len(answers) != len(keys) || answers[0] != "nothing" {
		t.Fatalf("%d answers for %d files; the first, whose key is none: %s", len(answers), len(keys), answers[0])
	}
	for i, a := range answers[1:] {
		if a == "nothing" { // an error is about the value, and so tells that the key is known
			t.Errorf("etcd takes nothing from the key %s", keys[i+1])
		}
	}
}

// The subcommands of etcd's binary have the same flags, of the same kinds and with the same defaults.
func TestSubcommandFlags(t *testing.T) {
	for _, command := range [][]string{{"gateway", "start", "--help"}, {"grpc-proxy", "start", "--help"}} {
		flags := func(program string) (all []string) {
			form := regexp.MustCompile(`^ +(-h, )?(--[a-z-]+)( [a-z0-9]+)? {2,}.*?(\(default [^)]*\))?$`)
			for line := range strings.Lines(output(t, program, command...)) {
				if m := form.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil {
					all = append(all, m[2]+m[3]+" "+m[4])
				}
			}
			return all
		}
		theirs, ours := flags(systems.etcd.command[0]), flags(systems.trivet.command[0])
		if len(theirs) < 7 || !slices.Equal(theirs, ours) {
			t.Errorf("%s: etcd's flags are\n%s\nhere they are\n%s", command[0], strings.Join(theirs, "\n"), strings.Join(ours, "\n"))
		}
	}
}
