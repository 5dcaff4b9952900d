package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// steady is clients that make calls of all kinds, each once, and remember every call that failed and every answer that was
// wrong.
type steady struct {
	t        *testing.T
	c        *cluster
	noJSON   bool // no callers of the JSON gateway
	began    time.Time
	auditors []*auditor
	writers  []*steadyWriter

	stop    chan struct{} // closed when no more calls are to begin
	callers sync.WaitGroup

	mu       sync.Mutex
	calls    map[string]int           // by kind
	slowest  map[string]time.Duration // by kind
	faults   map[string]int           // by kind
	first    []string                 // of the faults
	notes    []string
	answered map[*clientv3.Client]map[uint64]time.Time // when the member answered last
}

// steadyWriter is a key that one caller writes. What was acknowledged is the number that is its value and its version.
type steadyWriter struct {
	key          string
	acknowledged atomic.Int64
}

// patience bounds one call: no machine is slow enough for it.
const patience = 60 * time.Second

// startSteady starts the callers of n clients of all members.
func startSteady(t *testing.T, c *cluster, n int) *steady {
	t.Helper()
	return startSteadyOver(t, c, n, true)
}

// startSteadyOver is startSteady, with or without callers of the JSON gateway.
func startSteadyOver(t *testing.T, c *cluster, n int, json bool) *steady {
	t.Helper()
	s := &steady{
		t: t, c: c, noJSON: !json, began: time.Now(), stop: make(chan struct{}),
		calls: map[string]int{}, slowest: map[string]time.Duration{}, faults: map[string]int{},
		answered: map[*clientv3.Client]map[uint64]time.Time{},
	}
	t.Cleanup(func() {
		s.end()
		if t.Failed() {
			t.Log(strings.Join(s.notes, "\n"))
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	setup := c.client()
	for i := range 200 {
		if _, err := setup.Put(ctx, fmt.Sprintf("steady/range/%03d", i), strings.Repeat("x", 200)); err != nil {
			t.Fatal(err)
		}
	}
	start, err := setup.Get(ctx, "start")
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		client := c.client()
		s.answered[client] = map[uint64]time.Time{}
		if i < 4 {
			s.auditors = append(s.auditors, audit(t, fmt.Sprintf("client %d", i), client, start.Header.Revision+1))
		}
	}
	i := 0
	for client := range s.answered {
		s.startClient(ctx, client, i)
		i++
	}
	return s
}

// startClient starts the callers of one client.
func (s *steady) startClient(ctx context.Context, client *clientv3.Client, i int) {
	put := &steadyWriter{key: fmt.Sprintf("steady/put/%03d", i)}
	txn := &steadyWriter{key: fmt.Sprintf("steady/txn/%03d", i)}
	s.writers = append(s.writers, put, txn)
	answered := func(h *pb.ResponseHeader) {
		s.mu.Lock()
		s.answered[client][h.MemberId] = time.Now()
		s.mu.Unlock()
	}
	s.repeat("put", func(ctx context.Context) error {
		n := put.acknowledged.Load() + 1
		answer, err := client.Put(ctx, put.key, strconv.FormatInt(n, 10))
		if err != nil {
			return err
		}
		answered(answer.Header)
		put.acknowledged.Store(n)
		return nil
	})
	revision := int64(0)
	s.repeat("txn", func(ctx context.Context) error {
		n := txn.acknowledged.Load() + 1
		answer, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(txn.key), "=", revision)).
			Then(clientv3.OpPut(txn.key, strconv.FormatInt(n, 10))).Commit()
		if err != nil {
			return err
		}
		answered(answer.Header)
		if !answer.Succeeded {
			return fmt.Errorf("%s is not as revision %d left it, and nobody else writes it", txn.key, revision)
		}
		revision = answer.Header.Revision
		txn.acknowledged.Store(n)
		return nil
	})
	s.repeat("get", func(ctx context.Context) error {
		for _, w := range []*steadyWriter{put, txn} {
			least := w.acknowledged.Load()
			answer, err := client.Get(ctx, w.key)
			if err != nil {
				return err
			}
			answered(answer.Header)
			if found := valueOf(answer); found < least {
				return fmt.Errorf("%s is %d, but %d was acknowledged before the read began", w.key, found, least)
			}
		}
		return nil
	})
	s.repeat("serializable get", func(ctx context.Context) error {
		_, err := client.Get(ctx, put.key, clientv3.WithSerializable())
		return err
	})
	if i >= 4 {
		return // of these a few are enough
	}
	if !s.noJSON {
		s.startJSON(i)
	}
	s.repeat("range", func(ctx context.Context) error {
		answer, err := client.Get(ctx, "steady/range/", clientv3.WithPrefix())
		if err == nil && len(answer.Kvs) != 200 {
			err = fmt.Errorf("%d keys", len(answer.Kvs))
		}
		return err
	})
	s.repeat("range in a stream", func(ctx context.Context) error {
		stream, err := client.GetStream(ctx, "steady/range/", clientv3.WithPrefix())
		if err != nil {
			return err
		}
		answer, err := clientv3.GetStreamToGetResponse(stream)
		if err == nil && len(answer.Kvs) != 200 {
			err = fmt.Errorf("%d keys", len(answer.Kvs))
		}
		return err
	})
	s.repeat("member list", func(ctx context.Context) error {
		_, err := client.MemberList(ctx)
		return err
	})
	s.repeat("lease", func(ctx context.Context) error {
		lease, err := client.Grant(ctx, 60)
		if err == nil {
			_, err = client.Put(ctx, fmt.Sprintf("steady/lease/%03d", i), "held", clientv3.WithLease(lease.ID))
		}
		if err == nil {
			_, err = client.KeepAliveOnce(ctx, lease.ID)
		}
		if err == nil {
			_, err = client.TimeToLive(ctx, lease.ID)
		}
		if err == nil {
			_, err = client.Revoke(ctx, lease.ID)
		}
		return err
	})
	s.keepLease(ctx, client, i)
}

