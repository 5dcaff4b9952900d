package e2e

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestLaggingMember keeps a member down while the others write and compact, and brings it back: the first time the
// others' logs still hold what it missed, the second time they do not, so it gets a checkpoint. A watcher of that
// member alone goes on over both.
// With etcd a member 5000 entries behind is sent everything (E#13913).
func TestLaggingMember(t *testing.T) {
	c := startCluster(t, 3, "--snapshot-catchup-entries", "50")
	leader := c.leader()
	late := c.others(leader)[0]
	client := c.client(c.others(late)...)

	start, err := client.Get(context.Background(), "start")
	if err != nil {
		t.Fatal(err)
	}
	watcher := audit(t, late.name, c.client(late), start.Header.Revision+1)

	c.kill(late)
	few := 2000
	if testing.Short() {
		few = 500
	}
	fill(t, client, "log", few, 100, 32)
	c.start(late)
	revision := c.agree(30 * time.Second)
	if got := checkpointsReceived(t, late); got != 0 {
		t.Errorf("a member that missed %d small writes was sent %v checkpoints instead of the log", few, got)
	}
	watcher.reach(t, revision, 30*time.Second)
	watcher.stop() // what it has not seen will be compacted

	c.kill(late)
	fill(t, client, "checkpoint", checkpointWrites, checkpointValue, 16)
	compact(t, client)
	c.start(late)
	c.agree(60 * time.Second)
	if got := checkpointsReceived(t, late); got < 1 {
		t.Errorf("a member that missed %d MiB was sent no checkpoint", checkpointWrites*checkpointValue>>20)
	}
	for _, name := range []string{"etcd_snap_db_save_total_duration_seconds_count", "etcd_snap_db_fsync_duration_seconds_count"} {
		if metric(t, late, name) < 1 {
			t.Errorf("%s says nothing of the checkpoint", name)
		}
	}
	for _, name := range []string{"etcd_network_snapshot_receive_inflights_total", "etcd_server_snapshot_apply_in_progress_total"} {
		if got := metric(t, late, name); got != 0 {
			t.Errorf("%s is %v after the checkpoint", name, got)
		}
	}

	// The member that was brought up from files is a full member: it takes writes, shows them to watchers, and survives
	// the loss of another.
	alone := c.client(late)
	now, err := alone.Get(context.Background(), "start")
	if err != nil {
		t.Fatal(err)
	}
	again := audit(t, late.name, alone, now.Header.Revision+1)
	c.kill(leader)
	fill(t, alone, "after", 50, 100, 4)
	c.start(leader)
	again.reach(t, c.agree(30*time.Second), 10*time.Second)
	c.kill(c.members...)
	c.start(c.members...)
	c.agree(30 * time.Second)
}

// The second case writes this many values of this size: several times what a member applies before it makes its state
// durable and cuts its log, and more entries than it keeps for those that were away.
const (
	checkpointWrites = 250
	checkpointValue  = 1 << 20
)

// fill puts so many keys with incompressible values of the size, each until it is acknowledged.
func fill(t *testing.T, client *clientv3.Client, prefix string, keys, size, writers int) {
	t.Helper()
	value := make([]byte, size)
	for i := range value {
		value[i] = byte(rand.Uint32())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var next, done atomic.Int64
	errs := make(chan error, writers)
	for range writers {
		go func() {
			for i := int(next.Add(1)); i <= keys; i = int(next.Add(1)) {
				for {
					once, cancel := context.WithTimeout(ctx, 5*time.Second)
					// Few names, so that most of what is written is garbage once history is compacted.
					_, err := client.Put(once, fmt.Sprintf("%s/%d", prefix, i%100), string(value))
					cancel()
					if err == nil {
						break
					}
					if ctx.Err() != nil {
						errs <- err
						return
					}
				}
				done.Add(1)
			}
			errs <- nil
		}()
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Fatalf("%s: %d of %d written, then: %v", prefix, done.Load(), keys, err)
		}
	}
}

// compact forgets all history up to now.
func compact(t *testing.T, client *clientv3.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	now, err := client.Get(ctx, "start")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
}

// checkpointsReceived asks the member's metrics how many snapshots it has been sent.
func checkpointsReceived(t *testing.T, m *member) float64 {
	t.Helper()
	return metric(t, m, "etcd_network_snapshot_receive_success")
}

// metric sums the samples of a metric over its labels; one that does not exist counts 0.
func metric(t *testing.T, m *member, name string) float64 {
	t.Helper()
	answer, err := (&http.Client{Timeout: time.Minute}).Get(m.clientURL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	sum := 0.0
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		rest, is := strings.CutPrefix(line, name)
		if !is || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		value, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		if err != nil {
			t.Fatalf("metric %q: %v", line, err)
		}
		sum += value
	}
	return sum
}
