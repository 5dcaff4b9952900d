package leader

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

var background = context.Background()

// inWorld runs a test in a bubble of fake time with a world of some members, of which the first leads.
func inWorld(t *testing.T, members int, o Options, test func(t *testing.T, w *world)) {
	t.Helper()
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, members, o)
		defer w.stop()
		w.elect(0, 0)
		test(t, w)
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// gone waits up to a bound for a lease to go, and returns how long it took.
func (w *world) gone(id kv.LeaseID, bound time.Duration) time.Duration {
	w.t.Helper()
	start := time.Now()
	for time.Since(start) < bound {
		if _, ok := w.Lookup(id); !ok {
			return time.Since(start)
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatalf("lease %d is still there after %v", id, bound)
	return 0
}

func between(t *testing.T, what string, got, least, most time.Duration) {
	t.Helper()
	if got < least || got > most {
		t.Fatalf("%s: %v, want from %v to %v", what, got, least, most)
	}
}

// TestExpiry: a lease goes when its time is over, not before, and a renewed one lives on.
func TestExpiry(t *testing.T) {
	inWorld(t, 1, Options{}, func(t *testing.T, w *world) {
		must(t, w.grant(1, 10))
		must(t, w.grant(2, 10))
		time.Sleep(8 * time.Second)
		ttl, err := w.renew(background, 0, 2)
		if err != nil || ttl != 10 {
			t.Fatalf("renewed to %d, %v", ttl, err)
		}
		between(t, "the lease that was not renewed", w.gone(1, time.Minute), time.Second, 2500*time.Millisecond)
		between(t, "the lease that was renewed", w.gone(2, time.Minute), 7*time.Second, 9*time.Second)
		if s := w.members[0].jobs.Stats(); s != (Stats{Renewed: 1, Expired: 2}) {
			t.Fatalf("stats %+v", s)
		}
	})
}

// TestRenewOfRevokedLease (E#20615): once a lease has run out, no renewal succeeds, though its revocation is still on its
// way; it waits for that and then says that the lease is gone.
func TestRenewOfRevokedLease(t *testing.T) {
	inWorld(t, 1, Options{}, func(t *testing.T, w *world) {
		must(t, w.grant(1, 5))
		w.hold(w.members[0])
		time.Sleep(5100 * time.Millisecond)
		if _, left, err := w.members[0].jobs.TimeToLive(background, 1); err != nil || left != 0 {
			t.Fatalf("left %d, %v", left, err)
		}
		short, cancel := context.WithTimeout(background, time.Second)
		defer cancel()
		if ttl, err := w.renew(short, 0, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("renewed to %d, %v", ttl, err)
		}
		time.AfterFunc(time.Second, func() { close(w.members[0].gate) })
		if ttl, err := w.renew(background, 0, 1); !errors.Is(err, kv.ErrLeaseNotFound) {
			t.Fatalf("renewed to %d, %v", ttl, err)
		}
	})
}

// TestDeposedLeader (E#15247): a leader that was deposed and does not know it neither renews nor revokes; what it had
// proposed before it was deposed does nothing in the terms after.
func TestDeposedLeader(t *testing.T) {
	inWorld(t, 2, Options{}, func(t *testing.T, w *world) {
		must(t, w.grant(1, 10))
		if _, err := w.renew(background, 0, 1); err != nil {
			t.Fatal(err)
		}
		w.slow(w.members[0], 15*time.Second)
		w.members[0].queue <- queued{&command.Command{LeaseRevoke: &command.LeaseRevoke{ID: 1, Term: 1}}, make(chan command.Result, 1)}
		w.elect(1, 0) // member 0 goes on with its jobs
		for range 6 {
			time.Sleep(4 * time.Second)
			if _, err := w.renew(background, 0, 1); err == nil {
				t.Fatal("the deposed leader renewed a lease")
			}
			if _, _, err := w.members[0].jobs.TimeToLive(background, 1); err == nil {
				t.Fatal("the deposed leader told a time to live")
			}
			if ttl, err := w.renew(background, 1, 1); err != nil || ttl != 10 {
				t.Fatalf("renewed to %d, %v", ttl, err)
			}
		}
		// Its own clock has run out long ago; the lease goes when the new leader's has.
		between(t, "the lease", w.gone(1, time.Minute), 9*time.Second, 11*time.Second)
		w.members[0].jobs.Stop()
		if _, err := w.renew(background, 0, 1); !errors.Is(err, kv.ErrNotLeader) {
			t.Fatalf("a member without a term: %v", err)
		}
	})
}

// TestExtend: a new leader gives all leases the time that its election may have taken, in which nobody could renew them.
func TestExtend(t *testing.T) {
	inWorld(t, 2, Options{Extend: 5 * time.Second}, func(t *testing.T, w *world) {
		must(t, w.grant(1, 10))
		w.elect(1, 0)
		between(t, "the lease", w.gone(1, time.Minute), 15*time.Second, 16*time.Second)
	})
}

// TestLedAgain: a member lost and regained leadership, and was given another state in between, before its server ended the
// jobs of the first term. They look at a table that is none any more, so they must answer nothing, although the member
// leads.
func TestLedAgain(t *testing.T) {
	inWorld(t, 1, Options{}, func(t *testing.T, w *world) {
		must(t, w.grant(1, 60))
		if _, err := w.renew(background, 0, 1); err != nil {
			t.Fatal(err)
		}
		w.mu.Lock()
		w.term += 2
		w.mu.Unlock()
		if ttl, err := w.members[0].jobs.Renew(background, 1); err == nil {
			t.Errorf("renewed to %d by the jobs of a term that is over", ttl)
		}
		if l, left, err := w.members[0].jobs.TimeToLive(background, 1); err == nil {
			t.Errorf("the jobs of a term that is over say that %+v has %d s left", l, left)
		}
		w.elect(0, 0)
		if _, err := w.renew(background, 0, 1); err != nil {
			t.Error(err)
		}
	})
}

// TestWithoutFence shows that the world would notice: the same with a state machine that does not look at the term.
func TestWithoutFence(t *testing.T) {
	inWorld(t, 2, Options{}, func(t *testing.T, w *world) {
		w.noFence = true
		must(t, w.grant(1, 10))
		if _, err := w.renew(background, 0, 1); err != nil {
			t.Fatal(err)
		}
		w.elect(1, 0)
		for range 5 {
			time.Sleep(4 * time.Second)
			if _, err := w.renew(background, 1, 1); err != nil {
				break
			}
		}
		if w.early == 0 {
			t.Fatal("nothing was revoked early")
		}
	})
}

// TestRegrantedID: a revocation that was proposed twice, because nobody knew what became of the first, does not end a later
// lease of the same id that was granted between the two.
func TestRegrantedID(t *testing.T) {
	inWorld(t, 1, Options{Retry: 2 * time.Second}, func(t *testing.T, w *world) {
		must(t, w.grant(1, 5))
		m := w.members[0]
		w.hold(m)
		w.mu.Lock()
		m.lost = 2
		w.mu.Unlock()
		time.Sleep(6 * time.Second) // the first has been proposed
		granted := make(chan error)
		go func() { granted <- w.grant(1, 60) }()
		time.Sleep(3 * time.Second) // and the second
		close(m.gate)
		if err := <-granted; err != nil {
			t.Fatal(err)
		}
		between(t, "the second lease of the id", w.gone(1, 2*time.Minute), 59*time.Second, 61*time.Second)
	})
}

// TestCheckpointOfRegrantedID: while a checkpoint is on its way, its lease is revoked and another is granted under the same
// id. The next leader gives that one its whole time.
func TestCheckpointOfRegrantedID(t *testing.T) {
	inWorld(t, 2, Options{Checkpoint: 5 * time.Second}, func(t *testing.T, w *world) {
		must(t, w.grant(1, 20))
		m := w.members[0]
		w.hold(m)
		time.Sleep(6 * time.Second) // the checkpoint has been proposed
		for _, c := range []*command.Command{
			{LeaseRevoke: &command.LeaseRevoke{ID: 1}}, {LeaseGrant: &command.LeaseGrant{ID: 1, TTL: 1000}},
		} {
			must(t, w.apply(c).Err)
		}
		close(m.gate)
		time.Sleep(time.Second)
		if l, _ := w.Lookup(1); l.Remaining != 0 {
			t.Errorf("the second lease was left with %d s, the first's", l.Remaining)
		}
		w.elect(1, 0)
		time.Sleep(100 * time.Second) // the world notices what is revoked too early
		if _, ok := w.Lookup(1); !ok {
			t.Error("the lease is gone")
		}
	})
}

// TestNotStuck (E#10686): a lease whose revocation fails again and again goes in the end.
func TestNotStuck(t *testing.T) {
	inWorld(t, 1, Options{}, func(t *testing.T, w *world) {
		must(t, w.grant(1, 5))
		failures, propose := 0, w.members[0].jobs.o.Propose
		w.members[0].jobs.o.Propose = func(ctx context.Context, c *command.Command) (command.Result, error) {
			if failures++; failures <= 3 {
				return command.Result{}, kv.ErrTooManyRequests
			}
			return propose(ctx, c)
		}
		between(t, "the lease", w.gone(1, time.Minute), 13*time.Second, 15*time.Second)
	})
}

// TestStartWaitsForState: a new leader reckons from the state as the terms before it left it, also if this member has
// yet to apply that: here, the taking back of a checkpoint.
func TestStartWaitsForState(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, Options{})
		defer w.stop()
		w.leases[1] = kv.Lease{ID: 1, TTL: 100, Remaining: 1, Granted: 1}
		first := true
		w.members[0].jobs.o.Confirm = func(ctx context.Context, _ uint64) error {
			if !first {
				return nil
			}
			first = false
			time.Sleep(10 * time.Second)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.leases[1] = kv.Lease{ID: 1, TTL: 100, Granted: 1}
			return nil
		}
		w.elect(0, 0)
		between(t, "the lease", w.gone(1, time.Hour), 109*time.Second, 111*time.Second)
	})
}