// startJSON starts callers that do the same over the JSON gateway.
func (s *steady) startJSON(i int) {
	put := &steadyWriter{key: fmt.Sprintf("steady/json/%03d", i)}
	s.writers = append(s.writers, put)
	writing, reading := newJSONClient(s.c), newJSONClient(s.c)
	s.repeat("json put", func(ctx context.Context) error {
		n := put.acknowledged.Load() + 1
		err := writing.put(ctx, put.key, strconv.FormatInt(n, 10))
		if err == nil {
			put.acknowledged.Store(n)
		}
		return err
	})
	s.repeat("json get", func(ctx context.Context) error {
		least := put.acknowledged.Load()
		found, err := reading.number(ctx, put.key)
		if err == nil && found < least {
			err = fmt.Errorf("%s is %d, but %d was acknowledged before the read began", put.key, found, least)
		}
		return err
	})
}

// keepLease keeps a lease alive until the end: etcd's client asks three times in its time to live, and must be answered.
func (s *steady) keepLease(ctx context.Context, client *clientv3.Client, i int) {
	const ttl = 30
	lease, err := client.Grant(ctx, ttl)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := client.Put(ctx, fmt.Sprintf("steady/kept/%03d", i), "held", clientv3.WithLease(lease.ID)); err != nil {
		s.t.Fatal(err)
	}
	life, end := context.WithCancel(context.Background())
	alive, err := client.KeepAlive(life, lease.ID)
	if err != nil {
		s.t.Fatal(err)
	}
	s.callers.Go(func() {
		defer end()
		for {
			select {
			case <-s.stop:
				return
			case answer, ok := <-alive:
				if !ok {
					s.done("keepalive", 0, errors.New("the client has given the lease up"))
					return
				}
				if answer.TTL != ttl {
					err = fmt.Errorf("a time to live of %d s", answer.TTL)
				}
				s.done("keepalive", 0, err)
			}
		}
	})
}

