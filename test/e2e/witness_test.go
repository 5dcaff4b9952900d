package e2e

import (
	"context"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// witness is what goes on beside that which a test does to the members: a writer that counts, readers of it through each member, and
// watchers of everything. No acknowledged number may be lost, no answer be stale, no watcher be shown a gap, a repetition or another order.
type witness struct {
	c        *cluster
	count    *counter
	watchers []*auditor
}

// watchers are auditors of everything from now on: one through all members, and one through each of them alone.
func (c *cluster) watchers(t *testing.T) []*auditor {
	t.Helper()
	start := retry(t, func(ctx context.Context) (*clientv3.GetResponse, error) { return c.client().Get(ctx, "start") })
	from := start.Header.Revision + 1
	all := []*auditor{audit(t, "all members", c.client(), from)}
	for _, m := range c.members {
		all = append(all, audit(t, m.name, c.client(m), from))
	}
	return all
}

// witness starts to write through the client, and to read and watch through all members.
func (c *cluster) witness(t *testing.T, writing *clientv3.Client) *witness {
	t.Helper()
	return &witness{c: c, watchers: c.watchers(t), count: startCounter(t, writing, c.members...)}
}

// seen waits until every watcher has been shown the revision.
func (w *witness) seen(t *testing.T, revision int64) {
	t.Helper()
	for _, a := range w.watchers {
		a.reach(t, revision, patience)
	}
}

// verify ends the writer and the readers, waits until the members agree, and fails the test if anything was wrong.
func (w *witness) verify(t *testing.T) {
	t.Helper()
	w.count.goesOn()
	w.count.verify()
	revision := w.c.agree(patience)
	least, most := w.count.acknowledged.Load(), w.count.tried.Load()
	for _, m := range w.c.members {
		client := w.c.client(m)
		got := retry(t, func(ctx context.Context) (*clientv3.GetResponse, error) { return client.Get(ctx, counterKey) })
		if n := valueOf(got); n < least || n > most || got.Kvs[0].Version != n {
			t.Errorf("through %s the count is %v; %d was acknowledged and %d tried", m.name, got.Kvs, least, most)
		}
	}
	w.seen(t, revision)
}
