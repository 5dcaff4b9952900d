package replica

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/command"
)

// TestLostIsProposedAgain: a forwarded command is sent again when its leader is certain not to have got it into the log,
// and only then.
func TestLostIsProposedAgain(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		propose := func(cmd string) {
			if err := l.r.Propose(t.Context(), nil, []byte(cmd)); err != nil {
				t.Fatal(err)
			}
		}
		commands := func(m *raftpb.Message) (s string) {
			for _, e := range m.Entries {
				_ = command.Batch(e.Data, func(_ uint64, cmd []byte) error { s += string(cmd); return nil })
			}
			return s
		}
		gone, leave := context.WithCancel(t.Context())
		l.heartbeat(2, 2, 0)
		propose("a")
		pa := l.one(raftpb.MsgProp)
		propose("b")
		pb := l.one(raftpb.MsgProp)
		if err := l.r.Propose(gone, nil, []byte("c")); err != nil {
			t.Fatal(err)
		}
		l.one(raftpb.MsgProp)
		late := make(chan struct{})
		if err := l.r.Propose(t.Context(), late, []byte("d")); err != nil {
			t.Fatal(err)
		}
		l.one(raftpb.MsgProp)
		if pa.GetTerm() != 2 || pa.GetTo() != 2 || commands(pa) != "a" {
			t.Errorf("sent %v", pa)
		}

		// Another leader is not proof: it may have the entries.
		l.heartbeat(3, 3, 0)
		if ms := l.take(raftpb.MsgProp); len(ms) != 0 {
			t.Errorf("%d commands were sent again before their fate was known", len(ms))
		}
		leave() // nobody waits for c and d any more
		close(late)

		// Its first entry is: a is in the log before it, b, c and d are not.
		l.appendEntries(3, 3, Position{1, 1}, &raftpb.Entry{Term: new(uint64(2)), Data: pa.Entries[0].Data}, &raftpb.Entry{Term: new(uint64(3))})
		again := l.one(raftpb.MsgProp)
		if commands(again) != "b" || again.GetTerm() != 3 || again.GetTo() != 3 {
			t.Errorf("sent again %q in term %d to %d", commands(again), again.GetTerm(), again.GetTo())
		}
		if string(again.Context) == string(pb.Context) {
			t.Error("under the same number in another term")
		}

		// Without a change of term it is sent again under the same number, so that the leader takes it once.
		for range 20 {
			time.Sleep(100 * time.Millisecond)
			l.heartbeat(3, 3, 0)
		}
		resent := l.take(raftpb.MsgProp)
		if len(resent) == 0 {
			t.Error("not sent again, though the leader may not have got it")
		}
		for _, m := range resent {
			if string(m.Context[:16]) != string(again.Context[:16]) {
				t.Error("sent again under another number")
			}
		}
		// When the connection to the leader is new, at once; but nothing that was meant for an earlier term.
		l.r.PeerUp(3)
		if n := len(l.take(raftpb.MsgProp)); n != 1 {
			t.Errorf("sent %d commands again over a new connection", n)
		}
		l.heartbeat(2, 4, 0)
		l.r.PeerUp(2)
		if ms := l.take(raftpb.MsgProp); len(ms) != 0 {
			t.Errorf("sent again in a later term: %v", ms)
		}
		l.heartbeat(3, 5, 0)
		l.appendEntries(3, 5, Position{3, 3}, &raftpb.Entry{Term: new(uint64(3)), Data: again.Entries[0].Data})
		if n := l.r.pending.commands.Load(); n != 0 {
			t.Errorf("%d commands are still counted", n)
		}
		if got := l.machine.commands(); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("applied %q", got)
		}
	})
}

// lead makes the member leader of the next term.
func (l *lone) lead() (term uint64) {
	l.t.Helper()
	if err := l.r.onLoop(l.t.Context(), func(lo *loop) { _ = lo.rn.Campaign() }); err != nil {
		l.t.Fatal(err)
	}
	for _, kinds := range [][2]raftpb.MessageType{{raftpb.MsgPreVote, raftpb.MsgPreVoteResp}, {raftpb.MsgVote, raftpb.MsgVoteResp}} {
		ms := l.take(kinds[0])
		if len(ms) != len(l.voters)-1 {
			l.t.Fatalf("%d messages %s", len(ms), kinds[0])
		}
		for _, m := range ms {
			l.r.Receive(&raftpb.Message{Type: kinds[1].Enum(), From: new(m.GetTo()), To: new(uint64(1)), Term: new(m.GetTerm())})
		}
	}
	synctest.Wait()
	s := l.r.Status()
	if term = s.Term; s.State != Leader {
		l.t.Fatalf("%+v", s)
	}
	return term
}

