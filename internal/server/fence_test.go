package server

import (
	"context"
	"fmt"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/transport"
)

// fenceless plants a bug: a member behind it that is asked for its state by one that lost its log sends it without a fence.
type fenceless struct{ Transport }

func (f fenceless) Serve(h transport.Handler) { f.Transport.Serve(fencelessHandler{h.(*peers)}) }

type fencelessHandler struct{ *peers }

func (h fencelessHandler) Serve(ctx context.Context, from uint64, kind byte, body []byte) ([]byte, error) {
	if kind != callRebuild {
		return h.peers.Serve(ctx, from, kind, body)
	}
	c, err := h.m.machine.Checkpoint(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Release()
	sent := make(chan error, 1)
	h.m.transport.SendSnapshot(&raftpb.Message{
		Type: raftpb.MsgSnap.Enum(), From: new(h.m.identity.MemberID), To: new(from), Term: new(h.m.replica.Status().Term), Context: body,
		Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(c.Applied.Index), Term: new(c.Applied.Term)}},
	}, c.Dir, func(err error) { sent <- err })
	return []byte{1}, <-sent
}

// A leader that was deposed and has not heard of it is the only one that a member without its log can reach (A8). Without a
// fence it sends its state, the two are a majority, and a write that was acknowledged meanwhile is gone; so this finds a
// missing fence. With it the member waits for the leader that the others have.
func TestFence(t *testing.T) {
	for _, planted := range []bool{true, false} {
		t.Run(fmt.Sprint("planted ", planted), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) { rebuildFromDeposed(t, planted) })
		})
	}
}

func rebuildFromDeposed(t *testing.T, planted bool) {
	c := newCluster(t, 3)
	defer c.network.Close()
	c.change = func(o *Options) {
		if o.Name != "m1" {
			return
		}
		o.ElectionTicks = 100_000 // it never doubts that it leads
		if join := o.Transport; planted {
			o.Transport = func(tc TransportConfig) (Transport, error) {
				network, err := join(tc)
				return fenceless{network}, err
			}
		}
	}
	c.startAll()
	a, deposed, bad := c.members[0], c.members[1], c.members[2]
	leads := func(m *Member) bool { return m.Leader() == m.identity.MemberID }
	until(t, "the second member does not lead", func() bool {
		for _, m := range c.members {
			if leads(m) && m != deposed {
				_ = m.MoveLeader(t.Context(), deposed.identity.MemberID) // or again
			}
		}
		return leads(deposed)
	})
	put(t, a, "k", "before")
	caughtUp(t, bad, a)
	c.network.Partition([]uint64{deposed.identity.MemberID}, []uint64{a.identity.MemberID, bad.identity.MemberID})
	until(t, "the others have no leader", func() bool { return leads(a) || leads(bad) })
	put(t, a, "k", "acknowledged")
	c.network.Partition([]uint64{a.identity.MemberID}, []uint64{deposed.identity.MemberID, bad.identity.MemberID})
	bad.Kill()
	remove(t, c.disks[2], "data/log")
	if !leads(deposed) {
		t.Fatal("the leader that was deposed knows")
	}

	started := make(chan error, 1)
	go func() {
		m, err := Start(c.options(2))
		c.members[2] = m
		started <- err
	}()
	if planted {
		if err := <-started; err != nil {
			t.Fatal(err)
		}
	} else {
		time.Sleep(20 * time.Second)
		select {
		case err := <-started:
			t.Fatalf("it was rebuilt by a leader that was deposed, or gave up: %v", err)
		default:
		}
		c.network.Heal()
		if err := <-started; err != nil {
			t.Fatal(err)
		}
	}
	a.Kill()
	got := get(t, c.members[2], "k")
	if planted && got != "before" {
		t.Errorf("the planted bug is not found: k is %q", got)
	}
	if !planted && got != "acknowledged" {
		t.Errorf("an acknowledged write is lost: k is %q", got)
	}
	deposed.Kill()
	c.members[2].Kill()
}
