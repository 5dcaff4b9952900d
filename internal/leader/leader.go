// Package leader is the jobs that only the leader does: the clock of the leases, and when history is compacted. They change no
// state; they propose, and what they proposed happens if and when it comes back through the log.
//
// The clock holds a deadline for each lease. It is set when the lease is granted, put off when the lease is renewed
// (which writes nothing), and when it has passed, the lease's revocation is proposed. A new leader starts from what the
// state says: the time that was left when it was last written down (a checkpoint), or the whole time. So that a renewed
// lease never ends early at the next leader, a renewal of a lease that has a checkpoint is answered only after the
// checkpoint was taken back through the log.
//
// Invariants, attacked by the tests beside (under testing/synctest) and by internal/sim:
//
//   - Leading: Renew and TimeToLive answer only after a round that began after they were called has confirmed that this
//     member leads, in the term whose deadlines they use.
//   - No way back: a lease is marked as expired before its revocation is proposed, and a marked lease is never renewed
//     in that term. Renew then waits for what becomes of it.
//   - Own term: what is proposed carries the term and the grant it is for, and the state machine lets it do nothing in an
//     entry of another term or to a later lease of the same id. So what a deposed leader left behind in some queue can
//     neither end a lease that its successor renewed nor shorten it.
//   - Never early: if a renewal that was asked for at some moment is answered, no leader revokes the lease before that
//     moment plus its TTL. In the term of the answer, the deadline says so. A later leader begins after that moment,
//     since this one led after it, and from the whole TTL, since any checkpoint proposed before the answer was taken back
//     in the log behind it.
//   - One at a time: checkpoints and their taking back are proposed by one goroutine, each after the one before has
//     returned, so that they enter the log in that order.
package leader

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

// Leases is the state's table of leases, as applied on this member.
type Leases interface {
	Lookup(id kv.LeaseID) (kv.Lease, bool)
	// Each visits all leases that neither come nor go meanwhile.
	Each(visit func(kv.Lease))
}

// Options say what the jobs work with. Propose and Confirm must be set; the rest takes defaults.
type Options struct {
	// Propose puts a command through the log and waits until this member has applied it. After an error it may be
	// applied all the same, now or later. A call made after another has returned enters the log behind that one, if the
	// other enters it at all. It must return soon after ctx has ended.
	Propose func(ctx context.Context, c *command.Command) (command.Result, error)
	// Confirm returns nil if this member led in that term at some moment after the call, and if it has applied everything
	// that was committed by then. It must return soon after ctx has ended.
	Confirm func(ctx context.Context, term uint64) error
	Logger  *slog.Logger

	// Extend is added to all deadlines when a term begins: clients could not renew while there was no leader. The
	// election timeout is right.
	Extend time.Duration
	// Revokes bounds the revocations under way at one moment; more leases may have expired and wait. Default 256.
	Revokes int
	// Gather is how long an expired lease may wait for others, so that revocations are proposed together. Default 50 ms.
	Gather time.Duration
	// Retry is when a revocation that failed is proposed again. Default 3 s.
	Retry time.Duration
	// Checkpoint is how often the time left of a lease that is not renewed is written down; leases that live no longer
	// than that are not. Default 5 minutes.
	Checkpoint time.Duration
	// Batch bounds the leases in one checkpoint command. Default 1000.
	Batch int

	since func(time.Time) time.Duration // time.Since, but for tests
}

