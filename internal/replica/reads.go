package replica

import (
	"container/heap"
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"go.etcd.io/raft/v3"

	"github.com/trivet-kv/trivet/internal/kv"
)

// Linearizable reads. Reads that arrive while rounds are under way share the next one; a round asks raft for a read index
// under a number that is used once: the start's origin and a counter. Raft answers with a commit index of a leader that
// has committed in its term and has heard from a quorum after it got the question.
//
// Why an answer is right whenever it comes, from whichever leader: the question with number n was asked after every read
// of round n, and of all rounds before it, had arrived; the answer is an index that was committed, with everything
// committed before it, at a moment after that. So an answer to n serves all rounds up to n, and answers may be lost,
// delayed, doubled or given by a leader that is none any more. A round without an answer is not asked again: an empty
// round after it is, under a new number, on a change of leader or after readRetryTicks. An answer to another life of this
// member has another origin and is ignored.

// round is a group of reads that share one answer.
type round struct {
	readers   int
	index     uint64
	confirmed chan struct{} // closed when index is set
	applied   chan struct{} // closed when the state machine has applied index
}

// readRounds are the rounds that were asked for, in order of their numbers; the loop's.
type readRounds struct {
	origin uint64
	seq    uint64
	issued []issuedRound
	hurry  bool // there is a new leader: ask it
}

type issuedRound struct {
	seq    uint64
	at     uint64 // tick
	rounds []*round
}

const (
	readRetryTicks = 3
	// maxIssued bounds the rounds that wait for answers, with those that were added to ask again.
	maxIssued = 64
)

// join adds the caller to the round that is forming.
func (r *Replica) join() (*round, error) {
	if r.serving.Err() != nil {
		return nil, kv.ErrStopped
	}
	r.in.mu.Lock()
	if r.in.reading >= r.c.MaxQueuedReads {
		r.in.mu.Unlock()
		return nil, fmt.Errorf("%w: %d reads wait for a leader", kv.ErrTooManyRequests, r.c.MaxQueuedReads)
	}
	rd := r.in.forming
	first := rd == nil
	if first {
		rd = &round{confirmed: make(chan struct{}), applied: make(chan struct{})}
		r.in.forming = rd
	}
	rd.readers++
	r.in.reading++
	r.in.mu.Unlock()
	if first {
		r.in.gather(func() bool { return r.in.forming == rd })
	}
	return rd, nil
}

// ReadIndex returns a log index not below any index that was committed anywhere when the call began: who reads the state
// when it has applied that index reads linearizably. It waits through changes of leader until ctx ends. Errors:
// kv.ErrTooManyRequests, kv.ErrStopped, ctx's.
func (r *Replica) ReadIndex(ctx context.Context) (uint64, error) {
	rd, err := r.join()
	if err != nil {
		return 0, err
	}
	if err := r.await(ctx, rd.confirmed); err != nil {
		return 0, err
	}
	return rd.index, nil
}

// ReadBarrier is ReadIndex and WaitApplied in one, and cheaper. It does not wait for a disk that hangs: if this member has
// not applied the index while it is Stuck, the error is kv.ErrTimeoutApply.
func (r *Replica) ReadBarrier(ctx context.Context) error {
	rd, err := r.join()
	if err != nil {
		return err
	}
	select {
	case <-rd.applied:
		return nil
	case <-r.Stuck():
	case <-ctx.Done():
		return ctx.Err()
	case <-r.serving.Done():
		return kv.ErrStopped
	}
	// Nothing may have been written since the disk hangs.
	if err := r.await(ctx, rd.confirmed); err != nil {
		return err
	}
	if r.applied.index.Load() < rd.index {
		return kv.ErrTimeoutApply
	}
	return nil
}

func (r *Replica) await(ctx context.Context, ch <-chan struct{}) error {
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-r.serving.Done():
		return kv.ErrStopped
	}
}

// WaitApplied waits until the state machine has applied index.
func (r *Replica) WaitApplied(ctx context.Context, index uint64) error {
	if r.applied.index.Load() >= index {
		return nil
	}
	ch := make(chan struct{})
	r.applied.notify(index, ch)
	return r.await(ctx, ch)
}

