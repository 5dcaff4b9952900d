package replica

import (
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// loop is what the loop goroutine owns: the RawNode, and everything that decides what to tell it. No other goroutine
// touches these fields; they reach the loop through the inbox.
type loop struct {
	*Replica
	rn     *raft.RawNode
	ticks  uint64
	ticked time.Time // when the last tick was, at first the loop's begin

	// What raft said when it was last asked (observe).
	lead      uint64
	term      uint64
	state     raft.StateType
	commit    uint64
	agreed    uint64 // term of the newest entry that was handed out as committed
	confState *raftpb.ConfState

	queue    proposalQueue
	inflight inflight
	foreign  foreign

	// Snapshots.
	staged     map[Position]stagedSnapshot // received and not yet asked for by raft
	installing bool                        // the state machine installs a snapshot; appends wait in held
	held       []*raftpb.Message           // few: raft gets no entries from a leader meanwhile
	checkpoint *sharedCheckpoint           // the one that is, or can be, sent to followers
	making     bool                        // a checkpoint is being made
	madeAt     uint64                      // tick of the last attempt

	// Log.
	durable uint64
	cut     uint64
	writes  outstanding
	acked   acknowledged

	// Leaders that died.
	gone    map[uint64]bool          // peers whose process has ended
	awaited map[uint64]chan struct{} // peers whose process's end a hand-over looks out for

	// Elections.
	campaign  campaign
	candidacy candidacy

	disk disk

	out []*raftpb.Message // scratch
}

// outstanding is what the log was told.
type outstanding struct {
	term, vote uint64 // of the last hard state, to see whether the next one must be durable
	// A hard state of which only the commit index is new. It goes with the next write, or with the next tick: nothing waits
	// for it, and a start without it learns from the leader what is committed.
	commit *raftpb.HardState
	// The last vote since the start, and whether the next write is the one that makes it durable.
	ballot *ballot
	votes  bool
	// The times of writes that the log has not finished, in order.
	since []time.Time
	done  atomic.Int64 // finished since the loop last looked
}

// idle reports whether all that the log was told is done.
func (o *outstanding) idle() bool {
	o.since = o.since[o.done.Swap(0):]
	return len(o.since) == 0
}

func (l *loop) run() {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case lostEntries:
			l.fail(p.err)
			l.abandon()
		default:
			panic(p)
		}
	}()
	ticker := time.NewTicker(l.c.Tick)
	defer ticker.Stop()
	l.ticked = time.Now()
	l.planFirst()
	// A failure of anything else ends ctx; the loop ends by itself only there.
	var w work
	for {
		var ticked bool
		select {
		case <-l.in.wake:
		case <-ticker.C:
			ticked = true
		case <-l.campaign.timer():
			l.campaignNow()
		case err := <-l.c.Log.Failed():
			l.fail(fmt.Errorf("the log failed: %w", err))
		case <-l.ctx.Done():
		}
		if l.ctx.Err() != nil {
			l.abandon()
			return
		}
		l.in.take(&w)
		l.step(&w)
		w.reset()
		if ticked {
			l.tick()
		}
		l.observe()
		l.handOff()
		for l.rn.HasReady() {
			l.handle(l.rn.Ready())
		}
		l.discardStaged()
		l.publish()
	}
}

// step passes on everything that waited. Answers of the log come first: they may make a leader commit, and what they free
// is used by what follows.
func (l *loop) step(w *work) {
	for _, m := range w.installed {
		l.installed(m)
	}
	for _, m := range w.answers {
		_ = l.rn.Step(m) // a stale answer is raft's to ignore
	}
	for _, e := range w.peers {
		l.peerChanged(e)
	}
	for _, m := range w.messages {
		if m.GetType() == raftpb.MsgProp {
			l.takeForeign(m)
			continue
		}
		if l.disturbs(m) {
			continue
		}
		_ = l.rn.Step(m) // from a member that was removed, or stale: raft's to ignore
	}
	for _, s := range w.snapshots {
		l.takeSnapshot(s)
	}
	for _, m := range w.made {
		l.checkpointMade(m)
	}
	for _, f := range w.controls {
		f(l)
	}
	l.queue.push(w.proposals)
	l.noteDurable(w.durable)
}

