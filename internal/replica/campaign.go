package replica

import (
	"slices"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"github.com/trivet-kv/trivet/internal/kv"
)

// A leader whose process has ended is not waited for: its followers notice at once that its connections are gone and that
// its addresses refuse, forget it, and campaign after a short wait. The waits differ by rank and chance, so that one
// campaigns before the others do; what two of them do at once is settled by another attempt, later, as raft's own timeout
// would but sooner. All of it goes through pre-vote: if the leader lives after all, those who hear from it refuse, and
// nothing happens.
//
// Votes wait for the disks of those who give them, and an attempt voids the one before: its term ends that one's. So that slow disks do
// not keep a cluster from having a leader, an election that may still be won is left alone. Who stands asks again in the same term
// rather than to stand anew (asksAgain); who gave a vote does not stand, nor encourages others, until the candidate can have
// all that it needs (awaitsVotes); and raft's own timer, which knows nothing of that, stands still meanwhile (tick).
type campaign struct {
	at       <-chan time.Time // nil: none is planned
	attempts int              // so far, counted up to campaignAttempts
	given    int              // candidacies given up so far, counted up to patienceAtMost
}

const (
	campaignStep   = 15 * time.Millisecond // between ranks
	campaignSpread = 10 * time.Millisecond
	// campaignAttempts is how often the wait between two attempts is doubled. They go on until there is a leader: raft's own timeout
	// may be minutes.
	campaignAttempts = 6
	// patience is how long a candidacy that nobody refused is kept at least. It doubles with each one that is given up, as often as
	// patienceAtMost says (to about a minute): the votes may wait for disks, or those asked have gone on to another term, and do not answer.
	patience       = 2 * time.Second
	patienceAtMost = 5
	// graceAtMost bounds the wait after a vote was written: what that took is no measure if the disk, or the process, stood still.
	graceAtMost = 10 * time.Second
)

// candidacy is the last time that this member stood for election.
type candidacy struct {
	term    uint64
	since   time.Time
	asks    []*raftpb.Message // the requests for votes that were sent
	refused bool              // by anybody
}

// stands notes the requests for votes among what leaves.
func (c *candidacy) stands(m *raftpb.Message) {
	if m.GetTerm() != c.term {
		*c = candidacy{term: m.GetTerm(), since: time.Now()}
	}
	c.asks = append(c.asks, m)
}

// ballot is a vote that this member gave, to itself or another.
type ballot struct {
	term, to uint64
	since    time.Time
	written  atomic.Pointer[time.Time] // nil: it is on its way to the disk
}

// wrote is called from the log's goroutine.
func (b *ballot) wrote() {
	if b != nil {
		b.written.Store(new(time.Now()))
	}
}

// awaitsVotes is how long to wait at least for what becomes of an election in which this member gave its vote: until that is durable, and
// then twice as long as it took, for others may have had to wait for a write that was under way. Zero if there is none.
func (l *loop) awaitsVotes() time.Duration {
	b := l.writes.ballot
	if b == nil || b.term != l.term || l.lead != 0 || l.gone[b.to] {
		return 0
	}
	written := b.written.Load()
	if written == nil {
		return max(campaignStep, time.Since(b.since)/2) // it is looked at again then
	}
	return max(0, min(2*written.Sub(b.since), graceAtMost)-time.Since(*written))
}

// disturbs hears of messages before raft does, and reports whether one is to be left out: a question for a vote in a later term while
// the election in which this member gave its vote may still be won. Who asks does so again.
func (l *loop) disturbs(m *raftpb.Message) bool {
	switch m.GetType() {
	case raftpb.MsgVoteResp:
		if m.GetReject() && m.GetTerm() == l.candidacy.term {
			l.candidacy.refused = true
		}
	case raftpb.MsgPreVote:
		b := l.writes.ballot
		return b != nil && m.GetFrom() != b.to && l.awaitsVotes() > 0
	}
	return false
}

// asksAgain repeats the requests for votes of a candidacy that may still succeed, and reports whether it is one. A vote that was given is
// only confirmed by that.
func (l *loop) asksAgain() bool {
	c := &l.candidacy
	if l.state != raft.StateCandidate || c.term != l.term || c.refused {
		return false
	}
	if b := l.writes.ballot; (b == nil || b.written.Load() != nil) && time.Since(c.since) > patience<<l.campaign.given {
		l.campaign.given = min(l.campaign.given+1, patienceAtMost)
		return false
	}
	l.c.Transport.Send(c.asks)
	return true
}

func (c *campaign) timer() <-chan time.Time { return c.at }

// leaderKnown ends the attempts, unless the leader is one that died: then it was named by a message that it had sent
// before.
func (c *campaign) leaderKnown(gone bool) {
	if !gone {
		*c = campaign{}
	}
}

