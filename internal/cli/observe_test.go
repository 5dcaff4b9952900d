package cli

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/metrics"
)

// What takes long is told in etcd's words, once for each time, and what does not is not.
func TestSlowIsLogged(t *testing.T) {
	var log bytes.Buffer
	m := metrics.New(metrics.Identity{Version: "3.7.3", Product: "test"})
	o := observeMember(m, slog.New(slog.NewTextHandler(&log, nil)), 100*time.Millisecond, 300*time.Millisecond)
	out := &fsm.Outcome{Ran: []fsm.Ran{{Name: "put"}, {Name: "txn"}, {Name: "put", Refused: kv.ErrLeaseNotFound}}}
	o.LogSync(time.Second)
	o.Applied(out, 100*time.Millisecond)
	if log.Len() > 0 {
		t.Errorf("nothing was slow:\n%s", log.String())
	}
	o.LogSync(2 * time.Second)
	o.Applied(out, 101*time.Millisecond)
	o.Replica.HeartbeatLate(time.Second)
	o.Replica.ReadRetried(900 * time.Millisecond)
	o.CompactStep(5, time.Millisecond)
	o.CompactStep(2, time.Millisecond)
	o.Compacted(9, time.Second)
	o.CompactStep(1, time.Millisecond)
	o.Compacted(10, time.Second)
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	want := []string{
		`msg="slow fdatasync" took=2s expected-duration=1s`,
		`msg="apply request took too long" took=101ms expected-duration=100ms prefix="" request="batch:<put:2 txn:1>" response=""`,
		`msg="leader failed to send out heartbeat on time; took too long, leader is overloaded likely from slow disk" heartbeat-interval=300ms expected-duration=600ms exceeded-duration=1s`,
		`msg="waiting for ReadIndex response took too long, retrying" retry-timeout=900ms`,
		`msg="finished scheduled compaction" compact-revision=9 took=1s number-of-keys-compacted=7`,
		`msg="finished scheduled compaction" compact-revision=10 took=1s number-of-keys-compacted=1`,
	}
	if len(lines) != len(want) {
		t.Fatalf("%d lines, want %d:\n%s", len(lines), len(want), log.String())
	}
	for i := range want {
		if !strings.HasSuffix(lines[i], want[i]) {
			t.Errorf("line %d:\n got %s\nwant %s", i+1, lines[i], want[i])
		}
	}
	families, err := m.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]float64{}
	for _, f := range families {
		counts[f.GetName()] = f.Metric[0].GetCounter().GetValue()
	}
	for _, name := range []string{"etcd_server_slow_apply_total", "etcd_server_slow_read_indexes_total", "etcd_server_heartbeat_send_failures_total"} {
		if counts[name] != 1 {
			t.Errorf("%s is %v", name, counts[name])
		}
	}
}

// Commands that etcd does not know are not shown as requests of a kind without a name.
func TestOwnCommandsAreNotEtcds(t *testing.T) {
	m := metrics.New(metrics.Identity{Version: "3.7.3", Product: "test"})
	observeApplied(m, &fsm.Outcome{Ran: []fsm.Ran{{Name: "mark"}, {Name: "put"}, {Name: "member_add"}}}, time.Millisecond)
	families, err := m.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "etcd_server_apply_duration_seconds" {
			continue
		}
		if len(f.Metric) != 1 || !strings.Contains(f.String(), `value:"Put"`) {
			t.Errorf("%v", f)
		}
		return
	}
	t.Error("nothing was counted")
}

// A peer's metric is looked up once, also by many at once, and no peer gets another's.
func TestPerPeer(t *testing.T) {
	var made atomic.Int64
	of := perPeer(func(labels ...string) string {
		made.Add(1)
		return labels[0]
	})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range uint64(400) {
				if id := 0xa0 + i%4; of(id) != fmt.Sprintf("%x", id) {
					t.Errorf("%x has that of %s", id, of(id))
				}
			}
		})
	}
	all.Wait()
	if n := made.Load(); n < 4 || n > 400 {
		t.Errorf("looked up %d times", n)
	}
}
