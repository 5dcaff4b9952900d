package replica

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

// How a command gets into the log at most once.
//
// Commands wait in a queue until there is a leader. Then a batch of them is handed off: to raft if this member leads, or
// in a MsgProp to the leader. A handed-off batch is in flight until its fate is known:
//
//   - committed: an entry with its bytes is committed;
//   - lost: an entry of a later term than the batch's was committed before it. A batch is only ever appended by the leader
//     of the term in which it was handed off (MsgProp carries the term, and the leader of any other term drops it), so
//     its entry has that term; terms never fall along the log; so it is not and will not be in the log. Its commands go
//     back to the head of the queue, but for those nobody waits for any more;
//   - unknown: a snapshot took the place of the entries among which it would have been. Its commands are given up: whoever
//     waits runs into a timeout.
//
// A MsgProp may be lost without a change of term. It is sent again after a while, under the same number, and the leader
// takes each number of each sender once (foreign.go).

// proposal is one command. Its caller waits until ctx ends or late is closed; nil: there is no such bound.
type proposal struct {
	ctx  context.Context
	late <-chan struct{}
	cmd  []byte
}

// gone reports whether nobody waits for the command any more.
func (p *proposal) gone() bool {
	select {
	case <-p.late:
		return true
	default:
		return p.ctx.Err() != nil
	}
}

// Propose queues an encoded command. Nil means that it waits to be agreed on; what became of it is learned by applying it.
// It is held while there is no leader. A command whose ctx ended, or whose late was closed (it may be nil), before it was handed
// to a leader is dropped, and so may be one that was lost with its leader. Errors: kv.ErrTooManyRequests, kv.ErrRequestTooLarge, kv.ErrStopped.
// The bytes must not be changed afterwards.
func (r *Replica) Propose(ctx context.Context, late <-chan struct{}, cmd []byte) error {
	if r.serving.Err() != nil {
		return kv.ErrStopped
	}
	if uint64(len(cmd)) > r.c.MaxUncommittedBytes/4 {
		return fmt.Errorf("%w: a command of %d bytes", kv.ErrRequestTooLarge, len(cmd))
	}
	size := int64(len(cmd))
	commands := r.pending.commands.Add(1)
	queued := r.pending.bytes.Add(size)
	if commands > int64(r.c.MaxQueuedProposals) || commands > 1 && queued > r.c.MaxQueuedBytes {
		r.pending.commands.Add(-1)
		r.pending.bytes.Add(-size)
		return fmt.Errorf("%w: %d commands of %d bytes are under way", kv.ErrTooManyRequests, commands-1, queued-size)
	}
	r.c.Observer.Pending(int(commands))
	r.in.propose(proposal{ctx, late, cmd})
	return nil
}

// Pending is how many commands were taken by Propose and are not yet agreed on.
func (r *Replica) Pending() int { return int(r.pending.commands.Load()) }

// settle takes commands out of the count of those under way.
func (r *Replica) settle(ps []proposal) {
	size := 0
	for _, p := range ps {
		size += len(p.cmd)
	}
	r.pending.bytes.Add(-int64(size))
	r.c.Observer.Pending(int(r.pending.commands.Add(-int64(len(ps)))))
}

// proposalQueue is a queue that also takes back.
type proposalQueue struct {
	items []proposal
	head  int
	// blocked: raft took no more, because of a hand-over of leadership or of MaxUncommittedBytes. Until a tick or a commit.
	blocked bool
}

func (q *proposalQueue) len() int { return len(q.items) - q.head }

func (q *proposalQueue) push(ps []proposal) {
	if q.head > len(q.items)/2 {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, ps...)
}

func (q *proposalQueue) pushFront(ps []proposal) {
	q.items = append(append(make([]proposal, 0, len(ps)+q.len()), ps...), q.items[q.head:]...)
	q.head = 0
}