// TestCheckpointAfterRenewal: a lease that was too near its end for another checkpoint has one again once it is renewed.
func TestCheckpointAfterRenewal(t *testing.T) {
	inWorld(t, 1, Options{Checkpoint: time.Minute}, func(t *testing.T, w *world) {
		must(t, w.grant(1, 100))
		time.Sleep(90 * time.Second)
		if _, err := w.renew(background, 0, 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(61 * time.Second)
		if l, _ := w.Lookup(1); l.Remaining != 40 {
			t.Fatalf("%d s left in the state, want 40", l.Remaining)
		}
	})
}

// TestRemainingTime: the time left goes on at the next leader, to within the interval of checkpoints, and a lease that
// was renewed does not end early there.
// With etcd it starts over (E#9888).
func TestRemainingTime(t *testing.T) {
	o := Options{Checkpoint: time.Minute, Extend: time.Second}
	inWorld(t, 2, o, func(t *testing.T, w *world) {
		must(t, w.grant(1, 600))
		must(t, w.grant(2, 600))
		time.Sleep(5*time.Minute + 30*time.Second)
		if _, err := w.renew(background, 0, 2); err != nil {
			t.Fatal(err)
		}
		if l, _ := w.Lookup(2); l.Remaining != 0 {
			t.Fatalf("a renewed lease has %d s left in the state", l.Remaining)
		}
		if l, _ := w.Lookup(1); l.Remaining != 300 {
			t.Fatalf("a lease has %d s left in the state, want 300", l.Remaining)
		}
		w.members[0].jobs.Stop()
		w.elect(1, 0)
		if _, left, err := w.members[1].jobs.TimeToLive(background, 1); err != nil || left < 299 || left > 301 {
			t.Fatalf("%d s left, %v", left, err)
		}
		between(t, "the lease that was not renewed", w.gone(1, time.Hour), 300*time.Second, 303*time.Second)
		if _, left, err := w.members[1].jobs.TimeToLive(background, 2); err != nil || left < 297 || left > 300 {
			t.Fatalf("the renewed lease has %d s left, %v", left, err)
		}
	})
}

// TestCheckpointsAreRare: a lease that is renewed more often than the interval is never written down, and renewing a
// lease that was costs one entry.
func TestCheckpointsAreRare(t *testing.T) {
	inWorld(t, 1, Options{}, func(t *testing.T, w *world) {
		must(t, w.grant(1, 3600))
		must(t, w.grant(2, 60))
		for range 100 {
			time.Sleep(30 * time.Second)
			for id := range kv.LeaseID(2) {
				if _, err := w.renew(background, 0, id+1); err != nil {
					t.Fatal(err)
				}
			}
		}
		if n, _ := w.counts(); n != 0 {
			t.Fatalf("%d checkpoints", n)
		}
		time.Sleep(11 * time.Minute)
		n, before := w.counts()
		if n != 2 {
			t.Fatalf("%d checkpoints, want 2", n)
		}
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if _, err := w.renew(background, 0, 1); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if _, index := w.counts(); index < before+1 || index > before+2 {
			t.Fatalf("20 renewals cost %d entries", index-before)
		}
	})
}

// TestNonsenseTTL (E#17642, E#10686): whatever the moment, the time left lies between 0 and what was granted; a lease of
// the longest time does not overflow; none is stuck.
func TestNonsenseTTL(t *testing.T) {
	inWorld(t, 2, Options{Extend: 10 * time.Second}, func(t *testing.T, w *world) {
		const longest = 9_000_000_000
		must(t, w.grant(1, longest))
		must(t, w.grant(2, 20))
		for i := range 30 {
			if i%5 == 4 {
				w.elect(i%2, 100*time.Millisecond)
			}
			for _, m := range w.members {
				for id, ttl := range map[kv.LeaseID]int64{1: longest, 2: 20} {
					l, left, err := m.jobs.TimeToLive(background, id)
					if err == nil && (left < 0 || left > ttl || l.TTL != ttl) {
						t.Fatalf("lease %d has %d s left of %d", id, left, l.TTL)
					}
				}
			}
			time.Sleep(time.Second)
		}
		if _, left, err := w.members[w.leader].jobs.TimeToLive(background, 1); err != nil || left < longest-60 {
			t.Fatalf("the longest lease has %d s left, %v", left, err)
		}
		w.gone(2, time.Minute)
	})
	if got := after(never-time.Hour, 9_000_000_000); got != never {
		t.Fatalf("the longest lease at the end of time ends at %v", got)
	}
	for d, want := range map[time.Duration]int64{time.Second: 2, 100 * time.Millisecond: 1, 2 * time.Second: 3, 50 * time.Second: 75} {
		if got := MinTTL(d); got != want {
			t.Errorf("shortest TTL with elections of %v: %d, want %d", d, got, want)
		}
	}
	if math.MaxInt64 != int64(never) {
		t.Error("never comes")
	}
}

// TestSharedConfirm: renewals that come together share rounds, and each waits for one that begins after it.
func TestSharedConfirm(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, Options{})
		defer w.stop()
		var rounds atomic.Int64
		m := w.members[0]
		m.jobs.o.Confirm = func(ctx context.Context, _ uint64) error {
			rounds.Add(1)
			m.sleep(ctx, 10*time.Millisecond)
			return nil
		}
		w.elect(0, 0)
		must(t, w.grant(1, 60))
		rounds.Store(0)
		var all sync.WaitGroup
		for i := range 1000 {
			all.Go(func() {
				time.Sleep(time.Duration(i) * 10 * time.Microsecond)
				start := time.Now()
				if _, err := w.renew(background, 0, 1); err != nil {
					t.Error(err)
				}
				if waited := time.Since(start); waited < 10*time.Millisecond {
					t.Errorf("answered after %v by a round that had begun before", waited)
				}
			})
		}
		all.Wait()
		if rounds := rounds.Load(); rounds > 3 {
			t.Fatalf("%d rounds for 1000 renewals", rounds)
		}
	})
}

