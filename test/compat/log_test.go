package compat

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/bench/cluster"
)

// logged are the lines that scripts and dashboards look for, by a part of their message, and the fields that they read.
var logged = []struct{ message, fields string }{
	{"starting an etcd server", "etcd-version go-version name data-dir initial-advertise-peer-urls listen-client-urls advertise-client-urls initial-cluster-token"},
	{"became leader at term", ""},
	{"elected leader", ""},
	{"now serving peer/client/metrics", "local-member-id initial-advertise-peer-urls listen-peer-urls advertise-client-urls listen-client-urls listen-metrics-urls"},
	{"ready to serve client requests", ""},
	{"serving client traffic insecurely; this is strongly discouraged!", "traffic address"},
	{"apply request took too long", "took expected-duration prefix request response"},
	{"finished scheduled compaction", "compact-revision took number-of-keys-compacted"},
	{"peer became active", "peer-id"},
	{"peer became inactive", "peer-id error"},
	{"received signal; shutting down", "signal"},
	{"closing etcd server", "name"},
	{"closed etcd server", "name"},
}

// logOf runs members, lets them do what is logged, and returns the lines of all.
func logOf(t *testing.T, s *target) []map[string]any {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := filepath.Join(t.TempDir(), s.name)
	extra := slices.Concat(s.extra, []string{"--log-level=info", "--warning-apply-duration=1ns"})
	members, err := cluster.Start(ctx, dir, memberCount, s.command, slices.Concat(flags, extra)...)
	if err != nil {
		t.Fatal(err)
	}
	defer members.Close()
	m := members.Members[0]
	conn, err := m.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	kvs := pb.NewKVClient(conn)
	for range 3 {
		if _, err := kvs.Put(ctx, &pb.PutRequest{Key: []byte("k")}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := kvs.Compact(ctx, &pb.CompactionRequest{Revision: 3, Physical: true}); err != nil {
		t.Fatal(err)
	}
	lines := func() (out []map[string]any) {
		for _, m := range members.Members {
			text, err := os.ReadFile(filepath.Join(dir, m.Name+".log"))
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(text)) {
				one := map[string]any{}
				if json.Unmarshal([]byte(line), &one) == nil {
					out = append(out, one)
				}
			}
		}
		return out
	}
	wait := func(part string) {
		t.Helper()
		for find(lines(), part) == nil {
			if ctx.Err() != nil {
				t.Fatalf("%s does not log %q", s.name, part)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	wait("serving client traffic") // some time after the first answer
	if err := members.Members[2].Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	members.Members[2].Wait()
	wait("peer became inactive")
	if err := m.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.Wait()
	return lines()
}

func find(lines []map[string]any, part string) map[string]any {
	for _, l := range lines {
		if text, ok := l["msg"].(string); ok && strings.Contains(text, part) {
			return l
		}
	}
	return nil
}

// TestLog: what is looked for in etcd's log is found in Trivet's.
func TestLog(t *testing.T) {
	etcd, trivet := logOf(t, systems.etcd), logOf(t, systems.trivet)
	for _, want := range logged {
		for name, lines := range map[string][]map[string]any{"etcd": etcd, "Trivet": trivet} {
			line := find(lines, want.message)
			if line == nil {
				t.Errorf("%s does not log %q", name, want.message)
				continue
			}
			for _, f := range strings.Fields(want.fields) {
				if _, ok := line[f]; !ok {
					t.Errorf("%s: %q has no %s, but %s", name, want.message, f, fmt.Sprint(slices.Sorted(maps.Keys(line))))
				}
			}
		}
	}
}