// TestLeaderTakesForeign: a leader appends a forwarded command once, and only if it was meant for its term.
func TestLeaderTakesForeign(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		term := l.lead()
		forward := func(term, seq uint64, data string) {
			l.r.Receive(&raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(term),
				Context: ticket{7, seq, 1}.encode(), Entries: []*raftpb.Entry{{Data: []byte(data)}}})
			synctest.Wait()
		}
		before := l.r.Status().LastIndex
		forward(term-1, 1, "meant for the leader before")
		forward(term+1, 1, "meant for another")
		if last := l.r.Status().LastIndex; last != before {
			t.Errorf("%d entries of other terms were taken", last-before)
		}
		forward(term, 1, "x")
		forward(term, 1, "x")
		forward(term, 2, "y")
		if last := l.r.Status().LastIndex; last != before+2 {
			t.Errorf("%d entries were taken, not two", last-before)
		}
		// A MsgProp that does not come from a replica at all.
		l.r.Receive(&raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(uint64(2)), To: new(uint64(1)), Entries: []*raftpb.Entry{{Data: []byte("z")}}})
		synctest.Wait()
		if last := l.r.Status().LastIndex; last != before+2 {
			t.Error("a command without a ticket was taken")
		}
		// When it is leader no more, what it took and did not hand to raft is void.
		l.heartbeat(2, term+1, 0)
		forward(term+1, 3, "to a follower")
		if ms := l.take(raftpb.MsgProp); len(ms) != 0 {
			t.Errorf("a follower passed on %v", ms)
		}
	})
}

// TestLeaderSpeaksFirst: a member whose connection comes up may have started: it hears of the leader before the next tick.
func TestLeaderSpeaksFirst(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		l.heartbeat(3, 1, 0)
		l.r.PeerUp(2)
		if ms := l.take(raftpb.MsgHeartbeat); len(ms) != 0 {
			t.Errorf("a follower sent %v", ms)
		}
		term := l.lead()
		l.take(raftpb.MsgHeartbeat)
		l.r.PeerUp(2)
		if m := l.one(raftpb.MsgHeartbeat); m.GetTo() != 2 || m.GetTerm() != term {
			t.Errorf("sent %v", m)
		}
	})
}

// TestNonsenseFromPeers: messages that arrive whole and that no member of this version sends. Raft would panic on them;
// a change of the members that cannot be read would, once it is in the log, stop every member for good.
func TestNonsenseFromPeers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		term := l.lead()
		last := l.r.Status().LastIndex
		l.appendEntriesAck(2, term, last)
		// Questions, probes and answers with no context, half of one, or too much; and what says that it comes from this member.
		for _, kind := range []raftpb.MessageType{raftpb.MsgReadIndex, raftpb.MsgReadIndexResp, raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp} {
			for _, context := range [][]byte{nil, {1}, make([]byte, 8), make([]byte, 17)} {
				for _, entries := range [][]*raftpb.Entry{nil, {{}}, {{}, {}}} {
					for _, from := range []uint64{1, 2} {
						if kind == raftpb.MsgHeartbeat && from == 2 {
							continue // a second leader in the term: raft's to panic at, and no member's to be
						}
						l.r.Receive(&raftpb.Message{Type: kind.Enum(), From: new(from), To: new(uint64(1)), Term: new(term),
							Context: context, Entries: entries})
					}
				}
			}
		}
		synctest.Wait()
		for seq, kind := range []raftpb.EntryType{raftpb.EntryConfChange, raftpb.EntryConfChangeV2} {
			l.r.Receive(&raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(term),
				Context: ticket{7, uint64(seq) + 1, 1}.encode(), Entries: []*raftpb.Entry{{Type: kind.Enum(), Data: []byte{0xff}}}})
		}
		synctest.Wait()
		if got := l.r.Status().LastIndex; got != last {
			t.Errorf("%d entries were taken", got-last)
		}
	})
}