// TestMassExpiry: thirty thousand leases that run out together go in batches, none is left.
// With etcd they wait for a fixed rate (E#12105).
func TestMassExpiry(t *testing.T) {
	n := 30_000
	if testing.Short() {
		n = 5000
	}
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, Options{Revokes: 1000})
		defer w.stop()
		for i := range n {
			id := kv.LeaseID(i + 1)
			w.leases[id] = kv.Lease{ID: id, TTL: 30, Granted: uint64(i)}
		}
		w.slow(w.members[0], 0)
		w.elect(0, 0)
		time.Sleep(29 * time.Second)
		if left := w.count(); left != n {
			t.Fatalf("%d leases before their time is over", left)
		}
		time.Sleep(3 * time.Second)
		if left := w.count(); left != 0 {
			t.Fatalf("%d leases left", left)
		}
	})
}

// TestModel lets clients renew random leases at random members while leaders change, proposals linger in the queues of
// deposed leaders and outcomes get lost. No lease may go before the time that a client was promised, and every lease must
// go in the end, at most a checkpoint interval late for each change of leaders.
func TestModel(t *testing.T) {
	seeds := uint64(40)
	if testing.Short() {
		seeds = 8
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) { testModel(t, seed) })
		})
	}
}

func testModel(t *testing.T, seed uint64) {
	o := Options{Checkpoint: 10 * time.Second, Extend: time.Second, Retry: 2 * time.Second, Batch: 3, Revokes: 4}
	w := newWorld(t, seed, 3, o)
	defer w.stop()
	for _, m := range w.members {
		m.lossy = w.chance(2)
		w.slow(m, w.rand(4*time.Second))
		m.confirm = w.rand(time.Second)
	}
	const leases = 12
	ctx, cancel := context.WithCancel(background)
	var clients sync.WaitGroup
	for id := range kv.LeaseID(leases) {
		clients.Go(func() {
			for ctx.Err() == nil {
				if err := w.grant(id+1, 5+int64(w.rand(60))); err != nil && !errors.Is(err, kv.ErrLeaseExists) {
					t.Errorf("grant: %v", err)
				}
				for ctx.Err() == nil {
					short, done := context.WithTimeout(ctx, 10*time.Second)
					_, err := w.renew(short, int(w.rand(2)), id+1)
					done()
					if errors.Is(err, kv.ErrLeaseNotFound) {
						break
					}
					time.Sleep(w.rand(15 * time.Second))
				}
				time.Sleep(w.rand(2 * time.Second))
			}
		})
	}
	changes := 20
	for range changes {
		time.Sleep(w.rand(40 * time.Second))
		w.mu.Lock()
		old := w.leader
		if w.r.IntN(3) == 0 {
			w.leader = -1
		}
		w.mu.Unlock()
		time.Sleep(w.rand(2 * time.Second))
		w.elect(int(w.rand(2)), w.rand(time.Second))
		if old >= 0 && old != w.leader {
			clients.Go(func() { // the old leader's server finds out late
				time.Sleep(w.rand(10 * time.Second))
				w.mu.Lock()
				again := w.leader == old
				w.mu.Unlock()
				if !again {
					w.members[old].jobs.Stop()
				}
			})
		}
	}
	cancel()
	clients.Wait()
	for _, m := range w.members {
		m.jobs.Stop()
	}
	w.elect(0, 0)
	for id := range kv.LeaseID(leases) {
		if _, ok := w.Lookup(id + 1); ok {
			w.gone(id+1, 3*time.Minute)
		}
	}
}
