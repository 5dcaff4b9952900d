package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// auditor watches every key and checks what a watcher may rely on: each revision comes once, none is left out, none
// comes after a later one, and the version of each key grows by one from its creation.
type auditor struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex
	next     int64 // the revision that must come next; the one before may go on, as part of the same transaction
	first    int64
	versions map[string]int64
	fault    string
	resumes  bool // goes on where it is told that history begins, if what it needs next is compacted
	strict   bool // requires a leader
	told     int  // how often it was told so
}

// audit starts a watch of everything from the revision on.
func audit(t testing.TB, name string, client *clientv3.Client, from int64) *auditor {
	a := &auditor{name: name}
	a.start(t, client, from)
	return a
}

// auditResuming is audit for a watcher that may find its history compacted; then it goes on where it is told.
func auditResuming(t testing.TB, name string, client *clientv3.Client, from int64) *auditor {
	a := &auditor{name: name, resumes: true}
	a.start(t, client, from)
	return a
}

func (a *auditor) start(t testing.TB, client *clientv3.Client, from int64) {
	ctx, cancel := context.WithCancel(context.Background())
	if a.strict {
		ctx = clientv3.WithRequireLeader(ctx)
	}
	a.cancel, a.done = cancel, make(chan struct{})
	a.from(from)
	go func() {
		defer close(a.done)
		for again := true; again; again = a.resumes && a.fault == "" && ctx.Err() == nil { // only this goroutine writes the fault
			for answer := range client.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(a.next)) {
				a.take(answer)
			}
		}
	}()
	t.Cleanup(a.stop)
}

// from expects everything from the revision on, as of a new watch.
func (a *auditor) from(revision int64) {
	a.next, a.first, a.versions = revision, revision, map[string]int64{}
}

func (a *auditor) stop() {
	a.cancel()
	<-a.done
}

func (a *auditor) take(answer clientv3.WatchResponse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := answer.Err(); a.resumes && errors.Is(err, rpctypes.ErrCompacted) {
		if answer.CompactRevision <= a.next || len(answer.Events) > 0 {
			a.fail("told that history is compacted at %d, with %d events, when revision %d was next", answer.CompactRevision, len(answer.Events), a.next)
		}
		a.from(answer.CompactRevision)
		a.told++
		return
	} else if err != nil {
		a.fail("cancelled at revision %d: %v", a.next, err)
		return
	}
	for i, event := range answer.Events {
		revision := event.Kv.ModRevision
		switch {
		case revision == a.next:
			a.next++
		case i > 0 && revision == a.next-1: // one more change of the same transaction
		case revision < a.next:
			a.fail("event of revision %d of %q repeated or late: revision %d was seen", revision, event.Kv.Key, a.next-1)
		default:
			a.fail("revision %d of %q came when %d was next: a gap", revision, event.Kv.Key, a.next)
			a.next = revision + 1
		}
		key := string(event.Kv.Key)
		if event.Type == clientv3.EventTypeDelete {
			delete(a.versions, key)
			continue
		}
		if event.Kv.CreateRevision >= a.first && event.Kv.Version != a.versions[key]+1 {
			a.fail("version %d of %q at revision %d came after version %d", event.Kv.Version, key, revision, a.versions[key])
		}
		a.versions[key] = event.Kv.Version
	}
}

func (a *auditor) fail(format string, args ...any) {
	if a.fault == "" { // the first says most
		a.fault = fmt.Sprintf(format, args...)
	}
}

// reach waits until the auditor has seen everything up to the revision, and fails the test if anything was wrong.
func (a *auditor) reach(t testing.TB, revision int64, within time.Duration) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		a.mu.Lock()
		next, fault := a.next, a.fault
		a.mu.Unlock()
		switch {
		case fault != "":
			t.Fatalf("watcher of %s: %s", a.name, fault)
		case next > revision:
			return
		case time.Now().After(deadline):
			t.Fatalf("watcher of %s has seen revisions up to %d only, %d exists, after %v", a.name, next-1, revision, within)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// hasBeenTold waits until the auditor was told that what it needed was compacted. gRPC waits for up to two minutes before it dials a
// member again that was away for long.
func (a *auditor) hasBeenTold(t testing.TB) {
	t.Helper()
	const within = 4 * time.Minute
	for deadline := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
		a.mu.Lock()
		told, next, fault := a.told, a.next, a.fault
		a.mu.Unlock()
		switch {
		case fault != "":
			t.Fatalf("watcher of %s: %s", a.name, fault)
		case told > 0:
			return
		case time.Now().After(deadline):
			t.Fatalf("watcher of %s, at revision %d, is not told of a compaction within %v", a.name, next, within)
		}
	}
}

// TestWatchesThatRequireALeader kills the leader again and again under clients whose watches require one, as those of etcdctl and
// of Kubernetes do. etcd's client ends such a watch when the member that it comes to refuses it for want of a leader; so
// members must not, while they elect the next.
func TestWatchesThatRequireALeader(t *testing.T) {
	kills := 6
	if testing.Short() {
		kills = 3
	}
	c := startCluster(t, 3)
	client := c.client()
	start, err := client.Put(t.Context(), "k", "")
	if err != nil {
		t.Fatal(err)
	}
	var watchers []*auditor
	for i := range 12 {
		a := &auditor{name: fmt.Sprint("watcher ", i), strict: true}
		a.start(t, c.client(), start.Header.Revision+1)
		watchers = append(watchers, a)
	}
	for range kills {
		m := c.leader()
		c.kill(m)
		var last int64
		for i := range 20 {
			r, err := client.Put(t.Context(), "k", fmt.Sprint(i))
			if err != nil {
				t.Logf("a put beside the kill: %v", err)
				continue
			}
			last = r.Header.Revision
		}
		if last == 0 {
			t.Fatal("no put was done after the kill")
		}
		for _, a := range watchers {
			a.reach(t, last, 30*time.Second)
		}
		c.start(m)
		c.agree(30 * time.Second)
	}
}
