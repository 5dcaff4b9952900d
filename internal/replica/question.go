package replica

import (
	"encoding/binary"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/quorum"
	"go.etcd.io/raft/v3/raftpb"
)

// What members say to each other about reads. The messages are raft's, and raft never sees them, but for probes that find a
// member in another standing. Each carries the term of its sender's standing and a number, where raft has its own: questions and
// answers as the data of an entry, the others as context. So members of versions that leave reads to raft understand them, and
// are understood: their questions name no term.
//
//	MsgHeartbeat      the leader, to voters: is this still your term, and I your leader?
//	MsgHeartbeatResp  it was when I had your message
//	MsgReadIndex      a follower, to its leader: what is committed?
//	MsgReadIndexResp  this was when I had your message, and a quorum says that nobody else led then
//
// A leader may answer once it has committed in its term: its commit index is then not below any of an earlier term. It takes
// the index, then asks. Who says yes has not voted in a later term before it got the question; if a quorum has not, then
// nothing was committed in a later term before. A follower's question is its own yes: its term is that of its standing after
// its reads had come. So one of three members is answered at once.
//
// This needs two things of the loop: a standing is published before anything leaves that follows from it, votes above all;
// and so is the commit index, which a leader's readers take without asking the loop.

// standing is where the member stands, as far as reads depend on it.
type standing struct {
	term   uint64
	lead   uint64 // zero: none is known
	ready  bool   // this member leads, and has committed in its term
	voters quorum.JointConfig
	others []uint64 // voters but this member, those first that answered last
	enough int      // so many of others make a quorum with this member
}

// prefer asks a voter before the others from now on.
func (s *standing) prefer(id, self uint64) {
	if i := slices.Index(s.others, id); i > 0 {
		copy(s.others[1:], s.others[:i])
		s.others[0] = id
		s.count(self)
	}
}

// count finds how many of the others are enough.
func (s *standing) count(self uint64) {
	votes := map[uint64]bool{self: true}
	for s.enough = 0; s.enough < len(s.others) && s.voters.VoteResult(votes) != quorum.VoteWon; s.enough++ {
		votes[s.others[s.enough]] = true
	}
}

// asks reports whether a question has somebody to go to.
func (s *standing) asks(id uint64) bool { return s.ready || s.lead != 0 && s.lead != id }

// acks are the numbers that voters have confirmed in the term of the standing; this member confirms all.
type acks struct {
	id  uint64
	seq map[uint64]uint64
}

// AckedIndex is quorum.AckedIndexer's.
func (a *acks) AckedIndex(voter uint64) (quorum.Index, bool) {
	if voter == a.id {
		return quorum.Index(^uint64(0) - 1), true
	}
	seq, ok := a.seq[voter]
	return quorum.Index(seq), ok
}

// lateAfter is how long a leader waits for the voters that it asks before it asks all, at least, and at most.
const lateAfter, lateAtMost = 2 * time.Millisecond, 20 * time.Millisecond

// readSpacing is the time between questions at least, while one is under way. Where it takes long to be answered, reads do
// not wait for its end; where it is quick they had better come together.
const readSpacing = time.Millisecond

// askLocked puts the group that is forming under way, if it is time for that. What it returns is to be sent.
func (r *Replica) askLocked() []*raftpb.Message {
	q := &r.reads
	if q.forming == nil || !q.at.asks(r.c.ID) {
		return nil
	}
	now := time.Now()
	if n := len(q.asked); n == r.c.MaxReadRounds || n > 0 && now.Sub(q.asked[n-1].at) < max(readSpacing, q.took/time.Duration(r.c.MaxReadRounds)) {
		return nil
	}
	q.seq++
	q.asked = append(q.asked, question{round: q.forming, seq: q.seq, at: now, commit: r.view.commit.Load()})
	q.together, q.forming = max(q.forming.readers, q.together*3/4), nil
	answers := r.settleLocked()
	if len(q.asked) == 0 {
		return answers // nobody else has a vote
	}
	if q.at.ready && !q.lateRuns {
		q.lateRuns = true
		q.late.Reset(q.lateTime())
	}
	return append(answers, r.questionLocked(q.at.enough)...)
}

func (q *reads) lateTime() time.Duration { return max(lateAfter, min(2*q.took, lateAtMost)) }