// appendEntriesAck plays a follower that has everything up to index.
func (l *lone) appendEntriesAck(from, term, index uint64) {
	l.r.Receive(&raftpb.Message{Type: raftpb.MsgAppResp.Enum(), From: new(from), To: new(uint64(1)), Term: new(term), Index: new(index)})
	synctest.Wait()
}

// TestWhatMustBeDurable: votes, terms and entries are written durably before anybody hears of them; a commit index alone
// is not worth a sync.
func TestWhatMustBeDurable(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		written := func() (ws []Write) {
			synctest.Wait()
			l.mu.Lock()
			defer l.mu.Unlock()
			ws, l.writes = l.writes, nil
			return ws
		}
		written()
		l.heartbeat(2, 2, 1)
		if ws := written(); len(ws) != 1 || !ws[0].Sync || ws[0].HardState.GetTerm() != 2 {
			t.Errorf("a new term: %+v", ws)
		}
		l.appendEntries(2, 2, Position{1, 1}, &raftpb.Entry{Term: new(uint64(2))})
		if ws := written(); len(ws) != 1 || !ws[0].Sync || len(ws[0].Entries) != 1 {
			t.Errorf("an entry: %+v", ws)
		}
		l.r.Receive(&raftpb.Message{Type: raftpb.MsgApp.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(2)),
			Index: new(uint64(2)), LogTerm: new(uint64(2)), Commit: new(uint64(2))})
		for _, w := range written() {
			if w.Sync {
				t.Errorf("a commit index: %+v", w)
			}
		}
		l.take(raftpb.MsgVoteResp)
		time.Sleep(5 * time.Second) // the leader is silent: others may stand for election
		written()
		vote := &raftpb.Message{Type: raftpb.MsgVote.Enum(), From: new(uint64(3)), To: new(uint64(1)), Term: new(uint64(9)), Index: new(uint64(9)), LogTerm: new(uint64(8))}
		l.r.Receive(vote)
		ws := written()
		if len(ws) == 0 || !ws[0].Sync || ws[0].HardState.GetVote() != 3 {
			t.Errorf("a vote: %+v", ws)
		}
		if m := l.one(raftpb.MsgVoteResp); m.GetReject() || m.GetTerm() != 9 {
			t.Errorf("answered %v", m)
		}
	})
}

// TestForeignTakesOnce: a leader takes each number of each start of a member once, and forgets no more than it may.
func TestForeignTakesOnce(t *testing.T) {
	var f foreign
	f.retain(5, true)
	for i, c := range []struct {
		sender uint64
		t      ticket
		want   bool
	}{
		{2, ticket{10, 1, 1}, true},
		{2, ticket{10, 1, 1}, false}, // doubled
		{2, ticket{10, 3, 1}, true},  // overtook
		{2, ticket{10, 2, 1}, true},
		{3, ticket{10, 1, 1}, true},  // another member
		{2, ticket{11, 1, 1}, true},  // another start
		{2, ticket{10, 2, 1}, false}, // late from the start before
		{2, ticket{10, 9, 7}, true},  // below 7 nothing will come
		{2, ticket{10, 5, 1}, false}, // so this is doubled
		{2, ticket{10, 7, 7}, true},
	} {
		if got := f.accept(c.sender, c.t); got != c.want {
			t.Errorf("step %d: %v for %+v from %d", i, got, c.t, c.sender)
		}
	}
	f.retain(5, true)
	if f.accept(2, ticket{10, 7, 7}) {
		t.Error("forgotten within the term")
	}
	f.retain(6, true)
	if !f.accept(2, ticket{10, 7, 7}) {
		t.Error("remembered beyond the term")
	}
	for seq := uint64(1); seq < 10_000; seq++ {
		f.accept(4, ticket{1, seq, seq - min(seq, 10)})
	}
	if n := len(f.taken[4][0].seqs); n > 20 {
		t.Errorf("%d numbers are remembered where 10 can come again", n)
	}
}
