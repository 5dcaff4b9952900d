package replica

import (
	"context"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// woken takes the wake-up that waits for the loop.
func woken(in *inbox) bool {
	select {
	case <-in.wake:
		return true
	default:
		return false
	}
}

// TestGather: only the first of those who wait wakes the loop, and whoever finds that nobody waits is the first. A command that
// nobody woke the loop for would wait for a tick, or for ever.
func TestGather(t *testing.T) {
	in := &inbox{wake: make(chan struct{}, 1)}
	for range 3 {
		in.propose(proposal{context.Background(), nil, nil})
		if !woken(in) {
			t.Fatal("the first did not wake the loop")
		}
		in.propose(proposal{context.Background(), nil, nil})
		if woken(in) {
			t.Fatal("the second woke the loop too")
		}
		var w work
		in.take(&w)
	}
}

// TestGatherEnds: many at once, with a loop that takes what waits whenever it is woken, and nothing else: none is left behind.
func TestGatherEnds(t *testing.T) {
	in := &inbox{wake: make(chan struct{}, 1)}
	const callers, each = 16, 200
	for range callers {
		go func() {
			for range each {
				in.propose(proposal{context.Background(), nil, nil})
			}
		}()
	}
	deadline := time.After(time.Minute)
	for got := 0; got < callers*each; {
		select {
		case <-in.wake:
			var w work
			in.take(&w)
			got += len(w.proposals)
		case <-deadline:
			t.Fatalf("%d of %d commands were left without waking the loop", callers*each-got, callers*each)
		}
	}
}

// TestReceiveTogether: messages that came together are there when the loop is woken for them.
func TestReceiveTogether(t *testing.T) {
	var lost []uint64
	r := &Replica{in: inbox{wake: make(chan struct{}, 1)}, ctx: t.Context()}
	r.c.MaxInboxBytes = 1000
	r.c.Observer.MessageDropped = func(from uint64) { lost = append(lost, from) }
	message := func(from uint64, bytes int) *raftpb.Message {
		return &raftpb.Message{Type: raftpb.MsgApp.Enum(), From: new(from), Entries: []*raftpb.Entry{{Data: make([]byte, bytes)}}}
	}
	r.Receive(message(2, 10), &raftpb.Message{Type: raftpb.MsgHup.Enum()}, message(3, 900), message(4, 10))
	if !woken(&r.in) {
		t.Fatal("the loop was not woken")
	}
	var w work
	r.in.take(&w)
	if len(w.messages) != 2 || w.messages[0].GetFrom() != 2 || w.messages[1].GetFrom() != 4 {
		t.Errorf("the loop got %v", w.messages)
	}
	if len(lost) != 1 || lost[0] != 3 {
		t.Errorf("dropped were messages of %v, want one of 3", lost)
	}
}