// take removes commands from the head, at least one, up to maxBytes in all, leaving out those whose callers have gone.
func (q *proposalQueue) take(maxBytes int) (live, dead []proposal) {
	size := 0
	for q.head < len(q.items) {
		p := q.items[q.head]
		gone := p.gone()
		if !gone && len(live) > 0 && size+len(p.cmd) > maxBytes {
			break
		}
		q.items[q.head] = proposal{}
		q.head++
		if gone {
			dead = append(dead, p)
			continue
		}
		live = append(live, p)
		size += len(p.cmd)
	}
	return live, dead
}

// sweep drops commands whose callers have gone while there is no leader to take them.
func (l *loop) sweep() {
	q := &l.queue
	kept := q.items[:q.head]
	var dead []proposal
	for _, p := range q.items[q.head:] {
		if p.gone() {
			dead = append(dead, p)
		} else {
			kept = append(kept, p)
		}
	}
	clear(q.items[len(kept):])
	q.items = kept
	l.giveUp(dead)
}

// giveUp forgets commands that will not be handed off (again).
func (l *loop) giveUp(ps []proposal) {
	if len(ps) > 0 {
		l.settle(ps)
		l.c.Observer.ProposalLost(len(ps))
	}
}

// batch is an entry that was handed off.
type batch struct {
	term   uint64
	seq    uint64 // of a forwarded one; zero if raft has it
	data   []byte
	from   []proposal
	sentAt uint64 // tick
	tries  uint64
}

// inflight holds the batches whose fate is open, in the order of handing off; at most MaxInflightBatches. So there are
// never many to compare an entry with, and what comes meanwhile is packed into larger batches.
type inflight struct {
	origin  uint64
	batches []*batch
	seq     uint64
}

// handOff gives to raft, or to the leader, what waits.
func (l *loop) handOff() {
	switch {
	case l.lead == 0:
	case l.state != raft.StateLeader:
		for l.queue.len() > 0 && len(l.inflight.batches) < l.c.MaxInflightBatches {
			if b := l.nextBatch(); b != nil {
				l.inflight.seq++
				b.seq = l.inflight.seq
				l.inflight.batches = append(l.inflight.batches, b)
				l.forward(b)
			}
		}
	case l.view.transferee == 0:
		for !l.queue.blocked && l.proposeGroup() {
		}
	}
}

// maxStep is about how many bytes of entries raft is handed at once: what it sends in one message.
const maxStep = 1 << 20

// proposeGroup hands raft one group of entries, of followers and of this member; false if there are none.
func (l *loop) proposeGroup() bool {
	var group []*raftpb.Entry
	size, foreign := 0, 0
	for foreign < len(l.foreign.entries) && (size == 0 || size+len(l.foreign.entries[foreign].Data) <= maxStep) {
		size += len(l.foreign.entries[foreign].Data)
		group = append(group, l.foreign.entries[foreign])
		foreign++
	}
	var own []*batch
	for size < maxStep && l.queue.len() > 0 && len(l.inflight.batches)+len(own) < l.c.MaxInflightBatches {
		if b := l.nextBatch(); b != nil {
			size += len(b.data)
			own = append(own, b)
			group = append(group, &raftpb.Entry{Data: b.data})
		}
	}
	if len(group) == 0 {
		return false
	}
	if err := l.proposeEntries(group); err != nil {
		for i := len(own) - 1; i >= 0; i-- {
			l.queue.pushFront(own[i].from)
		}
		l.queue.blocked = true
		return false
	}
	l.foreign.drop(foreign)
	l.inflight.batches = append(l.inflight.batches, own...)
	return true
}

// nextBatch packs commands from the head of the queue; nil if nobody waits for them any more.
func (l *loop) nextBatch() *batch {
	live, dead := l.queue.take(l.c.MaxEntryBytes)
	l.giveUp(dead)
	if len(live) == 0 {
		return nil
	}
	return &batch{term: l.term, data: pack(l.c.Origin, live), from: live, sentAt: l.ticks}
}

