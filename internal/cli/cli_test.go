package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/config"
)

// programs are what this binary is when it is called by their names.
var programs = map[string]func(){"trivet": program, "etcd": program, "etcdctl": program, "etcdutl": program}

func program() { os.Exit(Main(os.Args, os.Stdin, os.Stdout, os.Stderr)) }

func TestMain(m *testing.M) { testscript.Main(m, programs) }

// The scripts run the program as people do.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:      "testdata/script",
		Deadline: time.Now().Add(time.Minute),
		Setup: func(e *testscript.Env) error {
			for _, name := range []string{"CLIENT", "PEER", "OTHER"} {
				port, l := freePort(t)
				l.Close()
				e.Setenv(name, fmt.Sprintf("http://127.0.0.1:%d", port))
			}
			port, l := freePort(t)
			e.Defer(func() { l.Close() })
			e.Setenv("TAKEN", fmt.Sprintf("http://127.0.0.1:%d", port))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await":    await,
			"get":      getURL,
			"snapshot": snapshotTree,
			"jsonhas":  jsonHas,
		},
	})
}

func freePort(t testing.TB) (int, net.Listener) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l.Addr().(*net.TCPAddr).Port, l
}

// getURL waits until a URL answers 200 and, if one is given, holds a text.
func getURL(ts *testscript.TestScript, neg bool, args []string) {
	last := errors.New("never asked")
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var body []byte
		r, err := http.Get(args[0])
		if err == nil {
			body, err = io.ReadAll(r.Body)
			r.Body.Close()
			if err == nil && r.StatusCode != http.StatusOK {
				err = errors.New(r.Status)
			}
		}
		if last = err; last == nil && len(args) > 1 && !strings.Contains(string(body), args[1]) {
			last = fmt.Errorf("no %q in %s", args[1], body)
		}
		if last == nil {
			return
		}
	}
	ts.Fatalf("%s: %v", args[0], last)
}

// snapshotTree writes down every file under a folder with its content's length and sum, and when it was changed last.
func snapshotTree(ts *testscript.TestScript, neg bool, args []string) {
	var b bytes.Buffer
	err := filepath.Walk(ts.MkAbs(args[0]), func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %d %x %v %d\n", path, info.Size(), sha256.Sum256(content), info.Mode(), info.ModTime().UnixNano())
		return err
	})
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), b.Bytes(), 0o644))
}

// jsonHas makes sure that every line of a file is JSON and that one of them holds a text.
func jsonHas(ts *testscript.TestScript, neg bool, args []string) {
	found := false
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		if !json.Valid([]byte(line)) {
			ts.Fatalf("not JSON: %s", line)
		}
		found = found || strings.Contains(line, args[1])
	}
	if found == neg {
		ts.Fatalf("%q found: %v", args[1], found)
	}
}

// await waits until the file of a process that runs has the text.
func await(ts *testscript.TestScript, neg bool, args []string) {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		switch {
		case err == nil && strings.Contains(string(b), args[1]) != neg:
			return
		case time.Now().After(deadline):
			ts.Fatalf("%q did not come: %v", args[1], err)
		}
	}
}

func TestLogLines(t *testing.T) {
	var b bytes.Buffer
	l := slog.New(newLogHandler(&b, slog.LevelInfo, false))
	l.Debug("not shown")
	l.With("member", "m1").Info("a \"quoted\" message\n", "took", 1500*time.Millisecond, "error", errors.New("no"), "n", 7)
	l.WithGroup("disk").Warn("bare")
	l.Log(t.Context(), config.LevelFatal, "the end")
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines: %s", len(lines), b.String())
	}
	if !strings.HasPrefix(lines[0], `{"level":"info","ts":"2`) || !strings.Contains(lines[0], `"caller":"cli/cli_test.go:`) ||
		!strings.HasSuffix(lines[0], `"msg":"a \"quoted\" message\n","member":"m1","took":"1.5s","error":"no","n":7}`) {
		t.Errorf("first: %s", lines[0])
	}
	if !strings.HasSuffix(lines[1], `"msg":"bare"}`) || !strings.HasPrefix(lines[2], `{"level":"fatal"`) {
		t.Errorf("others: %q", lines[1:])
	}
	for _, line := range lines {
		var v struct{ Level, TS, Caller, Msg string }
		if err := json.Unmarshal([]byte(line), &v); err != nil || v.Caller == "" {
			t.Errorf("%s: %v", line, err)
		}
		if _, err := time.Parse("2006-01-02T15:04:05.000000Z0700", v.TS); err != nil {
			t.Error(err)
		}
	}
	b.Reset()
	slog.New(newLogHandler(&b, slog.LevelInfo, true)).Info("hello", "n", 1)
	if parts := strings.Split(strings.TrimSpace(b.String()), "\t"); len(parts) != 5 || parts[3] != "hello" || parts[4] != `{"n":1}` {
		t.Errorf("console: %q", parts)
	}
}