// askLate is called when the voters that were asked may be late.
func (r *Replica) askLate() {
	q := &r.reads
	q.mu.Lock()
	var ms []*raftpb.Message
	n := len(q.asked)
	q.lateRuns = n > 0 && q.at.ready && !q.asked[n-1].all
	switch {
	case q.lateRuns && time.Since(q.asked[0].at) >= q.lateTime():
		ms, q.lateRuns = r.askAllLocked(), false
	case q.lateRuns:
		q.late.Reset(q.lateTime())
	}
	q.mu.Unlock()
	r.say(ms)
}

// askAllLocked asks what is under way of all whom it concerns.
func (r *Replica) askAllLocked() []*raftpb.Message {
	q := &r.reads
	for i := range q.asked {
		q.asked[i].all = true
	}
	return r.questionLocked(len(q.at.others))
}

// questionLocked is the newest question, to the leader or from it to so many voters. Its answer serves those before it too.
func (r *Replica) questionLocked(voters int) []*raftpb.Message {
	q := &r.reads
	context := binary.LittleEndian.AppendUint64(make([]byte, 0, 16), r.c.Origin)
	context = binary.LittleEndian.AppendUint64(context, q.seq)
	if !q.at.ready {
		m := r.about(raftpb.MsgReadIndex, q.at.lead, nil)
		m.Entries = []*raftpb.Entry{{Data: context}}
		return []*raftpb.Message{m}
	}
	ms := make([]*raftpb.Message, 0, voters)
	for _, id := range q.at.others[:voters] {
		ms = append(ms, r.about(raftpb.MsgHeartbeat, id, context))
	}
	return ms
}

// about is a message in the term of the standing; the lock is held.
func (r *Replica) about(kind raftpb.MessageType, to uint64, context []byte) *raftpb.Message {
	return &raftpb.Message{Type: kind.Enum(), To: new(to), From: new(r.c.ID), Term: new(r.reads.at.term), Context: context}
}

// settleLocked serves what a quorum has confirmed to this leader, and returns the answers to followers.
func (r *Replica) settleLocked() (answers []*raftpb.Message) {
	q := &r.reads
	if !q.at.ready {
		return nil
	}
	confirmed := uint64(q.at.voters.CommittedIndex(&q.acks))
	for len(q.asked) > 0 && q.asked[0].seq <= confirmed {
		commit := q.asked[0].commit
		for id, question := range q.asked[0].guests {
			answers = append(answers, r.answer(id, question, commit))
		}
		r.serveLocked(commit)
	}
	return answers
}

func (r *Replica) answer(to uint64, question []*raftpb.Entry, commit uint64) *raftpb.Message {
	m := r.about(raftpb.MsgReadIndexResp, to, nil)
	m.Index, m.Entries = new(commit), question
	return m
}

// own reads the number of a question of this member, false if it is another's.
func (r *Replica) own(context []byte) (seq uint64, ok bool) {
	if len(context) != 16 || binary.LittleEndian.Uint64(context) != r.c.Origin {
		return 0, false
	}
	seq = binary.LittleEndian.Uint64(context[8:])
	return seq, seq <= r.reads.seq
}

// hear takes a message about reads; false: it is not about reads, or raft is to hear it.
func (r *Replica) hear(m *raftpb.Message) bool {
	var hear func(*raftpb.Message) ([]*raftpb.Message, bool)
	switch m.GetType() {
	case raftpb.MsgHeartbeat:
		hear = r.hearProbe
	case raftpb.MsgHeartbeatResp:
		hear = r.hearYes
	case raftpb.MsgReadIndex:
		hear = r.hearQuestion
	case raftpb.MsgReadIndexResp:
		hear = r.hearAnswer
	default:
		return false
	}
	r.reads.mu.Lock()
	out, taken := hear(m)
	r.reads.mu.Unlock()
	r.say(out)
	return taken
}

func (r *Replica) say(ms []*raftpb.Message) {
	if len(ms) > 0 && r.ctx.Err() == nil {
		r.c.Transport.Send(ms)
	}
}

// hearProbe says yes to the leader of the standing. Another one raft is to judge: it may be new.
func (r *Replica) hearProbe(m *raftpb.Message) ([]*raftpb.Message, bool) {
	at := &r.reads.at
	if len(m.Context) != 16 || m.GetTerm() != at.term || m.GetFrom() != at.lead {
		return nil, false
	}
	return []*raftpb.Message{r.about(raftpb.MsgHeartbeatResp, at.lead, m.Context)}, true
}

func (r *Replica) hearYes(m *raftpb.Message) ([]*raftpb.Message, bool) {
	q := &r.reads
	if len(m.Context) == 0 {
		return nil, false
	}
	if seq, ok := r.own(m.Context); ok && q.at.ready && m.GetTerm() == q.at.term && seq > q.acks.seq[m.GetFrom()] {
		q.acks.seq[m.GetFrom()] = seq
		if len(q.asked) > 0 && q.asked[0].all {
			q.at.prefer(m.GetFrom(), r.c.ID)
		}
		return append(r.settleLocked(), r.askLocked()...), true
	}
	return nil, true
}

