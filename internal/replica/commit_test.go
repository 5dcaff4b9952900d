package replica

import (
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/command"
)

// stalledLog keeps writes back until it is let go.
type stalledLog struct {
	raftLog
	l    *lone
	held []Write
	open bool
}

func (s *stalledLog) Append(w Write) {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	s.l.writes = append(s.l.writes, w)
	if s.open {
		s.raftLog.Append(w)
		return
	}
	s.held = append(s.held, w)
}

func (s *stalledLog) letGo() {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	s.open = true
	for _, w := range s.held {
		s.raftLog.Append(w)
	}
	s.held = nil
}

// takeWrites gives what was written since it was last asked.
func (l *lone) takeWrites() []Write {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	ws := l.writes
	l.writes = nil
	return ws
}

func (l *lone) appendOne(index, commit uint64, data string) {
	var es []*raftpb.Entry
	prev := index
	if data != "" {
		prev--
		es = []*raftpb.Entry{{Index: new(index), Term: new(uint64(1)), Type: raftpb.EntryNormal.Enum(), Data: command.AppendBatch(nil, 7, [][]byte{[]byte(data)})}}
	}
	l.r.Receive(&raftpb.Message{Type: raftpb.MsgApp.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(1)),
		Index: new(prev), LogTerm: new(uint64(1)), Entries: es, Commit: new(commit)})
	synctest.Wait()
}

// TestCommitWaitsForAWrite: a commit index alone is no reason to write. It is stored with the next entries, or with a tick.
func TestCommitWaitsForAWrite(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		l.appendOne(2, 1, "a")
		if m := l.one(raftpb.MsgAppResp); m.GetIndex() != 2 {
			t.Fatalf("acknowledged %v", m)
		}
		l.takeWrites()

		l.appendOne(2, 2, "") // the entry is committed
		if ws := l.takeWrites(); len(ws) != 0 {
			t.Fatalf("a commit index alone made %d writes", len(ws))
		}
		if s := l.r.Status(); s.Commit != 2 || s.Applied != 2 {
			t.Fatalf("committed %d, applied %d", s.Commit, s.Applied)
		}
		l.appendOne(3, 2, "b")
		l.one(raftpb.MsgAppResp)
		if ws := l.takeWrites(); len(ws) != 1 || len(ws[0].Entries) != 1 || ws[0].HardState.GetCommit() != 2 {
			t.Fatalf("the next entry was written as %+v", ws)
		}

		l.appendOne(3, 3, "")
		time.Sleep(150 * time.Millisecond) // a tick
		if ws := l.takeWrites(); len(ws) != 1 || ws[0].HardState.GetCommit() != 3 || ws[0].HardState.GetTerm() != 1 {
			t.Fatalf("after a tick was written %+v", ws)
		}
		if hs := l.log.HardState(); hs.GetCommit() != 3 {
			t.Fatalf("the log holds %v", hs)
		}

		l.appendOne(4, 3, "c")
		l.one(raftpb.MsgAppResp)
		l.appendOne(4, 4, "")
		l.r.Stop()
		synctest.Wait()
		if hs := l.log.HardState(); hs.GetCommit() != 4 {
			t.Fatalf("after a stop the log holds %v", hs)
		}
	})
}

// TestNothingIsAcknowledgedPastTheLog: an append without entries is acknowledged behind those that the log still writes.
func TestNothingIsAcknowledgedPastTheLog(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		l.r.Stop()
		slow := &stalledLog{raftLog: l.log, l: l, open: true}
		var err error
		l.r, err = Start(Config{ID: 1, Origin: 0xabd, Log: slow, Machine: l.machine, Transport: l,
			Applied: l.machine.state.Applied, ConfState: l.machine.state.ConfState})
		if err != nil {
			t.Fatal(err)
		}
		l.appendOne(2, 1, "a") // makes the term known
		l.take(raftpb.MsgAppResp)
		l.mu.Lock()
		slow.open = false
		l.mu.Unlock()
		l.appendOne(3, 1, "b")
		l.appendOne(3, 2, "")
		if ms := l.take(raftpb.MsgAppResp); len(ms) != 0 {
			t.Fatalf("acknowledged before it was durable: %v", ms)
		}
		slow.letGo()
		ms := l.take(raftpb.MsgAppResp)
		if len(ms) == 0 || ms[len(ms)-1].GetIndex() != 3 {
			t.Fatalf("acknowledged %v", ms)
		}
	})
}

// TestAcknowledgedOnce: what a leader was told it is not told again by each commit index that comes alone, unless it may have
// missed it: with each tick, and when a connection changes. Another leader, and another term, know nothing.
func TestAcknowledgedOnce(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		commit := func(from, term, index uint64) []*raftpb.Message {
			l.appendEntries(from, term, Position{index, 1})
			return l.take(raftpb.MsgAppResp)
		}
		l.appendOne(2, 1, "a")
		l.one(raftpb.MsgAppResp)
		if ms := commit(2, 1, 2); len(ms) != 0 {
			t.Errorf("said again: %v", ms)
		}
		l.appendOne(3, 2, "b")
		if m := l.one(raftpb.MsgAppResp); m.GetIndex() != 3 {
			t.Errorf("acknowledged %v", m)
		}
		time.Sleep(150 * time.Millisecond) // a tick
		for range 2 {
			ms := commit(2, 1, 3)
			if len(ms) != 1 || ms[0].GetIndex() != 3 {
				t.Fatalf("what may have been missed was answered with %v", ms)
			}
			if ms := commit(2, 1, 3); len(ms) != 0 {
				t.Errorf("said again: %v", ms)
			}
			l.r.PeerUp(2)
		}
		if ms := commit(3, 2, 3); len(ms) != 1 || ms[0].GetTo() != 3 || ms[0].GetTerm() != 2 {
			t.Errorf("another leader was answered with %v", ms)
		}
		l.appendEntries(3, 2, Position{9, 2})
		if m := l.one(raftpb.MsgAppResp); !m.GetReject() {
			t.Errorf("an append behind a gap was answered with %v", m)
		}
	})
}
