package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// readmeMark stands alone on the line before a fenced block of the README whose lines this test runs.
const readmeMark = "<!-- e2e -->"

// fromEtcd are the lines that people bring along from etcd, and what their output must hold. 2379 stands for the first
// member's port.
var fromEtcd = []struct{ line, want string }{
	{`etcdctl put mykey "myvalue"`, "OK"},
	{`etcdctl get mykey`, "myvalue"},
	{`etcdctl get "" --prefix`, "mykey"},
	{`etcdctl endpoint health --cluster`, "is healthy"},
	{`etcdctl member list`, "started"},
	{`curl http://127.0.0.1:2379/v3/kv/put -X POST -d '{"key":"Zm9v","value":"YmFy"}'`, `"revision"`},
	{`curl http://127.0.0.1:2379/v3/kv/range -X POST -d '{"key":"Zm9v"}'`, `"value":"YmFy"`},
	{`curl http://127.0.0.1:2379/readyz?verbose`, "[+]"},
	{`curl http://127.0.0.1:2379/livez`, "ok"},
	{`curl http://127.0.0.1:2379/health`, `"health":"true"`},
	{`curl http://127.0.0.1:2379/version`, `"etcdserver":"3.7.`},
	{`curl http://127.0.0.1:2379/metrics`, "etcd_server_has_leader 1"},
}

// TestReadmeCommands runs the lines of the README that are marked for it, and those that etcd's users know, as they
// stand, against a cluster made by `trivet dev`: the binary is on the path as trivet and etcdctl.
func TestReadmeCommands(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(root(), "README.md"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	_, table := startDev(t, "--data-dir", filepath.Join(t.TempDir(), "data"))
	shell := newShell(t, table)
	for _, c := range fromEtcd {
		if out, err := shell.run(c.line); err != nil || !strings.Contains(out, c.want) {
			t.Errorf("%s\ngave %v and, without %q:\n%s", c.line, err, c.want, out)
		}
	}
	lines := marked(string(readme))
	if len(lines) == 0 {
		t.Errorf("README.md has no block marked %s", readmeMark)
	}
	for _, line := range lines {
		out, err := shell.run(line)
		if err != nil {
			t.Errorf("README: %s\ngave %v and:\n%s", line, err, out)
		}
		if strings.HasPrefix(line, "curl ") && (strings.Contains(out, `"error"`) || strings.Contains(out, "404 page not found")) {
			t.Errorf("README: %s\nwas answered with an error:\n%s", line, out)
		}
	}
}

// marked returns the lines of the marked blocks, but for comments and blank lines. A prompt ("$ ") is taken off; lines
// that end in a backslash go on.
func marked(text string) []string {
	var lines []string
	next, inside, partial := false, false, ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.TrimSpace(line) == readmeMark:
			next = true
		case strings.HasPrefix(line, "```"):
			inside, next = next && !inside, false
		case inside:
			line = partial + strings.TrimPrefix(strings.TrimSpace(line), "$ ")
			if cut, on := strings.CutSuffix(line, `\`); on {
				partial = cut
				continue
			}
			partial = ""
			if line != "" && !strings.HasPrefix(line, "#") {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

func TestMarked(t *testing.T) {
	got := marked("a\n```sh\nnot this\n```\n" + readmeMark + "\n```sh\n$ one\n# comment\n\ntwo \\\n  more\n```\nb\n```\nnor this\n```\n")
	if want := "one|two more"; strings.Join(got, "|") != want {
		t.Fatalf("marked lines are %q, want %q", got, want)
	}
}

// shell runs lines as a user's shell would.
type shell struct {
	dir  string
	env  []string
	port string // the first member's client port, for 2379
}

func newShell(t *testing.T, table devTable) *shell {
	t.Helper()
	bin := t.TempDir()
	link := func(target, name string) {
		if err := os.Symlink(target, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	link(trivet(t), "trivet")
	link(trivet(t), "etcdctl")
	if _, err := exec.LookPath("curl"); err != nil {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		link(self, "curl")
	}
	first := table.Members[0].ClientURL
	return &shell{
		dir:  t.TempDir(),
		env:  append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "ETCDCTL_ENDPOINTS="+table.Endpoints),
		port: first[strings.LastIndexByte(first, ':')+1:],
	}
}

// run runs one line for at most 20 seconds and returns what it printed.
func (s *shell) run(line string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	line = strings.NewReplacer("HOST:2379", "127.0.0.1:"+s.port, "127.0.0.1:2379", "127.0.0.1:"+s.port, "localhost:2379", "127.0.0.1:"+s.port).Replace(line)
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Dir, cmd.Env = s.dir, s.env
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// curl is as much of curl as the README's lines need, for machines without it: the test binary runs as curl through a
// link of that name.
func curl(args []string) int {
	method, body, url := "", "", ""
	for i := 0; i < len(args); i++ {
		value := func() string {
			if i++; i < len(args) {
				return args[i]
			}
			return ""
		}
		switch args[i] {
		case "-X", "--request":
			method = value()
		case "-d", "--data":
			body = value()
		case "-H", "--header":
			value()
		case "-s", "-S", "-sS", "-L", "-N":
		default:
			if strings.HasPrefix(args[i], "-") {
				fmt.Fprintln(os.Stderr, "curl in Go: unknown option", args[i])
				return 2
			}
			url = args[i]
		}
	}
	switch {
	case method == "" && body != "":
		method = http.MethodPost
	case method == "":
		method = http.MethodGet
	}
	if !strings.Contains(url, "://") {
		url = "http://" + url
	}
	request, err := http.NewRequest(method, url, bytes.NewBufferString(body))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded") // as curl -d says
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 7
	}
	defer answer.Body.Close()
	if _, err := io.Copy(os.Stdout, answer.Body); err != nil {
		return 18
	}
	return 0
}
