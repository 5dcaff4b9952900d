package replica

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/transport"
)

const slowDisk = 500 * time.Millisecond

// slowDiskCluster has state machines that write nothing, so that only the log meets the disk.
func slowDiskCluster(t *testing.T, voters int) *cluster {
	cl := newCluster(t, voters, 0, transport.NetworkOptions{MinDelay: time.Millisecond, MaxDelay: time.Millisecond},
		Config{SlowDisk: slowDisk})
	for _, m := range cl.members {
		m.node.machine.mu.Lock()
		m.node.machine.flushEvery = 1 << 40
		m.node.machine.mu.Unlock()
	}
	return cl
}

// TestSlowDisk: a leader hands leadership over when its disk does not keep up with another member's, and keeps it when all
// disks are as slow.
func TestSlowDisk(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		cl := slowDiskCluster(t, 3)
		defer cl.close()
		cl.must(cl.campaign(1))
		cl.must(cl.propose(1, "a", 3*time.Second))
		term := cl.members[1].node.r.Status().Term
		slow := func(d time.Duration, ids ...uint64) {
			for _, id := range ids {
				cl.members[id].node.fs.set(d)
			}
		}
		slow(3*time.Second, 1, 2, 3)
		b := make(chan error, 1)
		go func() { b <- cl.propose(1, "b", 10*time.Second) }()
		for len(b) == 0 {
			if to := cl.members[1].node.r.Status().LeadTransferee; to != 0 {
				t.Fatalf("leadership is handed to %d, whose disk is no quicker", to)
			}
			time.Sleep(10 * time.Millisecond)
		}
		cl.must(<-b)
		if s := cl.members[1].node.r.Status(); s.Leader != 1 || s.Term != term {
			t.Errorf("all disks are slow, and the leader is %d in term %d, was 1 in term %d", s.Leader, s.Term, term)
		}
		slow(0, 2, 3)
		time.Sleep(10 * time.Second) // what is under way ends
		done := make(chan error)
		go func() { done <- cl.propose(2, "c", 30*time.Second) }()
		if !cl.until(4*time.Second, func() bool { l := cl.leader(2, 3); return l != 0 && l != 1 }) {
			t.Error("the leader with the slow disk has not handed leadership over")
		}
		cl.must(<-done)
		slow(0, 1)
		cl.must(cl.check(30 * time.Second))
	})
}

func isStuck(r *Replica) bool {
	select {
	case <-r.Stuck():
		return true
	default:
		return false
	}
}

// TestSlowOrHungLeader: a leader whose commits take longer than the threshold, or never end, has handed leadership over within
// two seconds of the first write that was slow; the members go on meanwhile, and nothing is lost.
func TestSlowOrHungLeader(t *testing.T) {
	for _, took := range []time.Duration{550 * time.Millisecond, 700 * time.Millisecond, 990 * time.Millisecond, 3 * time.Second, 0} {
		name := took.String()
		if took == 0 {
			name = "hung"
		}
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				cl := slowDiskCluster(t, 3)
				defer cl.close()
				cl.must(cl.campaign(1))
				for i := range 5 {
					cl.must(cl.propose(1, fmt.Sprint("quick", i), 3*time.Second))
				}
				fs := cl.members[1].node.fs
				release := func() { fs.set(0) }
				if took > 0 {
					fs.set(took)
				} else {
					release = fs.hang()
				}
				began := time.Now()
				var over atomic.Bool
				done := make(chan error)
				go func() {
					for i := 0; !over.Load(); i++ {
						if err := cl.propose(2, fmt.Sprint("slow", i), time.Second); err != nil {
							done <- err
							return
						}
						time.Sleep(10 * time.Millisecond)
					}
					done <- nil
				}()
				if !cl.until(5*time.Second, func() bool { l := cl.leader(2, 3); return l != 0 && l != 1 }) {
					t.Error("leadership was not handed over")
				}
				if took := time.Since(began); took > 2*time.Second {
					t.Errorf("it took %v", took)
				}
				time.Sleep(5 * time.Second)
				if l := cl.leader(2, 3); l == 0 || l == 1 {
					t.Errorf("after a while the leader is %d", l)
				}
				if took == 0 && !isStuck(cl.members[1].node.r) {
					t.Error("it is not stuck")
				}
				over.Store(true)
				cl.must(<-done)
				release()
				cl.must(cl.check(30 * time.Second))
				if !cl.until(5*time.Second, func() bool { return !isStuck(cl.members[1].node.r) }) {
					t.Error("still stuck")
				}
			})
		})
	}
}

// TestStoodStill: a member that stands still again and again while something is with its disk, or with its state machine, is not
// called slow for it, hands nothing over, and refuses nobody.
func TestStoodStill(t *testing.T) {
	for id, name := range map[uint64]string{1: "leader", 3: "follower"} {
		for _, tick := range []time.Duration{100 * time.Millisecond, time.Second} {
			t.Run(fmt.Sprint(name, " ", tick), func(t *testing.T) {
				bubble.Test(t, func(t *testing.T) { standStill(t, id, tick) })
			})
		}
	}
}