func valueOf(answer *clientv3.GetResponse) int64 {
	if len(answer.Kvs) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(string(answer.Kvs[0].Value), 10, 64)
	return n
}

// repeat makes the same call again and again until the end.
func (s *steady) repeat(kind string, call func(context.Context) error) {
	s.callers.Go(func() {
		for {
			select {
			case <-s.stop:
				return
			case <-time.After(time.Millisecond):
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			began := time.Now()
			err := call(ctx)
			cancel()
			s.done(kind, time.Since(began), err)
		}
	})
}

func (s *steady) done(kind string, took time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[kind]++
	s.slowest[kind] = max(s.slowest[kind], took)
	if err == nil {
		return
	}
	if s.faults[kind]++; s.faults[kind] <= 5 {
		line := fmt.Sprintf("%.3f s: %s, after %v: %v", time.Since(s.began).Seconds(), kind, took.Round(time.Millisecond), err)
		s.first = append(s.first, line)
		s.notes = append(s.notes, line)
	}
}

// note remembers what the test does.
func (s *steady) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, fmt.Sprintf("%.3f s: ", time.Since(s.began).Seconds())+fmt.Sprintf(format, args...))
}

// meets waits until the member has answered every client after the call began.
func (s *steady) meets(m *member) {
	s.t.Helper()
	now := time.Now()
	status, err := m.status()
	if err != nil {
		s.t.Fatal(err)
	}
	for deadline := now.Add(patience); ; time.Sleep(10 * time.Millisecond) {
		missing := 0
		s.mu.Lock()
		for _, by := range s.answered {
			if by[status.Header.MemberId].Before(now) {
				missing++
			}
		}
		s.mu.Unlock()
		if missing == 0 {
			s.note("all clients have come back to %s", m.name)
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%d clients had no answer of %s within %v", missing, m.name, patience)
		}
	}
}

// end lets the calls under way finish and begins no more.
func (s *steady) end() {
	s.mu.Lock()
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
	s.mu.Unlock()
	s.callers.Wait()
}

// verify fails the test if the member does not hold exactly what was acknowledged.
func (s *steady) verify(m *member) {
	s.t.Helper()
	client := s.c.client(m)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, w := range s.writers {
		answer, err := client.Get(ctx, w.key)
		if err != nil {
			s.t.Fatalf("through %s: %v", m.name, err)
		}
		want := w.acknowledged.Load()
		if found := valueOf(answer); found != want || answer.Kvs[0].Version != want {
			s.t.Errorf("through %s: %s is %d and was written %d times; %d writes were acknowledged", m.name, w.key, found, answer.Kvs[0].Version, want)
		}
	}
	kept, err := client.Get(ctx, "steady/kept/", clientv3.WithPrefix())
	if err != nil {
		s.t.Fatalf("through %s: %v", m.name, err)
	}
	if want := min(4, len(s.answered)); len(kept.Kvs) != want {
		s.t.Errorf("through %s: %d keys of %d leases are left", m.name, len(kept.Kvs), want)
	}
}

// verifyAll verifies all members.
func (s *steady) verifyAll() {
	s.t.Helper()
	for _, m := range s.c.members {
		s.verify(m)
	}
}

// reached fails the test if an auditor has not seen everything up to the revision in so much time.
func (s *steady) reached(revision int64, within time.Duration) {
	s.t.Helper()
	for _, a := range s.auditors {
		a.reach(s.t, revision, within)
	}
}

// failures fails the test if a call has failed.
func (s *steady) failures() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.first) > 0 {
		s.t.Errorf("calls that failed: %v, the first of them:\n%s", s.faults, strings.Join(s.first, "\n"))
	}
}

// summary tells how many calls there were and how long the longest took.
func (s *steady) summary() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(s.calls)) {
		parts = append(parts, fmt.Sprintf("%d %s (%d failed, longest %v)", s.calls[kind], kind, s.faults[kind], s.slowest[kind].Round(time.Millisecond)))
	}
	return strings.Join(parts, ", ")
}
