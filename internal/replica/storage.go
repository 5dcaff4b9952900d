package replica

import (
	"errors"
	"fmt"
	"log/slog"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// reconcile makes the log agree with the position that the state machine is at, and returns the hard state to start from.
//
// The state machine only ever holds entries that are durable in the log, so the log holds the state's position. There are
// two exceptions, and in both the log is reset to begin behind that position: a new member, whose state was bootstrapped
// and whose log is empty; and a member that crashed after it installed a snapshot and before its log was reset. What the
// log held then was older than the snapshot or in conflict with it, and had not been committed beyond it.
func reconcile(log Log, applied Position, logger *slog.Logger) (*raftpb.HardState, error) {
	hs := hardStateOf(log)
	first, err := log.FirstIndex()
	if err != nil {
		return nil, err
	}
	last, err := log.LastIndex()
	if err != nil {
		return nil, err
	}
	holds, err := examine(log, applied)
	if err != nil {
		return nil, err
	}
	if holds {
		raise(hs, applied)
		return hs, nil
	}
	if last >= first || last > 0 && last != applied.Index {
		logger.Warn("the log is reset to the state, as after a crash during the installation of a snapshot",
			"log_first", first, "log_last", last, "applied", applied.Index, "term", applied.Term)
	}
	raise(hs, applied)
	hs.Commit = new(applied.Index)
	done := make(chan struct{})
	log.Append(Write{Reset: &applied, HardState: proto.CloneOf(hs), Sync: true, Done: func() { close(done) }})
	select {
	case <-done:
		return hs, nil
	case err := <-log.Failed():
		return nil, fmt.Errorf("replica: reset the log: %w", err)
	}
}

// ErrUnfit is wrapped when the log and the state machine's position cannot be those of one member at one time: one of
// them lost what it had.
var ErrUnfit = errors.New("the log and the state do not fit each other")

// Fits reports, by an error that wraps ErrUnfit, that a state machine at applied cannot go on from the log. It changes
// nothing. Start refuses such a log too.
func Fits(log Log, applied Position) error {
	_, err := examine(log, applied)
	return err
}

// examine tells whether the log holds the position; one that does not, and is no error, is to be reset to it.
func examine(log Log, applied Position) (holds bool, err error) {
	commit := hardStateOf(log).GetCommit()
	first, err := log.FirstIndex()
	if err != nil {
		return false, err
	}
	last, err := log.LastIndex()
	if err != nil {
		return false, err
	}
	term, err := log.Term(applied.Index)
	switch {
	case errors.Is(err, raft.ErrCompacted):
		return false, fmt.Errorf("replica: %w: the log begins behind entry %d but the state holds only %d: the state directory is older than the log; restore both, or remove both and let the member join anew", ErrUnfit, first-1, applied.Index)
	case errors.Is(err, raft.ErrUnavailable):
		return false, nil
	case err != nil:
		return false, err
	case term == applied.Term && commit > last:
		return false, fmt.Errorf("replica: %w: the log ends at entry %d but says that entry %d was committed: entries were lost; remove this member's data and let it join anew", ErrUnfit, last, commit)
	case term == applied.Term:
		return true, nil
	case commit >= applied.Index:
		return false, fmt.Errorf("replica: %w: entry %d has term %d in the state and term %d in the log, and was committed: one of them is not this member's", ErrUnfit, applied.Index, applied.Term, term)
	}
	return false, nil
}

// hardStateOf is the hard state that the log holds, the caller's to change.
func hardStateOf(log Log) *raftpb.HardState {
	if stored := log.HardState(); stored != nil {
		return proto.CloneOf(stored)
	}
	return &raftpb.HardState{}
}

// raise brings a hard state to what an applied entry proves: it is committed, and its term has begun. A vote in a term
// that was never stored was never cast.
func raise(hs *raftpb.HardState, applied Position) {
	if hs.GetTerm() < applied.Term {
		hs.Term, hs.Vote = new(applied.Term), nil
	}
	if hs.GetCommit() < applied.Index {
		hs.Commit = new(applied.Index)
	}
}

// storage is what raft reads. It is used by the loop only.
type storage struct {
	l         *loop
	hs        *raftpb.HardState
	confState *raftpb.ConfState
}

func (s *storage) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	return s.hs, s.confState, nil
}

// lostEntries is what the loop is ended with, from within raft, when the log cannot be read.
type lostEntries struct{ err error }

// Entries reads the log. An error of the disk cannot be answered in raft's terms; a member that cannot read its own log
// stops.
func (s *storage) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	entries, err := s.l.c.Log.Entries(lo, hi, maxSize)
	if err != nil && !errors.Is(err, raft.ErrCompacted) && !errors.Is(err, raft.ErrUnavailable) {
		panic(lostEntries{fmt.Errorf("replica: cannot read entries [%d, %d) of the log: %w", lo, hi, err)})
	}
	return entries, unwrap(err)
}

func (s *storage) Term(i uint64) (uint64, error) {
	t, err := s.l.c.Log.Term(i)
	return t, unwrap(err)
}

func (s *storage) LastIndex() (uint64, error)  { return s.l.c.Log.LastIndex() }
func (s *storage) FirstIndex() (uint64, error) { return s.l.c.Log.FirstIndex() }

// unwrap gives raft its own values, which it compares with ==.
func unwrap(err error) error {
	switch {
	case errors.Is(err, raft.ErrCompacted):
		return raft.ErrCompacted
	case errors.Is(err, raft.ErrUnavailable):
		return raft.ErrUnavailable
	}
	return err
}

// Snapshot names the checkpoint to send, or asks for one to be made.
func (s *storage) Snapshot() (*raftpb.Snapshot, error) {
	c := s.l.currentCheckpoint()
	if c == nil {
		s.l.makeCheckpoint()
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		ConfState: proto.CloneOf(c.confState), Index: new(c.Applied.Index), Term: new(c.Applied.Term),
	}}, nil
}

// noteDurable cuts the log behind what the state machine would hold after a crash, but keeps entries for followers that
// were away, and those behind a checkpoint that one is being sent.
func (l *loop) noteDurable(applied uint64) {
	l.durable = max(l.durable, applied)
	// The log cuts whole segments: small steps would be noise.
	step := min(1000, l.c.CatchupEntries/4+1)
	if l.durable < l.cut+step {
		return
	}
	last := l.view.last.Load()
	upTo := min(l.durable, max(last-min(last, l.c.CatchupEntries), l.c.Log.Before(l.c.CatchupBytes)))
	if l.checkpoint != nil {
		upTo = min(upTo, l.checkpoint.Applied.Index)
	}
	if upTo >= l.cut+step {
		l.cut = upTo
		l.c.Log.Cut(upTo)
	}
}