// tick moves raft's clock and everything here that counts in ticks.
func (l *loop) tick() {
	now := time.Now()
	if late := now.Sub(l.ticked) - l.c.Tick; late > l.c.Tick && l.state == raft.StateLeader {
		l.c.Observer.HeartbeatLate(late)
	}
	l.noteStill(now)
	l.ticked = now
	l.ticks++
	l.acked = acknowledged{}
	l.queue.blocked = false
	if l.lead != 0 || l.campaign.at == nil { // else the attempts that are planned take the place of raft's timer
		l.rn.Tick()
	}
	l.retryReads()
	l.resend(false)
	if l.lead == 0 {
		l.sweep()
	}
	l.expireCheckpoint()
	l.watchDisk()
	if l.writes.commit != nil {
		l.append(Write{}, nil)
	}
	if l.state == raft.StateLeader {
		l.view.stale = true // progress of the others
	}
}

// observe asks raft where it stands and acts on a change of leader or term.
func (l *loop) observe() {
	s := l.rn.BasicStatus()
	if s.Lead == l.lead && s.HardState.GetTerm() == l.term && s.RaftState == l.state && s.LeadTransferee == l.view.transferee {
		return
	}
	before, led := l.lead, l.state == raft.StateLeader
	leadChanged := s.Lead != l.lead || s.HardState.GetTerm() != l.term
	l.lead, l.term, l.state = s.Lead, s.HardState.GetTerm(), s.RaftState
	l.view.transferee, l.view.stale = s.LeadTransferee, true
	l.foreign.retain(l.term, l.state == raft.StateLeader)
	l.stand()
	if !leadChanged {
		return
	}
	l.c.Observer.LeaderChanged(l.lead, l.term)
	l.tellLeader(before, led)
	if l.lead != 0 {
		l.campaign.leaderKnown(l.gone[l.lead])
	} else if before != 0 {
		l.planAfterLoss()
	}
}

// tellLeader logs a change of leader or term in the words of etcd's library, which tools look for.
func (l *loop) tellLeader(before uint64, led bool) {
	if l.state == raft.StateLeader && !led {
		l.c.Logger.Info(fmt.Sprintf("%x became leader at term %d", l.c.ID, l.term))
	}
	var change string
	switch {
	case l.lead == before:
		change = fmt.Sprintf("%x is in term %d", l.c.ID, l.term)
	case before == 0:
		change = fmt.Sprintf("%x elected leader %x at term %d", l.c.ID, l.lead, l.term)
	case l.lead == 0:
		change = fmt.Sprintf("%x lost leader %x at term %d", l.c.ID, before, l.term)
	default:
		change = fmt.Sprintf("%x changed leader from %x to %x at term %d", l.c.ID, before, l.lead, l.term)
	}
	l.c.Logger.Info("raft.node: "+change, "leader", hex(l.lead), "term", l.term)
}

// handle does what raft asks for. What goes to peers goes first, beside the write to the local disk. While commands come one by one
// the order is kept further down too, where goroutines would have their turn as it comes: a peer has its entries before the local
// disk is asked, for that way is longer, and a client has its answer before peers hear that its entry is committed. While many come
// together nobody is let go first: what waits for the loop would wait for all of them.
func (l *loop) handle(rd raft.Ready) {
	l.out = l.out[:0]
	for _, m := range rd.Messages {
		switch {
		case m.GetTo() == raft.LocalAppendThread || m.GetTo() == raft.LocalApplyThread:
		case m.GetType() == raftpb.MsgSnap:
			l.sendSnapshot(m)
		case m.GetType() == raftpb.MsgPreVote && l.standsBack():
		default:
			if m.GetType() == raftpb.MsgVote {
				l.candidacy.stands(m)
			}
			l.out = append(l.out, m)
		}
	}
	if rd.HardState != nil && rd.HardState.GetCommit() > l.commit {
		l.commit = rd.HardState.GetCommit()
		l.view.commit.Store(l.commit) // before anybody hears of it: it is what reads are answered with
		l.c.Observer.Committed(l.commit)
	}
	l.out = thin(l.out)
	n, alone := len(l.out), l.in.together <= 1 // which changes only in take
	if alone {
		n = hurry(l.out)
	}
	if n > 0 {
		l.c.Transport.Send(l.out[:n])
		if alone {
			runtime.Gosched()
		}
	}
	for _, m := range rd.Messages {
		switch m.GetTo() {
		case raft.LocalAppendThread:
			l.persist(m)
		case raft.LocalApplyThread:
			l.matchCommitted(m.Entries)
			if term := m.Entries[len(m.Entries)-1].GetTerm(); term != l.agreed {
				l.agreed = term
				l.stand()
			}
			l.apply.push(applyItem{m: m})
		}
	}
	if n < len(l.out) {
		runtime.Gosched()
		l.c.Transport.Send(l.out[n:])
	}
	clear(l.out)
}

