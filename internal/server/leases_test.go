package server

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

// What one member answers about a lease, the other reads; and what only the asking member can judge is not an answer.
func TestLeaseAnswer(t *testing.T) {
	for _, a := range []leaseAnswer{
		{lease: kv.Lease{ID: 7, TTL: 10, Remaining: 3}, remaining: 9},
		{lease: kv.Lease{ID: 7}},
		{err: kv.ErrLeaseNotFound},
		{err: kv.ErrNotLeader},
	} {
		b, err := a.encode()
		if err != nil {
			t.Fatal(err)
		}
		if got := decodeLeaseAnswer(7, b); got != a {
			t.Errorf("%+v arrived as %+v", a, got)
		}
	}
	if _, err := (&leaseAnswer{err: context.Canceled}).encode(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A leader that hears from nobody does not take itself for the leader when it is asked about leases, not even before it has
// noticed; nor does one in the name of another term.
func TestLeadsByMajority(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.startAll()
		put(t, c.members[0], "k", "v")
		var leader *Member
		var ids []uint64
		for _, m := range c.members {
			if m.Leader() == m.identity.MemberID {
				leader = m
			} else {
				ids = append(ids, m.identity.MemberID)
			}
		}
		term := leader.replica.Status().Term
		if err := leader.leads(t.Context(), term); err != nil {
			t.Fatal(err)
		}
		for _, cmd := range []*command.Command{
			{LeaseGrant: &command.LeaseGrant{ID: 1, TTL: 1000}}, {LeaseGrant: &command.LeaseGrant{ID: 2, TTL: 1000}},
			{LeaseRevoke: &command.LeaseRevoke{ID: 1}},
		} {
			if _, err := try(t, leader, cmd); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait() // the clock of a term begins beside the term
		if n := leader.LeaseStats().Leases; n != 1 {
			t.Errorf("it has the clocks of %d leases, one is left", n)
		}
		if err := leader.leads(t.Context(), term-1); !errors.Is(err, kv.ErrNotLeader) {
			t.Errorf("in a term that is over: %v", err)
		}
		c.network.Partition([]uint64{leader.identity.MemberID}, ids)
		ctx, cancel := context.WithTimeout(t.Context(), leader.options.electionTimeout()/2)
		defer cancel()
		if err := leader.leads(ctx, term); err == nil {
			t.Error("alone, it says that it leads")
		}
		if now := leader.replica.Status(); now.Leader != leader.identity.MemberID || now.Term != term {
			t.Errorf("the leader had given up already: %+v", now)
		}
		time.Sleep(5 * time.Second)
		if n := leader.LeaseStats().Leases; n != 0 {
			t.Errorf("deposed, it has the clocks of %d leases", n)
		}
		c.network.Heal()
		c.stopAll()
	})
}

// A member that is cut off, leader or not, says so to the holder of a lease while that one can still turn to another; etcd's clients
// wait for an answer where they are until the lease is over. It does not say that it has no leader: they would give the lease up.
func TestRenewalsWhereNobodyAnswers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.startAll()
		for cut := range 2 { // the leader, then a follower
			put(t, c.members[cut], "k", "v")
			one := (c.leading() + cut) % 3
			var others []uint64
			for i, m := range c.members {
				if i != one {
					others = append(others, m.identity.MemberID)
				}
			}
			for _, lease := range []struct {
				ttl  int64
				want time.Duration
			}{{2, time.Second}, {5, 5 * time.Second / 3}, {60, 7 * time.Second}} {
				id := kv.LeaseID(int64(cut)*100 + lease.ttl)
				if _, err := try(t, c.members[one], &command.Command{LeaseGrant: &command.LeaseGrant{ID: id, TTL: lease.ttl}}); err != nil {
					t.Fatal(err)
				}
				c.network.Partition([]uint64{c.members[one].identity.MemberID}, others)
				begin := time.Now()
				_, err := c.members[one].LeaseRenew(t.Context(), id)
				if took := time.Since(begin); took != lease.want {
					t.Errorf("member %d, lease of %d s: %v after %v, want %v", one, lease.ttl, err, took, lease.want)
				}
				if lease.ttl < 60 && !errors.Is(err, kv.ErrTimeout) && !errors.Is(err, kv.ErrTimeoutLeaderFail) {
					t.Errorf("member %d, lease of %d s: %v, want a timeout", one, lease.ttl, err)
				}
				c.network.Heal()
				put(t, c.members[one], "k", "v")
			}
		}
		c.stopAll()
	})
}

// No bytes from a peer make a panic, and none but those of an answer make one without an error.
func FuzzLeaseAnswer(f *testing.F) {
	f.Add([]byte{leaseOK, 20, 0, 18})
	f.Add([]byte{leaseNotFound})
	f.Fuzz(func(t *testing.T, b []byte) {
		a := decodeLeaseAnswer(1, b)
		if a.err == nil && len(b) < 4 {
			t.Fatalf("%x was read as %+v", b, a)
		}
	})
}
