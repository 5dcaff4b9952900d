package e2e

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// devTable is what `trivet dev --json` prints.
type devTable struct {
	DataDir   string `json:"data_dir"`
	Endpoints string `json:"endpoints"`
	Members   []struct {
		Name      string `json:"name"`
		ClientURL string `json:"client_url"`
		PeerURL   string `json:"peer_url"`
		PID       int    `json:"pid"`
		Role      string `json:"role"`
	} `json:"members"`
}

// startDev runs `trivet dev --json` and returns the process and the table it printed.
func startDev(t *testing.T, args ...string) (*process, devTable) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "table.json")
	// Standard output holds the table and nothing else, so it goes to a file of its own.
	p := spawn(t, "dev", []string{"OUT=" + out}, "sh", append([]string{"-c", `exec "$0" dev --json "$@" > "$OUT"`, trivet(t)}, args...)...)
	var table devTable
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		data, err := os.ReadFile(out)
		if err == nil && json.Unmarshal(data, &table) == nil {
			return p, table
		}
		select {
		case <-p.done:
			t.Fatalf("dev ended before it printed its table: %v\n%s", p.err, tail(p.output(), 40))
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("dev printed no table within 40 s, but: %s\n%s", data, tail(p.output(), 40))
		}
	}
}

func devClient(t *testing.T, table devTable) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(table.Endpoints, ","), DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// TestDev starts a cluster with one command, stops it as Ctrl-C does, and finds the data again at the next start, at the
// same addresses.
func TestDev(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	p, first := startDev(t, "--data-dir", dir)
	if len(first.Members) != 3 {
		t.Fatalf("dev started %d members, want 3: %+v", len(first.Members), first)
	}
	leaders, pids := 0, map[int]bool{}
	for _, m := range first.Members {
		if m.Role == "leader" {
			leaders++
		}
		pids[m.PID] = true
		if err := syscall.Kill(m.PID, 0); err != nil {
			t.Errorf("%s is said to be process %d: %v", m.Name, m.PID, err)
		}
	}
	if leaders != 1 || len(pids) != 3 || pids[p.cmd.Process.Pid] {
		t.Errorf("want one leader and three processes beside dev's own: %+v", first)
	}
	if _, err := devClient(t, first).Put(ctx, "kept", "between runs"); err != nil {
		t.Fatal(err)
	}
	p.signal(os.Interrupt)
	if status := p.wait(10 * time.Second); status != 0 {
		t.Fatalf("dev ended with status %d after Ctrl-C:\n%s", status, tail(p.output(), 40))
	}
	for _, m := range first.Members {
		if syscall.Kill(m.PID, 0) == nil {
			t.Errorf("%s (process %d) outlived dev", m.Name, m.PID)
		}
	}

	began := time.Now()
	p, second := startDev(t, "--data-dir", dir)
	t.Logf("ready again after %v", time.Since(began).Round(time.Millisecond))
	if first.Endpoints != second.Endpoints {
		t.Errorf("endpoints were %s and are now %s", first.Endpoints, second.Endpoints)
	}
	got, err := devClient(t, second).Get(ctx, "kept")
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "between runs" {
		t.Errorf("the key that was written before is %v", got.Kvs)
	}
	if status := p.stop(10 * time.Second); status != 0 {
		t.Fatalf("dev ended with status %d after SIGTERM", status)
	}

	p, third := startDev(t, "--data-dir", dir, "--fresh", "--nodes", "1")
	if len(third.Members) != 1 {
		t.Fatalf("dev --nodes 1 started %d members", len(third.Members))
	}
	if got, err = devClient(t, third).Get(ctx, "kept"); err != nil || len(got.Kvs) != 0 {
		t.Errorf("a fresh cluster holds %v, %v", got, err)
	}
	if status := p.stop(10 * time.Second); status != 0 {
		t.Fatalf("dev ended with status %d after SIGTERM", status)
	}
}

// TestDevWithAuthentication starts a cluster again that answers nothing without a user.
func TestDevWithAuthentication(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p, table := startDev(t, "--data-dir", dir, "--nodes", "1")
	client := devClient(t, table)
	if _, err := client.UserAdd(ctx, "root", "secret"); err != nil {
		t.Fatal(err)
	}
	if _, err := client.UserGrantRole(ctx, "root", "root"); err != nil {
		t.Fatal(err)
	}
	if _, err := client.AuthEnable(ctx); err != nil {
		t.Fatal(err)
	}
	if status := p.stop(10 * time.Second); status != 0 {
		t.Fatalf("dev ended with status %d after SIGTERM", status)
	}
	p, table = startDev(t, "--data-dir", dir, "--nodes", "1")
	if table.Members[0].Role != "running" {
		t.Errorf("the member is said to be %q, want running", table.Members[0].Role)
	}
	if status := p.stop(10 * time.Second); status != 0 {
		t.Fatalf("dev ended with status %d after SIGTERM", status)
	}
}