// persist queues what raft wants durable. The log's goroutine passes the responses on when it is: to this member through
// the inbox, to others at once.
func (l *loop) persist(m *raftpb.Message) {
	if l.installing {
		l.held = append(l.held, m)
		return
	}
	if !raft.IsEmptySnap(m.Snapshot) {
		l.beginInstall(m)
		return
	}
	l.write(m, nil)
}

// write queues a MsgStorageAppend, behind a reset if the state machine has just installed its snapshot.
func (l *loop) write(m *raftpb.Message, reset *Position) {
	w := Write{Entries: m.Entries, Reset: reset, Sync: len(m.Entries) > 0 || reset != nil}
	if m.Term != nil {
		// Raft sets all three when one has changed.
		l.writes.commit = &raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
		if m.GetTerm() != l.writes.term || m.GetVote() != l.writes.vote {
			w.Sync = true
			l.writes.term, l.writes.vote = m.GetTerm(), m.GetVote()
			if m.GetVote() != 0 {
				l.writes.ballot, l.writes.votes = &ballot{term: m.GetTerm(), to: m.GetVote(), since: time.Now()}, true
			}
		}
	}
	responses := l.acked.news(thin(m.Responses))
	if !w.Sync && l.writes.idle() {
		l.respond(responses) // what they acknowledge is durable already
		return
	}
	l.append(w, responses)
	if n := len(m.Entries); n > 0 {
		l.view.last.Store(m.Entries[n-1].GetIndex())
	} else if reset != nil {
		l.view.last.Store(reset.Index)
	}
}

// append gives a write to the log, with the hard state that waited for one.
func (l *loop) append(w Write, responses []*raftpb.Message) {
	w.HardState, l.writes.commit = l.writes.commit, nil
	l.writes.since = append(l.writes.since, time.Now())
	var vote *ballot
	if l.writes.votes {
		vote, l.writes.votes = l.writes.ballot, false
	}
	w.Done = func() {
		vote.wrote()
		l.writes.done.Add(1)
		l.respond(responses)
	}
	l.c.Log.Append(w)
}

// respond delivers the responses to a write: from the log's goroutine, or from the loop if there was nothing to write.
func (r *Replica) respond(ms []*raftpb.Message) {
	own := ms
	if slices.ContainsFunc(ms, func(m *raftpb.Message) bool { return m.GetTo() != r.c.ID }) {
		own = nil
		var others []*raftpb.Message
		for _, m := range ms {
			if m.GetTo() == r.c.ID {
				own = append(own, m)
			} else {
				others = append(others, m)
			}
		}
		if r.ctx.Err() == nil {
			r.c.Transport.Send(others)
		}
	}
	r.in.answer(own)
}

// abandon lets go of what waited when the replica stops.
func (l *loop) abandon() {
	if l.writes.commit != nil {
		l.append(Write{}, nil)
	}
	var w work
	l.in.close(&w)
	for _, s := range w.snapshots {
		s.discard()
	}
	for _, m := range w.made {
		m.release()
	}
	for _, s := range l.staged {
		s.discard()
	}
	l.releaseCheckpoint()
}
