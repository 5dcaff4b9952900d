package replica

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// snapshot plays a leader that sends a checkpoint at p, with the given commands. It returns how often its files were
// discarded.
func (l *lone) snapshot(leader, term uint64, p Position, commands ...string) *atomic.Int32 {
	l.t.Helper()
	dir, cs := fmt.Sprintf("received-%d", p.Index), EncodeConfState(l.voters, nil)
	err := l.fs.MkdirAll(dir, 0o700)
	if err == nil {
		err = writeToy(l.fs, dir, "toy", toyState{Applied: p, ConfState: cs, Commands: commands})
	}
	confState, e := decodeConfState(cs)
	discarded := new(atomic.Int32)
	m := &raftpb.Message{Type: raftpb.MsgSnap.Enum(), From: new(leader), To: new(uint64(1)), Term: new(term),
		Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{ConfState: confState, Index: new(p.Index), Term: new(p.Term)}}}
	if err = errors.Join(err, e); err == nil {
		err = l.r.ReceiveSnapshot(m, dir, func() { discarded.Add(1); _ = l.fs.RemoveAll(dir) })
	}
	if err != nil {
		l.t.Fatal(err)
	}
	synctest.Wait()
	return discarded
}

// TestSnapshotDuringInstall: installing a checkpoint takes long, and meanwhile the leader, whose log no longer reaches back
// to it, sends a newer one. Both are installed, one after the other, and a third that is older is discarded.
func TestSnapshotDuringInstall(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		l.machine.installing = make(chan struct{})
		l.heartbeat(2, 2, 0)
		first := l.snapshot(2, 2, Position{50, 2}, "a")
		second := l.snapshot(2, 2, Position{90, 2}, "a", "b")
		old := l.snapshot(2, 2, Position{70, 2}, "a")
		if first.Load() != 0 || second.Load() != 0 || old.Load() != 1 {
			t.Errorf("discarded before they are installed: %d, %d; of no use: %d", first.Load(), second.Load(), old.Load())
		}
		if n := len(l.take(raftpb.MsgAppResp)); n > 1 { // the answer to the old one says only where the member was
			t.Errorf("%d answers before anything was installed", n)
		}
		close(l.machine.installing)
		synctest.Wait()
		select {
		case err := <-l.r.Failed():
			t.Fatal(err)
		default:
		}
		l.appendEntries(2, 2, Position{90, 2}, &raftpb.Entry{Term: new(uint64(2))})
		if got := l.machine.commands(); !slices.Equal(got, []string{"a", "b"}) || l.r.Status().Applied != 91 {
			t.Errorf("holds %q at %d", got, l.r.Status().Applied)
		}
		if first.Load() != 1 || second.Load() != 1 {
			t.Errorf("discarded %d and %d times", first.Load(), second.Load())
		}
	})
}

// TestHeldDuringInstall: what must be durable while a checkpoint is being installed is written behind the log's reset, and
// told behind it: the reset carries the hard state of the moment at which the checkpoint came, so a vote that was written
// before it would be forgotten, and could be given twice.
func TestHeldDuringInstall(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		l.machine.installing = make(chan struct{})
		l.heartbeat(2, 2, 0)
		l.snapshot(2, 2, Position{50, 2}, "a")
		l.appendEntries(2, 2, Position{50, 2}, &raftpb.Entry{Term: new(uint64(2))})
		time.Sleep(5 * time.Second) // the leader is silent
		l.take(raftpb.MsgVoteResp)
		l.r.Receive(&raftpb.Message{Type: raftpb.MsgVote.Enum(), From: new(uint64(3)), To: new(uint64(1)), Term: new(uint64(9)),
			Index: new(uint64(99)), LogTerm: new(uint64(8))})
		if ms := l.take(raftpb.MsgVoteResp); len(ms) != 0 {
			t.Errorf("answered %v before it could be written", ms)
		}
		l.mu.Lock()
		for _, w := range l.writes {
			if w.HardState.GetTerm() > 2 || len(w.Entries) > 0 {
				t.Errorf("written before the log's reset: %+v", w)
			}
		}
		l.mu.Unlock()
		close(l.machine.installing)
		if m := l.one(raftpb.MsgVoteResp); m.GetReject() || m.GetTerm() != 9 {
			t.Errorf("answered %v", m)
		}
		hs, err := reconcile(l.log, Position{50, 2}, slog.New(slog.DiscardHandler))
		if last, _ := l.log.LastIndex(); err != nil || hs.GetTerm() != 9 || hs.GetVote() != 3 || last != 51 {
			t.Errorf("the log ends at %d and holds %v, %v", last, hs, err)
		}
	})
}

// TestSnapshotBringsMembers: a checkpoint brings the members of its moment, and what changes them later is judged and kept
// as a change of those.
func TestSnapshotBringsMembers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		l.heartbeat(2, 2, 0)
		l.voters = []uint64{1, 2, 3, 4, 5}
		l.snapshot(2, 2, Position{50, 2})
		if got := l.r.Status().Voters; !slices.Equal(got, l.voters) {
			t.Errorf("voters %v", got)
		}
		data, err := proto.Marshal(&raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{
			{Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: new(uint64(4))},
		}})
		if err != nil {
			t.Fatal(err)
		}
		l.r.Receive(&raftpb.Message{Type: raftpb.MsgApp.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(2)),
			Index: new(uint64(50)), LogTerm: new(uint64(2)), Commit: new(uint64(51)), Entries: []*raftpb.Entry{
				{Type: raftpb.EntryConfChangeV2.Enum(), Index: new(uint64(51)), Term: new(uint64(2)), Data: data},
			}})
		synctest.Wait()
		l.machine.mu.Lock()
		defer l.machine.mu.Unlock()
		if voters, _, err := DecodeConfState(l.machine.state.ConfState); !slices.Equal(voters, []uint64{1, 2, 3, 5}) || err != nil {
			t.Errorf("kept as voters: %v, %v", voters, err)
		}
	})
}

// TestSnapshotEndsBatches: a checkpoint takes the place of entries among which a forwarded command may have been. It is
// not proposed again, whatever is committed later.
func TestSnapshotEndsBatches(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := startLone(t)
		l.heartbeat(2, 2, 0)
		if err := l.r.Propose(t.Context(), nil, []byte("a")); err != nil {
			t.Fatal(err)
		}
		l.one(raftpb.MsgProp)
		l.snapshot(2, 2, Position{50, 2}, "a")
		if n := l.r.Pending(); n != 0 {
			t.Errorf("%d commands are still counted", n)
		}
		l.heartbeat(3, 3, 50)
		l.appendEntries(3, 3, Position{50, 2}, &raftpb.Entry{Term: new(uint64(3))})
		time.Sleep(5 * time.Second)
		if ms := l.take(raftpb.MsgProp); len(ms) != 0 {
			t.Errorf("proposed again: %v", ms)
		}
	})
}
