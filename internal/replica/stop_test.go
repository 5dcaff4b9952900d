package replica

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/transport"
)

func quietCluster(t *testing.T, voters int) *cluster {
	return newCluster(t, voters, 0, transport.NetworkOptions{MinDelay: time.Millisecond, MaxDelay: time.Millisecond}, Config{})
}

// TestStopped: whoever waits when the replica stops is told so, and so is whoever comes later; nothing is kept.
func TestStopped(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		cl := quietCluster(t, 3)
		defer cl.close()
		cl.crash(2)
		cl.crash(3)
		r := cl.members[1].node.r
		results := make(chan error, 3)
		go func() { results <- r.ReadBarrier(t.Context(), nil) }()
		go func() { results <- r.WaitApplied(t.Context(), 1000) }()
		go func() { results <- r.TransferLeadership(t.Context(), 2) }()
		synctest.Wait()
		if err := <-results; !errors.Is(err, kv.ErrNotLeader) {
			t.Errorf("transfer: %v", err)
		}
		r.Stop()
		for range 2 {
			if err := <-results; !errors.Is(err, kv.ErrStopped) {
				t.Errorf("waiting: %v", err)
			}
		}
		_, readErr := r.ReadIndex(t.Context())
		for what, err := range map[string]error{
			"propose": r.Propose(t.Context(), nil, []byte("x")), "read": readErr,
			"transfer": r.TransferLeadership(t.Context(), 2), "change": r.ChangeMembers(t.Context(), nil, nil),
			"snapshot": r.ReceiveSnapshot(nil, "", nil),
		} {
			if !errors.Is(err, kv.ErrStopped) {
				t.Errorf("%s: %v", what, err)
			}
		}
		r.Stop() // twice is fine
		select {
		case err := <-r.Failed():
			t.Errorf("a stop is no failure: %v", err)
		default:
		}
	})
}

// TestFailures: a log or a state machine that fails ends the replica, with the reason, and the others go on.
func TestFailures(t *testing.T) {
	for name, breakIt := range map[string]func(*node){
		"state machine": func(n *node) {
			n.machine.mu.Lock()
			defer n.machine.mu.Unlock()
			n.machine.fail = errors.New("the disk is full")
		},
		"log": func(n *node) { n.fs.breakSyncs(errors.New("the disk is full")) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				cl := quietCluster(t, 3)
				defer cl.close()
				cl.must(cl.campaign(1))
				cl.must(cl.propose(2, "a", 3*time.Second))
				n := cl.members[1].node
				breakIt(n)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				cl.must(n.r.Propose(ctx, nil, []byte("b")))
				select {
				case err := <-n.r.Failed():
					if err == nil {
						t.Error("failed without a reason")
					}
				case <-ctx.Done():
					t.Fatal("it goes on")
				}
				if err := n.r.Propose(ctx, nil, []byte("c")); !errors.Is(err, kv.ErrStopped) {
					t.Errorf("afterwards: %v", err)
				}
				cl.crash(1)
				cl.must(cl.propose(2, "d", 5*time.Second))
				cl.must(cl.check(5 * time.Second))
			})
		})
	}
}

// TestLoneVoterReads: the only voter of a cluster is asked while the first entry of its new term is on the way to a slow
// disk, after a crash that may have lost the commit index of what it had acknowledged.
func TestLoneVoterReads(t *testing.T) {
	for seed := range uint64(20) {
		bubble.Test(t, func(t *testing.T) {
			cl := newCluster(t, 1, 0, transport.NetworkOptions{Seed: seed}, Config{})
			defer cl.close()
			for _, cmd := range []string{"a", "b", "c"} {
				if err := cl.propose(1, cmd, 10*time.Second); err != nil {
					t.Fatal(err)
				}
			}
			cl.crash(1)
			cl.start(1)
			cl.members[1].node.fs.set(100 * time.Millisecond)
			if err := cl.read(1, 10*time.Second); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		})
	}
}

// TestLeaderStopsGracefully: a leader that is told to stop has handed leadership over when it stops.
func TestLeaderStopsGracefully(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		cl := quietCluster(t, 3)
		defer cl.close()
		cl.must(cl.campaign(1))
		cl.must(cl.propose(1, "a", 3*time.Second))
		r := cl.members[1].node.r
		r.StopGracefully(t.Context())
		if s := r.Status(); s.Leader != 2 && s.Leader != 3 {
			t.Errorf("it stopped while the leader was %d", s.Leader)
		}
	})
}

// TestLastToStop: a leader that is told to stop while the others do, or a moment after them, does not wait for one of them to take
// over.
func TestLastToStop(t *testing.T) {
	for _, later := range []time.Duration{0, time.Millisecond, 2 * time.Millisecond, 50 * time.Millisecond} {
		bubble.Test(t, func(t *testing.T) {
			cl := quietCluster(t, 3)
			defer cl.close()
			cl.must(cl.campaign(1))
			cl.must(cl.propose(1, "a", 3*time.Second))
			r := cl.members[1].node.r
			cl.crash(2)
			cl.crash(3)
			time.Sleep(later)
			began := time.Now()
			r.StopGracefully(t.Context())
			if took := time.Since(began); took > 100*time.Millisecond { // of the bubble's time; an election timeout is a second
				t.Errorf("stopped %v after the others, it took %v", later, took)
			}
		})
	}
}