func standStill(t *testing.T, id uint64, tick time.Duration) {
	var slow, handed atomic.Int64
	cl := newCluster(t, 3, 0, transport.NetworkOptions{MinDelay: time.Millisecond, MaxDelay: time.Millisecond}, Config{
		SlowDisk: slowDisk, Tick: tick, ElectionTicks: 100, Observer: Observer{
			DiskSlow:   func(is bool) { slow.Add(1) },
			HandedOver: func(uint64) { handed.Add(1) },
		}})
	defer cl.close()
	cl.must(cl.campaign(1))
	cl.must(cl.propose(1, "a", 3*time.Second))
	n := cl.members[id].node
	const pause = 5 * time.Second // 4 slowDisk and more
	for i := range 6 {
		// The clock goes on while the process does nothing. What was under way then needs a moment more afterwards.
		n.fs.set(pause + 300*time.Millisecond)
		if i%3 == 2 {
			n.fs.set(0)
			n.machine.mu.Lock()
			n.machine.applyDelay = pause + 300*time.Millisecond
			n.machine.mu.Unlock()
		}
		went := make(chan error)
		go func() { went <- cl.propose(id, fmt.Sprint("b", i), 30*time.Second) }()
		time.Sleep(20 * time.Millisecond)
		cl.must(n.r.onLoop(t.Context(), func(*loop) { time.Sleep(pause + 100*time.Millisecond) }))
		n.fs.set(0)
		n.machine.mu.Lock()
		n.machine.applyDelay = 0
		n.machine.mu.Unlock()
		for range 10 {
			if time.Sleep(tick); isStuck(n.r) {
				t.Fatalf("it refuses calls after pause %d", i)
			}
		}
		cl.must(<-went)
	}
	if l := cl.leader(); l != 1 || slow.Load() != 0 || handed.Load() != 0 {
		t.Errorf("the leader is %d; %d times a disk was called slow or quick again, %d times leadership was handed over", l, slow.Load(), handed.Load())
	}
	cl.must(cl.check(10 * time.Second))
}

// TestHungFollower: the others go on, and the member says of itself that it is stuck, and that it is not any more.
func TestHungFollower(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		cl := slowDiskCluster(t, 3)
		defer cl.close()
		cl.must(cl.campaign(1))
		cl.must(cl.propose(1, "a", 3*time.Second))
		release := cl.members[3].node.fs.hang()
		for i := range 100 {
			cl.must(cl.propose(1, fmt.Sprint("b", i), time.Second))
			time.Sleep(50 * time.Millisecond)
		}
		if err := cl.members[3].node.r.ReadBarrier(t.Context(), nil); !errors.Is(err, kv.ErrTimeoutApply) {
			t.Errorf("a read behind what it has applied gives %v", err)
		}
		if l := cl.leader(); l != 1 {
			t.Errorf("the leader is %d", l)
		}
		for id, m := range cl.members {
			if isStuck(m.node.r) != (id == 3) {
				t.Errorf("member %d is stuck: %t", id, isStuck(m.node.r))
			}
		}
		release()
		cl.must(cl.check(5 * time.Second))
		cl.must(cl.read(3, time.Second))
		time.Sleep(time.Second)
		if isStuck(cl.members[3].node.r) {
			t.Error("still stuck")
		}
	})
}

// TestStalledLeader: a leader whose state machine takes no more hands leadership over, though its log is quick.
func TestStalledLeader(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		cl := slowDiskCluster(t, 3)
		defer cl.close()
		cl.must(cl.campaign(1))
		cl.must(cl.propose(1, "a", 3*time.Second))
		machine := cl.members[1].node.machine
		machine.mu.Lock()
		machine.applyDelay = 20 * time.Second
		machine.mu.Unlock()
		cl.must(cl.propose(2, "b", time.Second))
		if !cl.until(2*time.Second, func() bool { l := cl.leader(2, 3); return l != 0 && l != 1 }) {
			t.Error("leadership was not handed over")
		}
		cl.must(cl.propose(2, "c", time.Second))
		time.Sleep(5 * time.Second)
		if !isStuck(cl.members[1].node.r) {
			t.Error("it is not stuck")
		}
		machine.mu.Lock()
		machine.applyDelay = 0
		machine.mu.Unlock()
		cl.must(cl.check(60 * time.Second))
	})
}

// pacedLog is a log that is as slow as it is told to say.
type pacedLog struct {
	Log
	busy atomic.Int64
}

func (l *pacedLog) Pace() (median, busy time.Duration) { return 0, time.Duration(l.busy.Load()) }