// peerChanged hears what the transport says of a peer.
func (l *loop) peerChanged(e peerEvent) {
	l.askAnew(e.id, e.kind == peerUp)
	l.acked = acknowledged{} // what was on its way may be lost
	switch e.kind {
	case peerUp:
		delete(l.gone, e.id)
		if l.state == raft.StateLeader { // it may have started: it learns at once who leads, and this member how far it is
			l.c.Transport.Send([]*raftpb.Message{{Type: raftpb.MsgHeartbeat.Enum(), To: new(e.id), From: new(l.c.ID), Term: new(l.term)}})
		}
		if e.id == l.lead {
			l.resend(true)
		}
	case peerUnreachable:
		l.rn.ReportUnreachable(e.id)
	case peerGone:
		l.gone[e.id] = true
		if c := l.awaited[e.id]; c != nil {
			close(c)
			delete(l.awaited, e.id)
		}
		l.rn.ReportUnreachable(e.id)
		l.observe()
		if e.id == l.lead && l.state == raft.StateFollower {
			l.c.Logger.Info("the leader's process has ended", "leader", hex(e.id), "term", l.term)
			l.campaign = campaign{}
			l.forgetLeader()
		}
	}
}

// planFirst lets a member that has just started look for a leader without waiting for raft's timeout. If there is one, those
// who hear from it refuse.
func (l *loop) planFirst() {
	l.campaign.at = time.After(time.Duration(l.rank()+1)*campaignStep + l.spread(campaignSpread))
}

func (l *loop) forgetLeader() {
	if err := l.rn.ForgetLeader(); err == nil {
		l.planNext()
	}
}

// planNext plans the next attempt.
func (l *loop) planNext() {
	wait := time.Duration(l.rank())*campaignStep + l.spread(campaignSpread)
	if n := l.campaign.attempts; n > 0 {
		wait = l.spread(2*campaignStep<<n) + campaignStep
	}
	l.campaign.at = time.After(min(wait, l.electionTimeout()))
}

// planAfterLoss plans an attempt where the leader was lost to an election, or to its silence: if nobody else wins soon, raft's own
// timeout, which may be minutes, is not waited for. Whoever stands for election may have a shorter log than this member.
func (l *loop) planAfterLoss() {
	if l.campaign.at == nil {
		l.campaign.attempts = campaignAttempts
		d := min(l.electionTimeout(), 2*time.Second)
		l.campaign.at = time.After(d/2 + l.spread(d/2))
	}
}

func (l *loop) electionTimeout() time.Duration { return time.Duration(l.c.ElectionTicks) * l.c.Tick }

func (l *loop) spread(d time.Duration) time.Duration { return time.Duration(l.c.Rand.Int64N(int64(d))) }

// rank is this member's place among the voters that are there.
func (l *loop) rank() int {
	rank := 0
	for _, id := range l.confState.GetVoters() {
		if id < l.c.ID && !l.gone[id] {
			rank++
		}
	}
	return rank
}

// campaignNow makes the attempt that was planned and plans the next.
func (l *loop) campaignNow() {
	l.observe()
	l.campaign.at = nil
	if l.state == raft.StateLeader || l.lead != 0 && !l.gone[l.lead] || !slices.Contains(l.confState.GetVoters(), l.c.ID) {
		return
	}
	l.campaign.attempts = min(l.campaign.attempts+1, campaignAttempts)
	if l.asksAgain() || l.standsBack() {
		l.planNext()
		return
	}
	if wait := l.awaitsVotes(); wait > 0 {
		l.campaign.at = time.After(wait + l.spread(wait))
		return
	}
	l.forgetLeader()
	_ = l.rn.Campaign() // an error is raft's way to say that it is no time for it
}

// transfer begins to hand leadership over.
func (l *loop) transfer(to uint64) error {
	l.observe()
	switch {
	case l.state != raft.StateLeader:
		return kv.ErrNotLeader
	case !slices.Contains(l.confState.GetVoters(), to):
		return kv.ErrBadLeaderTransferee
	}
	l.rn.TransferLeader(to)
	return nil
}

// heir is the voter that can take over soonest, zero if this member does not lead or nobody can.
func (l *loop) heir() uint64 {
	l.observe()
	if l.state != raft.StateLeader {
		return 0
	}
	var best, match uint64
	last := l.view.last.Load()
	l.rn.WithProgress(func(id uint64, typ raft.ProgressType, p tracker.Progress) {
		if id != l.c.ID && typ == raft.ProgressTypePeer && p.State == tracker.StateReplicate && !l.gone[id] &&
			(p.RecentActive || p.Match == last) && (best == 0 || p.Match > match) {
			best, match = id, p.Match
		}
	})
	return best
}

// untilGone gives a channel that is closed when the peer's process is found to have ended.
func (l *loop) untilGone(id uint64) <-chan struct{} {
	c := l.awaited[id]
	if c == nil {
		c = make(chan struct{})
		l.awaited[id] = c
	}
	return c
}
