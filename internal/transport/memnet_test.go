package transport

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/bubble"
)

type memPeer struct {
	*Endpoint
	*recorder
	fs *vfs.MemFS
}

func joinMem(t *testing.T, n *Network, id uint64) *memPeer {
	t.Helper()
	fs := vfs.NewMem()
	e, err := n.Join(EndpointConfig{ID: id, FS: fs, Incoming: "incoming"})
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{serve: func(_ context.Context, from uint64, kind byte, body []byte) ([]byte, error) {
		if len(body) == 0 {
			return nil, errors.New("nothing asked")
		}
		return fmt.Appendf(nil, "%d %d %s", from, kind, body), nil
	}}
	e.Serve(r)
	return &memPeer{e, r, fs}
}

// TestNetwork: what happens to messages between members of a network in memory.
func TestNetwork(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		n := NewNetwork(NetworkOptions{Seed: 1, MinDelay: time.Millisecond, MaxDelay: 10 * time.Millisecond})
		defer n.Close()
		a, b, c := joinMem(t, n, 1), joinMem(t, n, 2), joinMem(t, n, 3)
		time.Sleep(time.Second)
		want(t, "all are there", a.heard(), "up 2, up 3")
		if _, err := n.Join(EndpointConfig{ID: 1, FS: a.fs, Incoming: "incoming"}); err == nil {
			t.Error("a member joined twice")
		}

		// Appends keep their order; nothing is lost that is not meant to be; the receiver shares no memory.
		data := []byte("data")
		for i := range uint64(50) {
			a.Send([]*raftpb.Message{appendOf(1, 2, i+1, data), heartbeat(1, 2)})
		}
		time.Sleep(time.Second)
		data[0] = 'X'
		var indexes []uint64
		for _, m := range b.kept() {
			if m.GetType() == raftpb.MsgApp {
				indexes = append(indexes, m.Entries[0].GetIndex())
				if string(m.Entries[0].Data) != "data" {
					t.Fatal("the receiver sees what the sender does to its memory")
				}
			}
		}
		if b.received() != 100 || !slices.IsSorted(indexes) {
			t.Errorf("%d messages of 100; appends %v", b.received(), indexes)
		}

		// A cut tells nobody; one way leaves the other open.
		n.Cut(1, 3)
		a.Send([]*raftpb.Message{heartbeat(1, 3)})
		c.Send([]*raftpb.Message{heartbeat(3, 1)})
		time.Sleep(time.Second)
		if c.received() != 0 || a.received() != 1 || a.heard() != "" {
			t.Errorf("over a cut %d, against it %d", c.received(), a.received())
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Call(ctx, 3, 1, []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a call over a cut: %v", err)
		}
		n.Heal()
		if answer, err := a.Call(t.Context(), 3, 7, []byte("x")); err != nil || string(answer) != "1 7 x" {
			t.Errorf("a call: %q, %v", answer, err)
		}
		var remote *RemoteError
		if _, err := a.Call(t.Context(), 3, 7, nil); !errors.As(err, &remote) {
			t.Errorf("a call that fails: %v", err)
		}

		// A pause holds everything up; nothing is lost.
		n.Pause(3)
		a.Send([]*raftpb.Message{heartbeat(1, 3)})
		time.Sleep(time.Second)
		if c.received() != 0 {
			t.Error("a paused member got a message")
		}
		n.Resume(3)
		time.Sleep(time.Second)
		if c.received() != 1 {
			t.Error("what was held up is lost")
		}

		// A checkpoint, and one whose receiver crashes in the meantime.
		writeCheckpoint(t, a.fs, "checkpoint")
		done := make(chan error, 1)
		a.SendSnapshot(snapshotOf(1, 2, 10), "checkpoint", func(err error) { done <- err })
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		compareCheckpoint(t, b.fs, b.snapshots[0])
		n.Crash(2)
		a.SendSnapshot(snapshotOf(1, 2, 10), "checkpoint", func(err error) { done <- err })
		if err := <-done; err == nil {
			t.Error("a checkpoint was sent to a member that is not there")
		}
		a.Send([]*raftpb.Message{heartbeat(1, 2)})
		time.Sleep(time.Second)
		want(t, "a crash", a.heard(), "unreachable 2, down 2 gone=true")
		if _, err := a.Call(t.Context(), 2, 1, nil); !errors.Is(err, ErrUnreachable) {
			t.Errorf("a call to a member that is not there: %v", err)
		}
		b = joinMem(t, n, 2)
		time.Sleep(time.Second)
		want(t, "back again", a.heard(), "up 2")
		if b.received() != 0 {
			t.Error("a message for an earlier life arrived")
		}
	})
}

// TestNetworkSeed: loss and doubling happen about as often as asked, and the same seed chooses the same messages.
func TestNetworkSeed(t *testing.T) {
	fate := func(seed uint64) (s string) {
		bubble.Test(t, func(t *testing.T) {
			n := NewNetwork(NetworkOptions{Seed: seed, MinDelay: time.Millisecond, MaxDelay: 2 * time.Millisecond, Loss: 0.2, Duplicate: 0.1})
			defer n.Close()
			a, b := joinMem(t, n, 1), joinMem(t, n, 2)
			time.Sleep(time.Second)
			var counts [500]int
			for i := range counts {
				m := heartbeat(1, 2)
				m.Commit = new(uint64(i))
				a.Send([]*raftpb.Message{m})
			}
			time.Sleep(time.Second)
			for _, m := range b.kept() {
				counts[m.GetCommit()]++
			}
			s = strings.Trim(fmt.Sprint(counts), "[]")
		})
		return s
	}
	first := fate(1)
	if fate(1) != first || fate(2) == first {
		t.Error("the seed does not decide")
	}
	if lost, twice := strings.Count(first, "0"), strings.Count(first, "2"); lost < 60 || lost > 140 || twice < 15 || twice > 80 {
		t.Errorf("%d of 500 lost, %d doubled", lost, twice)
	}
}