func (o *Options) fill() {
	if o.Revokes <= 0 {
		o.Revokes = 256
	}
	if o.Gather <= 0 {
		o.Gather = 50 * time.Millisecond
	}
	if o.Retry <= 0 {
		o.Retry = 3 * time.Second
	}
	if o.Checkpoint <= 0 {
		o.Checkpoint = 5 * time.Minute
	}
	if o.Batch <= 0 {
		o.Batch = 1000
	}
	if o.since == nil {
		o.since = time.Since
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// MinTTL is the shortest TTL in seconds that a lease should be granted for, as etcd reckons it: one and a half election
// timeouts, rounded up, since a shorter one would end by itself whenever a leader is elected. Whoever proposes a grant
// raises the TTL to it; that is not done where the grant applies, for all members must do the same there.
func MinTTL(election time.Duration) int64 {
	return int64(math.Ceil((election + election/2).Seconds()))
}

// Jobs is the jobs of one member, which run while it leads. All methods may be called from any goroutine, but for Start
// and Stop, which one goroutine at a time may call.
type Jobs struct {
	o    Options
	term atomic.Pointer[term] // nil while this member does not lead

	renewals, expiries, checkpointsDone atomic.Int64
}

// Stats counts what the jobs did since they were made.
type Stats struct {
	Leases       int   // leases with a deadline; 0 while this member does not lead
	Renewed      int64 // renewals answered
	Expired      int64 // leases that ran out and were revoked
	Checkpointed int64 // checkpoints written
}

// New returns jobs that do not run yet.
func New(o Options) *Jobs {
	o.fill()
	return &Jobs{o: o}
}

// Start begins the jobs of a term in which this member leads, over the leases of its state. Before they do anything,
// they wait until everything that was committed before is applied.
func (j *Jobs) Start(number uint64, leases Leases) {
	j.Stop()
	t := &term{
		Jobs:   j,
		number: number,
		table:  leases,
		clock:  clock{base: time.Now(), since: j.o.since},
		ready:  make(chan struct{}),
		leases: make(map[kv.LeaseID]*entry),
		clears: make(map[kv.LeaseID]*clearing),
		places: make(chan struct{}, j.o.Revokes),
	}
	t.deadlines.order, t.checkpoints.order = byDeadline, byCheckpoint
	for _, c := range []*chan struct{}{&t.expiryWake, &t.checkpointWake} {
		*c = make(chan struct{}, 1)
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.confirm = confirmer{ctx: t.ctx, term: number, confirm: j.o.Confirm}
	j.term.Store(t)
	t.running.Go(t.run)
	t.running.Go(func() { t.clock.run(t.ctx) })
}

// Stop ends the jobs of the term, if one runs, and waits for them. Whoever waits in Renew or TimeToLive gets
// kv.ErrNotLeader.
func (j *Jobs) Stop() {
	t := j.term.Swap(nil)
	if t == nil {
		return
	}
	t.cancel()
	t.confirm.wait()
	t.running.Wait()
}

// Renew gives a lease its whole time again and returns it in seconds. kv.ErrLeaseNotFound if it is gone or going;
// kv.ErrNotLeader if this member does not lead (any more), which leaves the lease as it was or renewed. An error of
// Confirm or Propose leaves it so too.
func (j *Jobs) Renew(ctx context.Context, id kv.LeaseID) (ttl int64, err error) {
	t := j.term.Load()
	if t == nil {
		return 0, kv.ErrNotLeader
	}
	return t.renew(ctx, id)
}

// TimeToLive returns a lease and the whole seconds it has left, from 0 to its TTL. Errors are those of Renew.
func (j *Jobs) TimeToLive(ctx context.Context, id kv.LeaseID) (lease kv.Lease, remaining int64, err error) {
	t := j.term.Load()
	if t == nil {
		return kv.Lease{}, 0, kv.ErrNotLeader
	}
	return t.timeToLive(ctx, id)
}

// Changed tells of a lease that was granted or whose checkpoint was changed, after the state shows it. Changed and
// Revoked are called in the order of the log, and never wait.
func (j *Jobs) Changed(lease kv.Lease) {
	if t := j.term.Load(); t != nil {
		t.changed(lease)
	}
}

// Revoked tells of a lease that is gone from the state.
func (j *Jobs) Revoked(id kv.LeaseID) {
	if t := j.term.Load(); t != nil {
		t.revoked(id)
	}
}

// Stats returns the counts now.
func (j *Jobs) Stats() Stats {
	s := Stats{Renewed: j.renewals.Load(), Expired: j.expiries.Load(), Checkpointed: j.checkpointsDone.Load()}
	if t := j.term.Load(); t != nil {
		t.mu.Lock()
		s.Leases = len(t.leases)
		t.mu.Unlock()
	}
	return s
}

// confirmer shares rounds of Confirm: everybody who asks gets the outcome of a round that began after they asked.
type confirmer struct {
	ctx     context.Context // of the term
	term    uint64
	confirm func(context.Context, uint64) error

	mu      sync.Mutex
	next    *round // the round that those who ask now wait for; it has not begun
	running bool
	rounds  sync.WaitGroup // the goroutine that runs rounds; Add under mu while ctx lives
}

type round struct {
	done chan struct{}
	err  error
}

// ask waits for a round. It returns kv.ErrNotLeader when the term has ended.
func (c *confirmer) ask(ctx context.Context) error {
	c.mu.Lock()
	if c.ctx.Err() != nil {
		c.mu.Unlock()
		return kv.ErrNotLeader
	}
	if c.next == nil {
		c.next = &round{done: make(chan struct{})}
		if !c.running {
			c.running = true
			c.rounds.Go(c.run)
		}
	}
	r := c.next
	c.mu.Unlock()
	select {
	case <-r.done:
		if c.ctx.Err() != nil {
			return kv.ErrNotLeader
		}
		return r.err
	case <-c.ctx.Done():
		return kv.ErrNotLeader
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run makes rounds as long as somebody waits for one.
func (c *confirmer) run() {
	for {
		c.mu.Lock()
		r := c.next
		c.next = nil
		if r == nil || c.ctx.Err() != nil {
			c.running = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		r.err = c.confirm(c.ctx, c.term)
		close(r.done)
	}
}

// wait waits for the rounds under way after ctx has ended.
func (c *confirmer) wait() {
	c.mu.Lock() // nobody is between looking at ctx and Add
	//lint:ignore SA2001 the lock is passed through, not held
	c.mu.Unlock()
	c.rounds.Wait()
}