// hearQuestion answers a follower, now or with the next group of this member. A follower of another term asks again when it
// knows better.
func (r *Replica) hearQuestion(m *raftpb.Message) ([]*raftpb.Message, bool) {
	q := &r.reads
	from := m.GetFrom()
	knows := m.GetTerm() == q.at.term
	if len(m.Entries) != 1 || q.at.lead != r.c.ID || !knows && m.GetTerm() != 0 || from == r.c.ID {
		return nil, true
	}
	if knows && q.at.ready && q.at.voters.VoteResult(map[uint64]bool{r.c.ID: true, from: true}) == quorum.VoteWon {
		return []*raftpb.Message{r.answer(from, m.Entries, r.view.commit.Load())}, true
	}
	rd, _ := q.joinLocked()
	if rd.guests == nil {
		rd.guests = map[uint64][]*raftpb.Entry{}
	}
	rd.guests[from] = m.Entries
	return r.askLocked(), true
}

func (r *Replica) hearAnswer(m *raftpb.Message) ([]*raftpb.Message, bool) {
	q := &r.reads
	if len(m.Entries) != 1 {
		return nil, true
	}
	seq, ok := r.own(m.Entries[0].GetData())
	if !ok {
		return nil, true
	}
	for len(q.asked) > 0 && q.asked[0].seq <= seq {
		r.serveLocked(m.GetIndex())
	}
	return r.askLocked(), true
}

// stand publishes where the member stands. It is called before anything leaves that follows from a change.
func (l *loop) stand() {
	q := &l.reads
	q.mu.Lock()
	if l.term != q.at.term {
		clear(q.acks.seq)
		q.dropGuests()
	}
	q.at = standing{term: l.term, lead: l.lead, ready: l.state == raft.StateLeader && l.agreed == l.term, voters: l.rn.Status().Config.Voters}
	for id := range q.at.voters.IDs() {
		if id != l.c.ID {
			q.at.others = append(q.at.others, id)
		}
	}
	slices.Sort(q.at.others)
	q.at.count(l.c.ID)
	ms := append(l.askAgainLocked(), l.askLocked()...)
	q.mu.Unlock()
	l.say(ms)
}

// dropGuests forgets the followers of a term that is over: they ask whoever leads now.
func (q *reads) dropGuests() {
	for _, a := range q.asked {
		a.guests = nil
	}
	if q.forming != nil {
		q.forming.guests = nil
	}
}

// askAgainLocked asks what is under way anew.
func (r *Replica) askAgainLocked() []*raftpb.Message {
	q := &r.reads
	if len(q.asked) == 0 || !q.at.asks(r.c.ID) {
		return nil
	}
	for i := range q.asked {
		q.asked[i].commit = r.view.commit.Load()
	}
	answers := r.settleLocked()
	if len(q.asked) == 0 {
		return answers
	}
	return append(answers, r.askAllLocked()...)
}

// retryReads is called at each tick: what was said may be lost. A leader's probes are cheap; a follower gives its question
// more time.
func (l *loop) retryReads() {
	q := &l.reads
	q.mu.Lock()
	var ms []*raftpb.Message
	late := false
	switch {
	case len(q.asked) == 0 || !q.at.asks(l.c.ID):
		q.ticks = 0
	case q.asked[0].seq != q.oldest:
		q.oldest, q.ticks = q.asked[0].seq, 0
	default:
		q.ticks++
		if late = q.ticks%readRetryTicks == 0; late || q.at.ready {
			ms = l.askAllLocked()
		}
	}
	ms = append(ms, l.askLocked()...)
	q.mu.Unlock()
	l.say(ms)
	if late {
		l.c.Observer.ReadRetried(readRetryTicks * l.c.Tick)
	}
}

const readRetryTicks = 3

// askAnew asks again when the connection to a member is new, if that one is concerned; and a leader asks all when it is lost.
func (l *loop) askAnew(peer uint64, up bool) {
	q := &l.reads
	q.mu.Lock()
	var ms []*raftpb.Message
	n := len(q.asked)
	switch {
	case n == 0:
	case up && (q.at.ready || q.at.lead == peer), q.at.ready && !q.asked[n-1].all:
		ms = l.askAgainLocked()
	}
	q.mu.Unlock()
	l.say(ms)
}
