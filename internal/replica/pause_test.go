package replica

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/transport"
)

// pausedTicks is how often what stood still ticks in d afterwards at most: the one that waited in the ticker, and one at either end.
func pausedTicks(d time.Duration) uint64 { return uint64(d/(100*time.Millisecond)) + 2 }

// TestGoesOnAfterPause: members that go on after they stood still for many election timeouts, the leader or others, or all at once,
// do not make up for the ticks they missed, and whoever led a majority that moment leads on, in the same term.
func TestGoesOnAfterPause(t *testing.T) {
	for _, paused := range [][]uint64{{1}, {3}, {1, 3}, {1, 2, 3}} {
		t.Run(fmt.Sprint(paused), func(t *testing.T) {
			for seed := range uint64(5) {
				bubble.Test(t, func(t *testing.T) { goOn(t, seed, paused) })
			}
		})
	}
}

func goOn(t *testing.T, seed uint64, paused []uint64) {
	cl := newCluster(t, 3, 0, transport.NetworkOptions{Seed: seed, MaxDelay: 5 * time.Millisecond}, Config{})
	defer cl.close()
	cl.must(cl.campaign(1))
	cl.must(cl.propose(1, "a", 3*time.Second))
	time.Sleep(time.Duration(seed) * 230 * time.Millisecond)
	if cl.leader() != 1 {
		t.Fatalf("the leader is %d", cl.leader())
	}
	leader, term := uint64(1), cl.members[1].node.r.Status().Term
	const pause = 10 * time.Second // ten election timeouts
	before := map[uint64]uint64{}
	var mu sync.Mutex
	var standing sync.WaitGroup
	for _, id := range paused {
		standing.Go(func() {
			cl.must(cl.members[id].node.r.onLoop(t.Context(), func(l *loop) {
				mu.Lock()
				before[id] = l.ticks
				mu.Unlock()
				time.Sleep(pause)
			}))
		})
	}
	time.Sleep(pause - 50*time.Millisecond)
	if slices.Equal(paused, []uint64{1}) { // the others have elected one of them meanwhile
		if leader = cl.leader(2, 3); leader == 0 {
			t.Fatal("the others have no leader")
		}
		term = cl.members[leader].node.r.Status().Term
	}
	standing.Wait()
	after := 0 * time.Second
	for range 40 {
		time.Sleep(100 * time.Millisecond)
		after += 100 * time.Millisecond
		for _, id := range paused {
			var ticks uint64
			cl.must(cl.members[id].node.r.onLoop(t.Context(), func(l *loop) { ticks = l.ticks }))
			if ticks-before[id] > pausedTicks(after) {
				t.Fatalf("seed %d: member %d ticked %d times in %v", seed, id, ticks-before[id], after)
			}
		}
		for _, id := range cl.ids() {
			if s := cl.members[id].node.r.Status(); s.Term != term {
				t.Fatalf("seed %d: %v after the pause member %d is in term %d, and it was %d", seed, after, id, s.Term, term)
			}
		}
	}
	if l := cl.leader(); l != leader {
		t.Errorf("seed %d: the leader was %d, and is %d", seed, leader, l)
	}
	cl.must(cl.propose(leader, "b", 3*time.Second))
	cl.must(cl.check(10 * time.Second))
}

// TestAsksNobodyAfterPause: a follower that stood still asks for no votes, nor forgets its leader, when what the leader sent meanwhile waits
// for it; without that it does after an election timeout of its own ticks, not sooner.
func TestAsksNobodyAfterPause(t *testing.T) {
	for _, sends := range []bool{true, false} {
		bubble.Test(t, func(t *testing.T) {
			l := startLone(t)
			l.heartbeat(2, 2, 1)
			l.take(raftpb.MsgPreVote)
			for range 3 {
				const pause = 10 * time.Second
				stood := make(chan error)
				go func() { stood <- l.r.onLoop(t.Context(), func(*loop) { time.Sleep(pause) }) }()
				time.Sleep(pause / 2)
				if sends {
					l.r.Receive(&raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(2)), To: new(uint64(1)),
						Term: new(uint64(2)), Commit: new(uint64(1))})
				}
				if err := <-stood; err != nil {
					t.Fatal(err)
				}
				time.Sleep(350 * time.Millisecond)
				if ms := l.take(raftpb.MsgPreVote); len(ms) > 0 || l.r.Status().Leader != 2 {
					t.Fatalf("leader sends %t: asked for votes: %v, and the leader is %d", sends, ms, l.r.Status().Leader)
				}
				if !sends {
					break
				}
			}
			time.Sleep(2 * time.Second)
			if ms := l.take(raftpb.MsgPreVote); len(ms) == 0 {
				t.Error("it never asks for votes")
			}
		})
	}
}
