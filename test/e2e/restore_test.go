package e2e

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// command runs Trivet under one of its names and fails the test if that fails.
func command(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(trivet(t), args...).CombinedOutput(); err != nil {
		t.Fatalf("trivet %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestRestoreIntoThree restores one snapshot into three new members, at the addresses of those that it was saved from, as
// docs/operations.md has it. What was there is there under its revisions, and what came after the snapshot is not. Watchers from
// before it, those that ran all the while among them, are told that history is compacted; those from after it see everything that a writer
// puts, while a member is killed.
func TestRestoreIntoThree(t *testing.T) {
	c := startCluster(t, 3)
	began := time.Now()
	note := func(what string) { t.Logf("%5.1f s: %s", time.Since(began).Seconds(), what) }
	client := c.client()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	fill(t, client, "kept", 100, 1000, 4)
	want, err := client.Get(ctx, "kept/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "backup.db")
	command(t, "ctl", "--endpoints", c.members[1].clientURL, "snapshot", "save", file)
	saved := revisionOf(t, file)
	held := client.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(saved+1))
	fill(t, client, "gone", 200, 1000, 4)
	last := int64(0)
	for last < saved+200 {
		answer, open := <-held
		if err := answer.Err(); err != nil || !open {
			t.Fatalf("the watcher that runs all the while: %v, %v", open, err)
		}
		for _, event := range answer.Events {
			last = event.Kv.ModRevision
		}
	}

	note("all are killed")
	c.kill(c.members...)
	var initial []string
	for _, m := range c.members {
		initial = append(initial, m.name+"="+m.peerURL)
	}
	for _, m := range c.members {
		m.dir = filepath.Join(t.TempDir(), "restored")
		m.set("--data-dir", m.dir)
		command(t, "utl", "snapshot", "restore", file, "--data-dir", m.dir, "--name", m.name, "--initial-cluster", strings.Join(initial, ","),
			"--initial-cluster-token", "e2e", "--initial-advertise-peer-urls", m.peerURL)
	}
	c.start(c.members...)
	restored := c.agree(30 * time.Second)
	if restored <= last {
		t.Fatalf("the restored cluster is at revision %d, and watchers had seen %d", restored, last)
	}
	note("restored, and it serves")
	watcher := audit(t, "all members", c.client(), restored+1)
	l := startLoad(t, client, 8, 250)
	for _, m := range c.members {
		got, err := c.client(m).Get(ctx, "kept/", clientv3.WithPrefix())
		if err != nil || got.Count != want.Count {
			t.Fatalf("through %s: %d keys of %d, %v", m.name, got.Count, want.Count, err)
		}
		for i, pair := range got.Kvs {
			if pair.String() != want.Kvs[i].String() {
				t.Errorf("through %s: %s is of revision %d, want %d", m.name, pair.Key, pair.ModRevision, want.Kvs[i].ModRevision)
			}
		}
		if gone, err := c.client(m).Get(ctx, "gone/", clientv3.WithPrefix(), clientv3.WithCountOnly()); err != nil || gone.Count > 0 {
			t.Errorf("through %s: %d keys are newer than the snapshot, %v", m.name, gone.Count, err)
		}
		compacted(ctx, t, m.name+", from before the snapshot", c.client(m).Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(saved)), restored)
		compacted(ctx, t, m.name+", from what is gone", c.client(m).Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(last)), restored)
	}
	note("the members hold what they should")
	compacted(ctx, t, "all the while", held, restored)

	note("who watched all the while has been told")
	l.reach(30)
	dead := c.leader()
	c.kill(dead)
	l.reach(70)
	c.start(dead)
	l.reach(100)
	l.writers.Wait()
	note("all is written")
	revision := c.agree(30 * time.Second)
	for _, m := range c.members {
		l.verify(t, m.name, c.client(m))
	}
	watcher.reach(t, revision, 30*time.Second)
}

// compacted wants a watch to be told that its history is gone, up to the revision, before any event.
func compacted(ctx context.Context, t *testing.T, name string, watch clientv3.WatchChan, revision int64) {
	t.Helper()
	for {
		select {
		case answer, open := <-watch:
			if err := answer.Err(); errors.Is(err, rpctypes.ErrCompacted) && answer.CompactRevision == revision {
				return
			} else if err != nil || !open || len(answer.Events) > 0 {
				t.Errorf("a watch through %s: %v, %v, compacted %d, %d events; want it to be told of compaction at %d",
					name, open, err, answer.CompactRevision, len(answer.Events), revision)
				return
			}
		case <-ctx.Done():
			t.Fatalf("a watch through %s is told nothing", name)
		}
	}
}
