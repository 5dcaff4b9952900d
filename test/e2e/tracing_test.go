package e2e

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/test/collector"
)

// TestTracing: at the full rate every call of a client that says nothing of traces is sent, at the latest when the member
// stops, and a collector that is away holds neither up. What spans look like is compared with etcd's in test/compat.
func TestTracing(t *testing.T) {
	away := "127.0.0.1:1"
	c := newCluster(t, 1)
	m := c.members[0]
	run := func(address, rate string) {
		t.Helper()
		m.args = append(m.args, "--enable-distributed-tracing", "--distributed-tracing-address="+address,
			"--distributed-tracing-service-name=keys", "--distributed-tracing-sampling-rate="+rate)
		c.start(m)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		client := c.client(m)
		for range 10 {
			if _, err := client.Put(ctx, "a", "b"); err != nil {
				t.Fatal(err)
			}
		}
		client.Close()
		m.p.signal(syscall.SIGTERM)
		if status := m.p.wait(time.Minute); status != 0 {
			t.Errorf("status %d", status)
		}
	}
	spans := collector.Start(t)
	run(spans.Address, "1000000")
	puts := 0
	for _, s := range spans.Spans() {
		if s.Name == "put" && s.Attributes["key"] == "a" && s.Resource["service.name"] == "keys" {
			puts++
		}
	}
	if puts != 10 {
		t.Errorf("%d spans of 10 puts came", puts)
	}
	run(away, "1000000")
	m.p.expect(time.Second, 0, "the last traces were not sent")
	none := collector.Start(t)
	run(none.Address, "0")
	if n := len(none.Spans()); n != 0 {
		t.Errorf("%d spans came at a rate of 0", n)
	}
}
