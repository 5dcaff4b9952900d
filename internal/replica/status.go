package replica

import (
	"slices"
	"sync/atomic"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// State is the role of a member. The numbers are raft's.
type State uint8

// The roles.
const (
	Follower State = iota
	Candidate
	Leader
	PreCandidate
)

func (s State) String() string {
	return [...]string{"follower", "candidate", "leader", "pre-candidate"}[s]
}

// Progress is what a leader knows of another member.
type Progress struct {
	ID      uint64
	Match   uint64 // the member's log agrees up to here
	State   string // StateProbe, StateReplicate or StateSnapshot
	Active  bool   // heard of within the last election timeout
	Learner bool
}

// Status is a picture of the replica.
type Status struct {
	ID, Leader, Term      uint64
	State                 State
	Learner               bool
	LeadTransferee        uint64
	Commit, Applied       uint64
	AppliedTerm           uint64 // term of the last applied entry: equal to Term on a leader that has caught up with the past
	FirstIndex, LastIndex uint64
	Voters, Learners      []uint64
	Progress              []Progress // of the other members, on a leader; up to a tick old
}

// view is what others see of the loop.
type view struct {
	// The loop's.
	stale      bool
	transferee uint64

	picture atomic.Pointer[Status] // never changed once it is here
	commit  atomic.Uint64
	last    atomic.Uint64 // last index given to the log
	changed atomic.Pointer[chan struct{}]
}

// Status returns a picture of the replica. It takes no lock of the loop's and is cheap. Its slices are shared: do not
// change them.
func (r *Replica) Status() Status {
	s := *r.view.picture.Load()
	s.AppliedTerm, s.Applied = r.applied.term.Load(), r.applied.index.Load()
	s.Commit, s.LastIndex = max(r.view.commit.Load(), s.Applied), r.view.last.Load()
	if first, err := r.c.Log.FirstIndex(); err == nil {
		s.FirstIndex = first
	}
	return s
}

// LeaderChanged returns a channel that is closed when the leader or the term that Status shows changes next. Take it
// before Status to miss nothing.
func (r *Replica) LeaderChanged() <-chan struct{} { return *r.view.changed.Load() }

// publish makes a new picture if something has changed.
func (l *loop) publish() {
	v := &l.view
	if !v.stale {
		return
	}
	v.stale = false
	s := &Status{
		ID: l.c.ID, Leader: l.lead, Term: l.term, State: State(l.state), LeadTransferee: v.transferee,
		Learner: slices.Contains(l.confState.GetLearners(), l.c.ID),
		Voters:  slices.Clone(l.confState.GetVoters()), Learners: slices.Clone(l.confState.GetLearners()),
	}
	if l.state == raft.StateLeader {
		l.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
			if id != l.c.ID {
				s.Progress = append(s.Progress, Progress{id, p.Match, p.State.String(), p.RecentActive, p.IsLearner})
			}
		})
	}
	old := v.picture.Swap(s)
	if old != nil && old.Leader == s.Leader && old.Term == s.Term {
		return
	}
	next := make(chan struct{})
	if before := v.changed.Swap(&next); before != nil {
		close(*before)
	}
}