// issueReads asks raft for the round that is forming, or again for those without an answer.
func (l *loop) issueReads() {
	q := &l.reads
	if l.lead == 0 || !l.mayAnswerReads() {
		return
	}
	again := q.hurry && len(q.issued) > 0
	q.hurry = false
	var rounds []*round
	if len(q.issued) < l.c.MaxReadRounds || again {
		l.in.mu.Lock()
		if rd := l.in.forming; rd != nil {
			rounds = append(rounds, rd)
			l.in.forming = nil
		}
		l.in.mu.Unlock()
	}
	if len(rounds) == 0 && !again {
		return
	}
	q.seq++
	q.issued = append(q.issued, issuedRound{q.seq, l.ticks, rounds})
	if len(q.issued) > maxIssued {
		// The two oldest become one, with the younger number: its answer serves both.
		q.issued[1].rounds = append(q.issued[0].rounds, q.issued[1].rounds...)
		q.issued = append(q.issued[:0], q.issued[1:]...)
	}
	ctx := binary.LittleEndian.AppendUint64(make([]byte, 0, 16), q.origin)
	l.rn.ReadIndex(binary.LittleEndian.AppendUint64(ctx, q.seq))
}

// mayAnswerReads is false for a leader that is the only voter and has not committed in its term. What it takes for committed
// after a start may be less than what it acknowledged before, since the commit index is not synced for its own sake; an
// entry of its own term settles that. In larger clusters raft itself waits for that entry; for a single voter it does not.
func (l *loop) mayAnswerReads() bool {
	if len(l.confState.GetVoters()) != 1 {
		return true
	}
	s := l.rn.BasicStatus()
	return s.RaftState != raft.StateLeader || l.agreed == s.HardState.GetTerm()
}

// retryReads asks again when the last question has been without an answer for too long.
func (l *loop) retryReads() {
	q := &l.reads
	if n := len(q.issued); n > 0 && l.ticks-q.issued[n-1].at >= readRetryTicks && l.lead != 0 {
		q.hurry = true
		l.c.Observer.ReadRetried(readRetryTicks * l.c.Tick)
	}
}

// confirmReads serves all rounds up to the one that was answered.
func (l *loop) confirmReads(s raft.ReadState) {
	q := &l.reads
	if len(s.RequestCtx) != 16 || binary.LittleEndian.Uint64(s.RequestCtx) != q.origin {
		return
	}
	seq := binary.LittleEndian.Uint64(s.RequestCtx[8:])
	served, n := 0, 0
	for ; n < len(q.issued) && q.issued[n].seq <= seq; n++ {
		for _, rd := range q.issued[n].rounds {
			served += rd.readers
			rd.index = s.Index
			close(rd.confirmed)
			l.applied.notify(s.Index, rd.applied)
		}
	}
	if n == 0 {
		return
	}
	q.issued = append(q.issued[:0], q.issued[n:]...)
	l.in.mu.Lock()
	l.in.reading -= served
	more := l.in.forming != nil
	l.in.mu.Unlock()
	if more {
		l.in.nudge()
	}
}

// appliedIndex is how far the state machine has come, and who waits for more.
type appliedIndex struct {
	index atomic.Uint64
	term  atomic.Uint64

	mu      sync.Mutex
	waiters appliedWaiters // at most one for each round of reads and each call of WaitApplied
}

type appliedWaiter struct {
	index uint64
	ch    chan struct{}
}

// notify closes ch when index is applied, perhaps at once.
func (a *appliedIndex) notify(index uint64, ch chan struct{}) {
	if a.index.Load() >= index {
		close(ch)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.index.Load() >= index { // advance takes the lock after it has stored
		close(ch)
		return
	}
	heap.Push(&a.waiters, appliedWaiter{index, ch})
}

// advance is called by the applier only.
func (a *appliedIndex) advance(p Position) {
	a.term.Store(p.Term)
	a.index.Store(p.Index)
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.waiters) > 0 && a.waiters[0].index <= p.Index {
		close(heap.Pop(&a.waiters).(appliedWaiter).ch)
	}
}

type appliedWaiters []appliedWaiter

func (w appliedWaiters) Len() int           { return len(w) }
func (w appliedWaiters) Less(i, j int) bool { return w[i].index < w[j].index }
func (w appliedWaiters) Swap(i, j int)      { w[i], w[j] = w[j], w[i] }
func (w *appliedWaiters) Push(x any)        { *w = append(*w, x.(appliedWaiter)) }
func (w *appliedWaiters) Pop() any {
	old := *w
	x := old[len(old)-1]
	old[len(old)-1] = appliedWaiter{}
	*w = old[:len(old)-1]
	return x
}
