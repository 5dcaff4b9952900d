package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// load is what concurrent writers put, and what they were promised.
type load struct {
	t      *testing.T
	client *clientv3.Client
	total  int
	each   int // keys per writer

	acknowledged atomic.Int64
	retries      atomic.Int64
	newest       atomic.Int64   // the highest revision that was acknowledged
	revisions    [][]int64      // of writer, of key: the revision of the acknowledged put, 0 before
	writers      sync.WaitGroup // done when all keys are written, or the test has failed
	failed       chan struct{}
	failOnce     sync.Once
	fault        string
}

func loadKey(writer, i int) string   { return fmt.Sprintf("load/%03d/%06d", writer, i) }
func loadValue(writer, i int) string { return fmt.Sprintf("%064d", writer*1_000_000+i) }

func startLoad(t *testing.T, client *clientv3.Client, writers, each int) *load {
	l := &load{t: t, client: client, total: writers * each, each: each, failed: make(chan struct{})}
	l.revisions = make([][]int64, writers)
	for w := range writers {
		l.revisions[w] = make([]int64, each)
		l.writers.Go(func() { l.write(w) })
	}
	return l
}

// write puts the writer's keys one after the other, each until it is acknowledged.
func (l *load) write(w int) {
	newest := int64(0) // as this writer saw it
	for i := range l.each {
		for patience := time.Now().Add(60 * time.Second); ; {
			// What every writer was told before this call began is older than what this call makes.
			before := max(newest, l.newest.Load())
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			answer, err := l.client.Put(ctx, loadKey(w, i), loadValue(w, i))
			cancel()
			if err == nil {
				newest = answer.Header.Revision
				if newest <= before {
					l.fail("put of %s was given revision %d, but %d was acknowledged before it began", loadKey(w, i), newest, before)
					return
				}
				l.revisions[w][i] = newest
				break
			}
			l.retries.Add(1)
			if time.Now().After(patience) {
				l.fail("put of %s fails for a minute: %v", loadKey(w, i), err)
				return
			}
			select {
			case <-l.failed:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
		for {
			was := l.newest.Load()
			if newest <= was || l.newest.CompareAndSwap(was, newest) {
				break
			}
		}
		l.acknowledged.Add(1)
	}
}

func (l *load) fail(format string, args ...any) {
	l.failOnce.Do(func() {
		l.fault = fmt.Sprintf(format, args...)
		close(l.failed)
	})
}

// reach waits until the share of all writes, in percent, is acknowledged.
func (l *load) reach(percent int) {
	l.t.Helper()
	last, since := int64(-1), time.Now()
	for {
		now := l.acknowledged.Load()
		if now*100 >= int64(l.total)*int64(percent) {
			return
		}
		if now > last {
			last, since = now, time.Now()
		}
		if time.Since(since) > 60*time.Second {
			l.t.Fatalf("no write was acknowledged for a minute, %d of %d are", now, l.total)
		}
		select {
		case <-l.failed:
			l.t.Fatal(l.fault)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// verify reads every key through one member and holds it against what was acknowledged.
func (l *load) verify(t *testing.T, name string, client *clientv3.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	found, wrong := 0, 0
	complain := func(format string, args ...any) {
		if wrong++; wrong <= 10 {
			t.Errorf("through "+name+": "+format, args...)
		}
	}
	from, revision := "load/", int64(0)
	seen := map[string]bool{}
	for {
		page, err := client.Get(ctx, from, clientv3.WithRange("load0"), clientv3.WithLimit(5000), clientv3.WithRev(revision))
		if err != nil {
			t.Fatalf("through %s: read from %q: %v", name, from, err)
		}
		if revision == 0 {
			revision = page.Header.Revision
			if newest := l.newest.Load(); revision < newest {
				complain("the store is at revision %d, but %d was acknowledged", revision, newest)
			}
		}
		for _, pair := range page.Kvs {
			found++
			key := string(pair.Key)
			seen[key] = true
			parts := strings.Split(key, "/")
			w, _ := strconv.Atoi(parts[1])
			i, _ := strconv.Atoi(parts[2])
			if string(pair.Value) != loadValue(w, i) {
				complain("%s holds %q", key, pair.Value)
			}
			// A put whose answer was lost is repeated, and the earlier attempt may take effect before the later or, rarely,
			// after it. Neither undoes the one that was acknowledged.
			if pair.CreateRevision > l.revisions[w][i] || pair.ModRevision < l.revisions[w][i] {
				complain("%s was created at %d and changed at %d, but its last put was acknowledged at %d", key, pair.CreateRevision, pair.ModRevision, l.revisions[w][i])
			}
		}
		if !page.More {
			break
		}
		from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
	}
	if found != l.total {
		for w := range l.revisions {
			for i := range l.each {
				if !seen[loadKey(w, i)] {
					complain("%s, acknowledged at revision %d, is lost", loadKey(w, i), l.revisions[w][i])
				}
			}
		}
		complain("found %d keys of %d", found, l.total)
	}
}

// verifyUpTo finds what was acknowledged up to the revision, and not what was written last.
func (l *load) verifyUpTo(t *testing.T, client *clientv3.Client, revision int64) {
	t.Helper()
	got := retry(t, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return client.Get(ctx, "load/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	})
	there := map[string]bool{}
	for _, pair := range got.Kvs {
		there[string(pair.Key)] = true
	}
	kept := 0
	for w := range l.revisions {
		for i, acknowledged := range l.revisions[w] {
			if acknowledged > revision {
				continue
			}
			if kept++; !there[loadKey(w, i)] {
				t.Errorf("%s, acknowledged at revision %d, is lost, but the member had shown revision %d", loadKey(w, i), acknowledged, revision)
			}
		}
		if last := loadKey(w, l.each-1); there[last] {
			t.Errorf("%s was written after the member went down, and is there", last)
		}
	}
	if kept == 0 {
		t.Error("nothing was acknowledged before the member went down")
	}
	t.Logf("of %d writes %d had to be there, %d are", l.total, kept, len(there))
}

// TestLoadAndKill loads keys with many writers, kills each member in turn and then all three without a warning, and
// finds every acknowledged write; watchers and leases live through all of it.
func TestLoadAndKill(t *testing.T) {
	writers, each := 200, 500
	if testing.Short() {
		writers, each = 100, 100
	}
	c := startCluster(t, 3)
	client := c.client()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()

	kept, ending := keepLeases(ctx, t, client)
	auditors := c.watchers(t)

	began := time.Now()
	l := startLoad(t, client, writers, each)
	percent := 10
	for _, m := range []*member{c.leader(), nil, nil} {
		if m == nil { // the two that have not been killed yet, the leader of the moment first if it is one of them
			m = nextVictim(c)
		}
		l.reach(percent)
		t.Logf("%5.1f s: %d written, kill %s", time.Since(began).Seconds(), l.acknowledged.Load(), m.name)
		c.kill(m)
		l.reach(percent + 10) // two members carry on
		c.start(m)
		percent += 20
	}
	l.reach(percent)
	t.Logf("%5.1f s: %d written, kill all", time.Since(began).Seconds(), l.acknowledged.Load())
	c.kill(c.members...)
	c.start(c.members...)
	t.Logf("%5.1f s: all are back", time.Since(began).Seconds())
	l.reach(100)
	l.writers.Wait()
	took := time.Since(began)
	t.Logf("%d writes in %.1f s, %.0f a second, %d tries failed", l.total, took.Seconds(), float64(l.total)/took.Seconds(), l.retries.Load())

	for _, m := range c.members {
		l.verify(t, m.name, c.client(m))
	}
	checkLeases(ctx, t, client, kept, ending)
	revision := c.agree(30 * time.Second)
	for _, a := range auditors {
		a.reach(t, revision, 60*time.Second)
	}
}

// nextVictim is the leader if its process is still its first, and otherwise a member whose process is.
func nextVictim(c *cluster) *member {
	leader := c.leader()
	for _, m := range append([]*member{leader}, c.members...) {
		if m.starts == 1 {
			return m
		}
	}
	return leader
}

// keepLeases makes a lease that is kept alive, with the key lease/kept, and one that is not, with lease/ending.
func keepLeases(ctx context.Context, t *testing.T, client *clientv3.Client) (kept, ending clientv3.LeaseID) {
	t.Helper()
	grant := func(ttl int64, key string) clientv3.LeaseID {
		lease, err := client.Grant(ctx, ttl)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Put(ctx, key, "held", clientv3.WithLease(lease.ID)); err != nil {
			t.Fatal(err)
		}
		return lease.ID
	}
	kept, ending = grant(15, "lease/kept"), grant(5, "lease/ending")
	alive, err := client.KeepAlive(ctx, kept)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for range alive {
		}
	}()
	return kept, ending
}

func checkLeases(ctx context.Context, t *testing.T, client *clientv3.Client, kept, ending clientv3.LeaseID) {
	t.Helper()
	if time.Sleep(time.Second); ctx.Err() != nil {
		t.Fatal(ctx.Err())
	}
	left, err := client.TimeToLive(ctx, kept, clientv3.WithAttachedKeys())
	if err != nil {
		t.Fatal(err)
	}
	if left.GrantedTTL != 15 || left.TTL <= 0 || left.TTL > 15 || len(left.Keys) != 1 || string(left.Keys[0]) != "lease/kept" {
		t.Errorf("the lease that was kept alive: %+v", left)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		left, err := client.TimeToLive(ctx, ending)
		if err != nil {
			t.Fatal(err)
		}
		if left.TTL == -1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a lease of 5 s that nobody keeps has still %d s to live", left.TTL)
		}
		time.Sleep(100 * time.Millisecond)
	}
	pairs, err := client.Get(ctx, "lease/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	if len(pairs.Kvs) != 1 || string(pairs.Kvs[0].Key) != "lease/kept" {
		t.Errorf("keys of leases: %v, want lease/kept alone", pairs.Kvs)
	}
}
