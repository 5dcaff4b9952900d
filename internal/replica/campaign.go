package replica

import (
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"

	"github.com/trivet-kv/trivet/internal/kv"
)

// A leader whose process has ended is not waited for: its followers notice at once that its connections are gone and that
// its addresses refuse, forget it, and campaign after a short wait. The waits differ by rank and chance, so that one
// campaigns before the others do; what two of them do at once is settled by another attempt, later, as raft's own timeout
// would but sooner. All of it goes through pre-vote: if the leader lives after all, those who hear from it refuse, and
// nothing happens.
type campaign struct {
	at       <-chan time.Time // nil: none is planned
	attempts int              // so far, counted up to campaignAttempts
}

const (
	campaignStep   = 15 * time.Millisecond // between ranks
	campaignSpread = 10 * time.Millisecond
	// campaignAttempts is how often the wait between two attempts is doubled. They go on until there is a leader: raft's own timeout
	// may be minutes.
	campaignAttempts = 6
)

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
	switch e.kind {
	case peerUp:
		delete(l.gone, e.id)
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
	l.planIn(min(wait, l.electionTimeout()))
}

// planIn plans an attempt not earlier than the votes of one that begins now can be there, for it would void them. These wait for
// disks; how long, this member's own tells.
func (l *loop) planIn(wait time.Duration) {
	if pace := max(l.c.Log.Pace()); pace > campaignStep {
		wait += 2*pace + l.spread(4*pace)
	}
	l.campaign.at = time.After(wait)
}

// planAfterLoss plans an attempt where the leader was lost to an election, or to its silence: if nobody else wins soon, raft's own
// timeout, which may be minutes, is not waited for. Whoever stands for election may have a shorter log than this member.
func (l *loop) planAfterLoss() {
	if l.campaign.at == nil {
		l.campaign.attempts = campaignAttempts
		d := min(l.electionTimeout(), 2*time.Second)
		l.planIn(d/2 + l.spread(d/2))
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
	if l.standsBack() {
		l.planNext()
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