func pack(origin uint64, ps []proposal) []byte {
	size := 16
	cmds := make([][]byte, len(ps))
	for i, p := range ps {
		cmds[i] = p.cmd
		size += len(p.cmd) + binary.MaxVarintLen32
	}
	return command.AppendBatch(make([]byte, 0, size), origin, cmds)
}

// proposeEntries hands entries to raft on a leader. An error means that none was taken.
func (l *loop) proposeEntries(entries []*raftpb.Entry) error {
	return l.rn.Step(&raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(l.c.ID), Entries: entries})
}

// forward sends a batch to the leader.
func (l *loop) forward(b *batch) {
	b.sentAt, b.tries = l.ticks, b.tries+1
	l.c.Transport.Send([]*raftpb.Message{{
		Type: raftpb.MsgProp.Enum(), To: new(l.lead), From: new(l.c.ID), Term: new(b.term),
		Context: ticket{l.inflight.origin, b.seq, l.inflight.low()}.encode(),
		Entries: []*raftpb.Entry{{Data: b.data}},
	}})
}

// low is the smallest number that may still be sent (again).
func (f *inflight) low() uint64 {
	for _, b := range f.batches {
		if b.seq != 0 {
			return b.seq
		}
	}
	return f.seq + 1
}

// resend forwards again what the leader may not have got: after half an election timeout, twice that and so on, or at
// once when the connection to the leader is new.
func (l *loop) resend(now bool) {
	if l.lead == 0 || l.state == raft.StateLeader {
		return
	}
	for _, b := range l.inflight.batches {
		wait := uint64(l.c.ElectionTicks/2+1) << min(b.tries, 6)
		if b.seq != 0 && b.term == l.term && (now || l.ticks-b.sentAt >= wait) {
			l.forward(b)
		}
	}
}

// matchCommitted learns the fate of batches from entries that are now known to be committed, in order.
func (l *loop) matchCommitted(entries []*raftpb.Entry) {
	f := &l.inflight
	l.queue.blocked = false
	for _, e := range entries {
		if len(f.batches) == 0 {
			return
		}
		if f.batches[0].term < e.GetTerm() {
			l.requeueLost(e.GetTerm())
		}
		if e.GetType() != raftpb.EntryNormal || len(e.Data) == 0 {
			continue
		}
		for i, b := range f.batches {
			if b.term == e.GetTerm() && bytes.Equal(b.data, e.Data) {
				l.settle(b.from)
				f.remove(i)
				break
			}
		}
	}
}

func (f *inflight) remove(i int) {
	if i == 0 {
		f.batches[0] = nil
		f.batches = f.batches[1:]
		return
	}
	copy(f.batches[i:], f.batches[i+1:])
	f.batches[len(f.batches)-1] = nil
	f.batches = f.batches[:len(f.batches)-1]
}

// requeueLost puts the commands of batches that an entry of the given term proves lost back to the head of the queue.
// Batches are in the order of their terms.
func (l *loop) requeueLost(term uint64) {
	f := &l.inflight
	var again, dead []proposal
	n := 0
	for ; n < len(f.batches) && f.batches[n].term < term; n++ {
		for _, p := range f.batches[n].from {
			if p.gone() {
				dead = append(dead, p)
			} else {
				again = append(again, p)
			}
		}
		f.batches[n] = nil
	}
	f.batches = f.batches[n:]
	l.giveUp(dead)
	l.queue.pushFront(again)
	if len(again) > 0 {
		l.c.Logger.Info("commands lost with their leader are proposed again", "commands", len(again), "term", term)
		l.in.nudge() // they are handed off in the next round
	}
}

// forgetUnknown gives up batches that a snapshot may contain.
func (l *loop) forgetUnknown(snapshot Position) {
	f := &l.inflight
	for len(f.batches) > 0 && f.batches[0].term <= snapshot.Term {
		l.giveUp(f.batches[0].from)
		f.remove(0)
	}
}