// TestSlowMembersStandBack: without a leader a member with a slow disk asks for no votes for five election timeouts, and then
// does; it gives votes to others all the time.
func TestSlowMembersStandBack(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		l.heartbeat(2, 1, 1)
		l.r.Stop()
		paced := &pacedLog{Log: l.log}
		paced.busy.Store(int64(time.Hour))
		var err error
		l.r, err = Start(Config{ID: 1, Origin: 0xabd, Log: paced, Machine: l.machine, Transport: l, SlowDisk: slowDisk,
			Applied: l.machine.state.Applied, ConfState: l.machine.state.ConfState})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond) // the first look at the disk
		l.heartbeat(2, 1, 1)
		l.take(raftpb.MsgPreVote)
		l.r.PeerDown(2, true)
		time.Sleep(4500 * time.Millisecond)
		if ms := l.take(raftpb.MsgPreVote); len(ms) > 0 {
			t.Fatalf("asked for votes: %v", ms)
		}
		l.r.Receive(&raftpb.Message{Type: raftpb.MsgPreVote.Enum(), From: new(uint64(3)), To: new(uint64(1)), Term: new(uint64(2)),
			Index: new(uint64(1)), LogTerm: new(uint64(1))})
		if m := l.one(raftpb.MsgPreVoteResp); m.GetReject() {
			t.Errorf("refused its vote: %v", m)
		}
		time.Sleep(5 * time.Second)
		if ms := l.take(raftpb.MsgPreVote); len(ms) == 0 {
			t.Error("it never asks for votes")
		}
	})
}

// TestElectionOnSlowDisks: where the commits of all members take longer than an election timeout, they have a leader as soon as the
// votes of the first who stood are durable, keep it, and have another as soon when it is gone.
func TestElectionOnSlowDisks(t *testing.T) {
	for seed := range uint64(10) {
		bubble.Test(t, func(t *testing.T) {
			cl := newCluster(t, 3, 0, transport.NetworkOptions{Seed: seed, MaxDelay: 20 * time.Millisecond}, Config{SlowDisk: slowDisk})
			defer cl.close()
			const d = 3 * time.Second // an election timeout is 1 to 2 s
			for _, m := range cl.members {
				m.node.fs.set(d)
			}
			if !cl.until(2*d, func() bool { return cl.leader() != 0 }) {
				t.Fatalf("seed %d: no leader %v after the start", seed, 2*d)
			}
			leader := cl.leader()
			term := cl.members[leader].node.r.Status().Term
			for range 3 {
				cl.must(cl.propose(leader, fmt.Sprint(leader, time.Now()), 10*d))
			}
			if s := cl.members[leader].node.r.Status(); s.Leader != leader || s.Term != term {
				t.Errorf("seed %d: the leader was %d in term %d, and is %d in term %d", seed, leader, term, s.Leader, s.Term)
			}
			cl.crash(leader)
			// The others leave it to quicker ones for a while, and may have a write under way.
			if limit := standBackMost + 4*d; !cl.until(limit, func() bool { return cl.leader() != 0 }) {
				t.Errorf("seed %d: no leader %v after the first one's end", seed, limit)
			}
		})
	}
}

// TestFreshStart: members that start together have a leader soon, however long the election timeout is: also if the disks of all
// are slow from the beginning, so that each believes that others are quicker, and if they cannot reach one another at first.
func TestFreshStart(t *testing.T) {
	const soon = 10 * time.Second // of the bubble's time; an election timeout is 400 s
	config := Config{SlowDisk: slowDisk, Tick: time.Second, ElectionTicks: 400}
	led := func(cl *cluster) func() bool { return func() bool { return cl.leader(1, 2, 3) != 0 } }
	for _, d := range []time.Duration{600 * time.Millisecond, 1200 * time.Millisecond, 2 * time.Second} {
		for seed := range uint64(20) {
			bubble.Test(t, func(t *testing.T) {
				cl := newCluster(t, 3, 0, transport.NetworkOptions{Seed: seed, MaxDelay: 20 * time.Millisecond, Loss: 0.2}, config)
				defer cl.close()
				for _, m := range cl.members {
					m.node.fs.set(d)
				}
				time.Sleep(time.Duration(seed) * 10 * time.Millisecond)
				if limit := soon + 20*d; !cl.until(limit, led(cl)) {
					t.Errorf("seed %d: commits take %v on all disks, and after %v there is no leader", seed, d, limit)
				}
			})
		}
	}
	bubble.Test(t, func(t *testing.T) {
		cl := newCluster(t, 3, 0, transport.NetworkOptions{MaxDelay: 20 * time.Millisecond}, config)
		defer cl.close()
		cl.net.Partition([]uint64{1}, []uint64{2}, []uint64{3})
		time.Sleep(10 * time.Second)
		cl.net.Heal()
		if !cl.until(soon, led(cl)) {
			t.Errorf("%v after the members could reach one another there is no leader", soon)
		}
	})
}
