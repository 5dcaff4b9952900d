package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestCompactsByItself: with a period of a second old revisions are refused as compacted soon after, again and again, and
// also after the leader was killed; the present stays readable on all members alike. Watchers that keep up are shown everything that a writer
// writes beside it, and one that was away with its member is told where history begins now, and goes on there.
func TestCompactsByItself(t *testing.T) {
	c := startCluster(t, 3, "--auto-compaction-retention=1s", "--auto-compaction-mode=periodic")
	compactsOnce := func(of *member, round int) {
		t.Helper()
		client := c.client(of)
		var first int64
		for i := range 20 {
			r, err := client.Put(t.Context(), "k", fmt.Sprintf("%d.%d", round, i))
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				first = r.Header.Revision
			}
		}
		for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
			_, err := client.Get(t.Context(), "k", clientv3.WithRev(first))
			if errors.Is(err, rpctypes.ErrCompacted) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if time.Since(begun) > time.Minute {
				t.Fatalf("round %d: revision %d is still readable after a minute", round, first)
			}
		}
		if r, err := client.Get(t.Context(), "k"); err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != fmt.Sprintf("%d.19", round) {
			t.Fatalf("round %d: the present is %v, %v", round, r, err)
		}
	}
	dead := c.leader()
	up := c.others(dead)
	start := retry(t, func(ctx context.Context) (*clientv3.GetResponse, error) { return c.client().Get(ctx, "start") })
	count := startCounter(t, c.client(up...), up...)
	var keepUp []*auditor
	for _, m := range up {
		keepUp = append(keepUp, audit(t, m.name, c.client(m), start.Header.Revision+1))
	}
	away := auditResuming(t, dead.name, c.client(dead), start.Header.Revision+1)
	for round := range 4 {
		compactsOnce(up[round%2], round)
		if round == 1 {
			c.kill(dead)
		}
	}
	c.start(dead)
	away.hasBeenTold(t)
	count.goesOn()
	count.verify()
	revision := c.agree(30 * time.Second)
	for _, w := range append(keepUp, away) {
		w.reach(t, revision, patience)
	}
}

// TestCompactsByRevision: in mode revision the leader looks every five minutes, as etcd's, and compacts what is older than the newest so many
// revisions, while a writer writes, readers read and watchers watch. A watcher that was away with its member is told where
// history begins now. In minutes of another clock server's test of the same name has it at every run.
func TestCompactsByRevision(t *testing.T) {
	if os.Getenv("TRIVET_E2E_LONG") == "" {
		t.Skip("it waits five minutes for the leader to look; TRIVET_E2E_LONG=1 runs it")
	}
	const keep = 500
	c := startCluster(t, 3, "--auto-compaction-mode=revision", fmt.Sprint("--auto-compaction-retention=", keep))
	away := c.others(c.leader())[0]
	up := c.others(away)
	first := retry(t, func(ctx context.Context) (*clientv3.PutResponse, error) { return c.client().Put(ctx, "k", "v") }).Header.Revision
	resuming := auditResuming(t, away.name, c.client(away), first+1)
	var keepUp []*auditor
	for _, m := range up {
		keepUp = append(keepUp, audit(t, m.name, c.client(m), first+1))
	}
	count := startCounter(t, c.client(up...), up...)
	count.goesOn()
	c.kill(away)
	client := c.client(up...)
	for begun := time.Now(); ; time.Sleep(time.Second) {
		now := retry(t, func(ctx context.Context) (*clientv3.GetResponse, error) { return client.Get(ctx, "k") })
		if time.Since(begun) > 8*time.Minute {
			t.Fatalf("revision %d of %d is still readable", first, now.Header.Revision)
		}
		if _, err := client.Get(t.Context(), "k", clientv3.WithRev(first)); errors.Is(err, rpctypes.ErrCompacted) {
			break
		} else if err != nil || now.Header.Revision < keep {
			continue
		}
		if _, err := client.Get(t.Context(), "k", clientv3.WithRev(now.Header.Revision-keep)); err != nil {
			t.Fatalf("of %d revisions the newest %d are not readable: %v", now.Header.Revision, keep, err)
		}
	}
	c.start(away)
	resuming.hasBeenTold(t)
	count.goesOn()
	count.verify()
	revision := c.agree(patience)
	for _, w := range append(keepUp, resuming) {
		w.reach(t, revision, patience)
	}
	hash := retry(t, func(ctx context.Context) (*clientv3.HashKVResponse, error) {
		return client.HashKV(ctx, up[0].clientURL, 0)
	})
	if compacted := hash.CompactRevision; compacted <= first || compacted > revision-keep {
		t.Errorf("history is compacted at %d; the newest %d revisions of %d are to be kept", compacted, keep, revision)
	}
	for _, m := range c.members {
		if _, err := c.client(m).Get(t.Context(), "k", clientv3.WithRev(revision-keep)); err != nil {
			t.Errorf("%s does not read %d revisions back: %v", m.name, keep, err)
		}
	}
}