func TestDevPorts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	open := func(fresh bool, nodes int) (*devDir, error) {
		d, err := openDevDir(dir, fresh, nodes)
		if err == nil {
			d.close()
		}
		return d, err
	}
	// Whatever runs on this machine, the plan names free ports.
	d, err := open(false, 0)
	if err != nil {
		t.Fatal(err)
	}
	plan := d.plan
	if len(plan.Members) != 3 {
		t.Fatalf("%d members", len(plan.Members))
	}
	again, err := open(false, 0)
	if err != nil || !slices.Equal(again.plan.Members, plan.Members) || again.plan.Token != plan.Token {
		t.Fatalf("the next run has another plan: %v %+v %+v", err, again, plan)
	}
	if _, err := open(false, 5); err == nil || !strings.Contains(err.Error(), "--nodes=5: ") || !strings.Contains(err.Error(), "holds a cluster of 3") {
		t.Errorf("another number of members: %v", err)
	}
	client, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", plan.Members[1].ClientPort))
	if err != nil {
		t.Fatal(err)
	}
	moved, err := open(false, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range moved.plan.Members {
		was := plan.Members[i]
		if m.PeerPort != was.PeerPort || (m.ClientPort == was.ClientPort) != (i != 1) || !portFree(m.ClientPort) {
			t.Errorf("with %s's client port taken the ports are %+v, before %+v", plan.Members[1].Name, m, was)
		}
	}
	client.Close()
	if again, err := open(false, 0); err != nil || !slices.Equal(again.plan.Members, plan.Members) {
		t.Errorf("with the port free again: %v %+v", err, again.plan.Members)
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", plan.Members[1].PeerPort))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := open(false, 0); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("port %d on 127.0.0.1 is taken", plan.Members[1].PeerPort)) {
		t.Errorf("a remembered port is taken: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "m1", "log"), 0o755); err != nil {
		t.Fatal(err)
	}
	keep := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(keep, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	d, err = open(true, 1)
	if err != nil || len(d.plan.Members) != 1 || d.plan.Token == plan.Token {
		t.Errorf("fresh: %v %+v", err, d)
	}
	if _, err := os.Stat(filepath.Join(dir, "m1")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("fresh left m1 there: %v", err)
	}
	if _, err := os.Stat(keep); err != nil {
		t.Errorf("fresh deleted what is not its own: %v", err)
	}
	one, err := openDevDir(dir, false, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer one.close()
	if _, err := open(false, 0); err == nil || !strings.Contains(err.Error(), "another trivet dev runs in it") {
		t.Errorf("two at once: %v", err)
	}
}

func TestDevRefusesForeignDirectory(t *testing.T) {
	dir := t.TempDir()
	keep := filepath.Join(dir, "m1.log")
	if err := os.WriteFile(keep, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := openDevDir(dir, true, 0); err == nil || !strings.Contains(err.Error(), "holds something else") {
		t.Error(err)
	}
	if b, err := os.ReadFile(keep); err != nil || string(b) != "precious" {
		t.Errorf("%q %v", b, err)
	}
}

func TestMemberEnvironment(t *testing.T) {
	got := memberEnvironment([]string{"ETCD_NAME=x", "HOME=/h", "NOTIFY_SOCKET=/s", "ETCDCTL_API=3"})
	if !slices.Equal(got, []string{"HOME=/h", "ETCDCTL_API=3"}) {
		t.Error(got)
	}
}

// Every command has etcd's name in the metrics.
func TestEtcdOps(t *testing.T) {
	for _, c := range []command.Command{
		{Put: &command.Put{}}, {DeleteRange: &command.DeleteRange{}}, {Txn: &command.Txn{}}, {Compact: &command.Compact{}},
		{LeaseGrant: &command.LeaseGrant{}}, {LeaseRevoke: &command.LeaseRevoke{}}, {LeaseCheckpoint: &command.LeaseCheckpoint{}},
		{MemberPublish: &command.MemberPublish{}},
	} {
		if etcdOps[c.Name()] == "" {
			t.Errorf("%s has no name of etcd's", c.Name())
		}
	}
}

func TestSnake(t *testing.T) {
	for in, want := range map[string]string{"ID": "id", "PrevKV": "prev_kv", "DeleteRange": "delete_range", "TTL": "ttl", "ClientURLs": "client_urls", "MinModRevision": "min_mod_revision", "Key": "key"} {
		if got := snake(in); got != want {
			t.Errorf("snake(%s) = %s, want %s", in, got, want)
		}
	}
}
