package replica

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/kv"
)

// Linearizable reads. A read needs an index that is not below any that was committed anywhere when it came. Reads that come
// while a question for one is under way share the next. A question has a number that is used for one group of reads: the
// start's origin and a counter. Whoever answers number n took an index after n was asked first, so after every read of the
// groups up to n had come, and made sure that it was still the leader then. So an answer to n serves all groups up to n,
// whenever it comes and from whichever leader; questions may be lost, doubled, late, and asked again as they are. A question
// of another life of this member has another origin.
//
// The loop has no part in it but to say where the member stands, and to ask again. Questions are asked by the first read of
// a group, and answered by the goroutine that reads the peer's connection: a hand-over to the loop and back, in each member,
// would cost more than all the rest. What members say to each other is in question.go.

// reads are the reads of this member that have no index yet, and those of followers that asked it. Bounds: reads by
// MaxQueuedReads, questions by MaxReadRounds, followers by their number: of each the newest question counts.
type reads struct {
	mu      sync.Mutex
	at      standing
	asked   []question // under way, in order of their numbers
	forming *round     // those who come now; nil: nobody has
	waiting int        // reads
	seq     uint64     // number of the newest question
	acks    acks

	together int           // reads that shared a question, lately
	took     time.Duration // about how long a question is under way
	late     *time.Timer   // runs while a leader waits for the voters that it asks first; then it asks all
	lateRuns bool

	// At the last tick: the oldest question, and for how many ticks it has been that.
	oldest uint64
	ticks  int
}

// round is a group of reads that share one answer.
type round struct {
	readers   int
	guests    map[uint64][]*raftpb.Entry // followers whose questions joined, with what names the newest; nil: none
	index     uint64
	confirmed chan struct{} // closed when index is set
	applied   chan struct{} // closed when the state machine has applied index
}

// question is a group whose question is under way.
type question struct {
	*round
	seq uint64
	at  time.Time
	// On a leader: the answer, if a quorum confirms it; and whether all voters were asked.
	commit uint64
	all    bool
}

// joinLocked gives the group that is forming, and whether it is new.
func (q *reads) joinLocked() (rd *round, first bool) {
	if q.forming != nil {
		return q.forming, false
	}
	q.forming = &round{confirmed: make(chan struct{}), applied: make(chan struct{})}
	return q.forming, true
}

// join adds the caller to the group that is forming.
func (r *Replica) join() (*round, error) {
	if r.serving.Err() != nil {
		return nil, kv.ErrStopped
	}
	q := &r.reads
	q.mu.Lock()
	if q.waiting >= r.c.MaxQueuedReads {
		q.mu.Unlock()
		return nil, fmt.Errorf("%w: %d reads wait for a leader", kv.ErrTooManyRequests, r.c.MaxQueuedReads)
	}
	rd, first := q.joinLocked()
	rd.readers++
	q.waiting++
	busy := q.together > 1
	q.mu.Unlock()
	if first {
		if busy {
			runtime.Gosched() // those who are about to come ask along
		}
		q.mu.Lock()
		ms := r.askLocked()
		q.mu.Unlock()
		r.say(ms)
	}
	return rd, nil
}

// serveLocked gives the oldest group the index that was asked for.
func (r *Replica) serveLocked(index uint64) {
	q := &r.reads
	a := q.asked[0]
	q.asked = slices.Delete(q.asked, 0, 1)
	q.waiting -= a.readers
	q.took += (time.Since(a.at) - q.took) / 8
	a.round.index = index
	close(a.confirmed)
	r.applied.notify(index, a.applied)
}

// ReadIndex returns a log index not below any index that was committed anywhere when the call began: who reads the state
// when it has applied that index reads linearizably. It waits through changes of leader until ctx ends. Errors:
// kv.ErrTooManyRequests, kv.ErrStopped, ctx's.
func (r *Replica) ReadIndex(ctx context.Context) (uint64, error) {
	rd, err := r.join()
	if err != nil {
		return 0, err
	}
	if err := r.await(ctx, nil, rd.confirmed); err != nil {
		return 0, err
	}
	return rd.index, nil
}

// ReadBarrier is ReadIndex and WaitApplied in one, and cheaper. It does not wait for a disk that hangs: if this member has
// not applied the index while it is Stuck, the error is kv.ErrTimeoutApply; when late is closed, which may be nil, it is kv.ErrTimeout.
func (r *Replica) ReadBarrier(ctx context.Context, late <-chan struct{}) error {
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
	case <-late:
		return kv.ErrTimeout
	case <-r.serving.Done():
		return kv.ErrStopped
	}
	// Nothing may have been written since the disk hangs.
	if err := r.await(ctx, late, rd.confirmed); err != nil {
		return err
	}
	if r.applied.index.Load() < rd.index {
		return kv.ErrTimeoutApply
	}
	return nil
}

// await waits for ch, until ctx ends or late, which may be nil, is closed.
func (r *Replica) await(ctx context.Context, late, ch <-chan struct{}) error {
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-late:
		return kv.ErrTimeout
	case <-r.serving.Done():
		return kv.ErrStopped
	}
}