// TestKilledWhileCompacting kills members while they delete compacted history, all of them and then the leader alone: the
// deletion goes on after the start, to its end and the space of what it deleted; nothing that is left is lost, members
// agree, and what was compacted is refused to readers and watchers.
func TestKilledWhileCompacting(t *testing.T) {
	c := startCluster(t, 3)
	l := startLoad(t, c.client(), 4, 200)
	const (
		keys      = 100
		overwrite = 200 // times
	)
	client := c.client()
	wrote := func(round int) (revision int64) {
		t.Helper()
		for i := range overwrite {
			var puts []clientv3.Op
			for k := range keys {
				puts = append(puts, clientv3.OpPut(fmt.Sprintf("over/%03d", k), fmt.Sprintf("%d %d %0200d", round, i, k)))
			}
			r, err := client.Txn(t.Context()).Then(puts...).Commit()
			if err != nil {
				t.Fatal(err)
			}
			revision = r.Header.Revision
		}
		return revision
	}
	deleted := func(m *member) float64 { return metric(t, m, "etcd_debugging_mvcc_db_compaction_keys_total") }
	wait := func(what string, of *member, until func() bool) {
		t.Helper()
		for begun := time.Now(); !until(); time.Sleep(5 * time.Millisecond) {
			if time.Since(begun) > time.Minute {
				t.Fatalf("%s: %s did not come", of.name, what)
			}
		}
	}
	for round, victims := range [][]*member{c.members, {c.leader()}} {
		compacted, first := wrote(round), victims[0]
		// With nothing left to delete from before, what is deleted from here on is this round's.
		if _, err := c.client(first).Compact(t.Context(), compacted-overwrite+1, clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
		before := deleted(first)
		if _, err := client.Compact(t.Context(), compacted); err != nil {
			t.Fatal(err)
		}
		wait("the deletion", first, func() bool { return deleted(first) > before })
		c.kill(victims...)
		c.start(victims...)
		for _, m := range victims {
			wait("the rest of the deletion", m, func() bool { return deleted(m) > 0 })
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		for w := range client.Watch(ctx, "over/", clientv3.WithPrefix(), clientv3.WithRev(compacted-1)) {
			if !errors.Is(w.Err(), rpctypes.ErrCompacted) || w.CompactRevision != compacted {
				t.Errorf("round %d: a watch from before is told %v, compacted at %d, want %d", round, w.Err(), w.CompactRevision, compacted)
			}
			break
		}
		cancel()
		for _, m := range c.members {
			if _, err := c.client(m).Get(t.Context(), "over/000", clientv3.WithRev(compacted-1)); !errors.Is(err, rpctypes.ErrCompacted) {
				t.Errorf("round %d: %s reads what was compacted: %v", round, m.name, err)
			}
			r, err := c.client(m).Get(t.Context(), "over/", clientv3.WithPrefix(), clientv3.WithRev(compacted))
			if err != nil || len(r.Kvs) != keys {
				t.Fatalf("round %d: %s reads %d keys at the compacted revision: %v", round, m.name, len(r.Kvs), err)
			}
			for k, kv := range r.Kvs {
				if want := fmt.Sprintf("%d %d %0200d", round, overwrite-1, k); string(kv.Value) != want || kv.Version != int64(overwrite*(round+1)) {
					t.Fatalf("round %d: %s has %q at version %d", round, m.name, kv.Value, kv.Version)
				}
			}
		}
	}
	l.writers.Wait()
	l.verify(t, "all", c.client())
	c.agree(time.Minute)
	for _, m := range c.members {
		wait("the space of what was deleted", m, func() bool {
			status, err := m.status()
			return err == nil && status.DbSize < 4<<20
		})
	}
}
