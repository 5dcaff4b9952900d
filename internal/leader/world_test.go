package leader

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

var errLost = errors.New("nobody knows what became of it")

// world is a cluster as the jobs see it: one log, applied everywhere at once, which only the leader of the term appends
// to, and members whose proposals wait in queues, in order, some of them for long after their proposer gave up.
type world struct {
	t       *testing.T
	members []*fakeMember
	began   time.Time
	queues  sync.WaitGroup
	still   atomic.Int64 // how long all processes have stood still, of which the bubble's time knows nothing

	mu     sync.Mutex
	r      *rand.Rand
	term   uint64
	leader int // index of the leader of term, -1 for none
	index  uint64
	leases map[kv.LeaseID]kv.Lease
	// alive is until when each lease must not be revoked by a leader, by what clients were answered.
	alive   map[kv.LeaseID]time.Time
	revoked map[kv.LeaseID]time.Time
	// noFence applies what a deposed leader left behind, as if the term in it were not looked at.
	noFence     bool
	checkpoints int // commands that wrote times down
	early       int
}

type fakeMember struct {
	w       *world
	id      int
	jobs    *Jobs
	queue   chan queued
	delay   time.Duration // the longest that a proposal waits in the queue
	confirm time.Duration // the longest that a round takes
	lossy   bool          // outcomes get lost now and then
	lost    int           // the outcomes of so many more proposals get lost at once
	gate    chan struct{} // while not nil and not closed, nothing leaves the queue
}

type queued struct {
	c    *command.Command
	done chan command.Result // capacity 1
}

func newWorld(t *testing.T, seed uint64, members int, o Options) *world {
	w := &world{
		t: t, r: rand.New(rand.NewPCG(seed, 3)), leader: -1, began: time.Now(),
		leases: map[kv.LeaseID]kv.Lease{}, alive: map[kv.LeaseID]time.Time{}, revoked: map[kv.LeaseID]time.Time{},
	}
	for i := range members {
		m := &fakeMember{w: w, id: i, queue: make(chan queued, 100000), delay: 2 * time.Millisecond, confirm: 2 * time.Millisecond}
		o.Propose, o.Confirm = m.propose, m.lead
		o.since = func(t time.Time) time.Duration { return time.Since(t) + time.Duration(w.still.Load()) }
		m.jobs = New(o)
		w.members = append(w.members, m)
		w.queues.Go(m.run)
	}
	return w
}

func (w *world) stop() {
	for _, m := range w.members {
		m.jobs.Stop()
		close(m.queue)
	}
	w.queues.Wait()
}

func (w *world) rand(most time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Duration(w.r.Int64N(int64(most) + 1))
}

// now is the time by the clock on the wall.
func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.still.Load())) }

func (w *world) chance(n int) bool { return w.rand(time.Duration(n-1)) == 0 }

// elect makes a member the leader of a new term. Its jobs begin after late; those of the one before go on until its own
// server finds out.
func (w *world) elect(i int, late time.Duration) {
	w.mu.Lock()
	w.term++
	w.leader = i
	term := w.term
	w.mu.Unlock()
	time.Sleep(late)
	w.members[i].jobs.Start(term, w)
}

// lead is Confirm.
func (m *fakeMember) lead(ctx context.Context, term uint64) error {
	m.sleep(ctx, m.w.rand(m.confirm))
	m.w.mu.Lock()
	leads := m.w.leader == m.id && m.w.term == term
	m.w.mu.Unlock()
	m.sleep(ctx, m.w.rand(m.confirm))
	if !leads {
		return kv.ErrTimeoutLeaderFail
	}
	return ctx.Err()
}

func (m *fakeMember) sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// propose is Propose: it queues at once and waits for the outcome.
func (m *fakeMember) propose(ctx context.Context, c *command.Command) (command.Result, error) {
	q := queued{c, make(chan command.Result, 1)}
	m.queue <- q
	if m.w.lose(m) {
		return command.Result{}, errLost
	}
	var timeout <-chan time.Time
	if m.lossy && m.w.chance(4) {
		timeout = time.After(m.w.rand(m.slowness()))
	}
	select {
	case r := <-q.done:
		return r, nil
	case <-timeout:
		return command.Result{}, errLost
	case <-ctx.Done():
		return command.Result{}, ctx.Err()
	}
}

// slow sets the longest that a proposal waits in a member's queue.
func (w *world) slow(m *fakeMember, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m.delay = d
}

func (m *fakeMember) slowness() time.Duration {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	return m.delay
}

// hold keeps proposals in a member's queue until its gate is closed.
func (w *world) hold(m *fakeMember) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m.gate = make(chan struct{})
}

func (w *world) lose(m *fakeMember) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	m.lost--
	return m.lost >= 0
}

// run moves proposals from the queue into the log of whoever leads then: a member that does not lead passes them on.
func (m *fakeMember) run() {
	for q := range m.queue {
		time.Sleep(m.w.rand(m.slowness()))
		for {
			m.w.mu.Lock()
			gate := m.gate
			leads := m.w.leader >= 0
			m.w.mu.Unlock()
			if gate != nil {
				<-gate
			}
			if leads {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		q.done <- m.w.apply(q.c)
	}
}

// apply is what the state machine does with an entry of the current term.
func (w *world) apply(c *command.Command) command.Result {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.index++
	switch {
	case c.LeaseGrant != nil:
		l := kv.Lease{ID: c.LeaseGrant.ID, TTL: c.LeaseGrant.TTL, Granted: w.index}
		if _, ok := w.leases[l.ID]; ok {
			return command.Result{Err: kv.ErrLeaseExists}
		}
		w.leases[l.ID] = l
		w.alive[l.ID] = w.now().Add(time.Duration(l.TTL) * time.Second)
		w.tell(func(j *Jobs) { j.Changed(l) })
	case c.LeaseRevoke != nil:
		return w.applyRevoke(c.LeaseRevoke)
	case c.LeaseCheckpoint != nil:
		p := c.LeaseCheckpoint
		if p.Term != 0 && p.Term != w.term && !w.noFence {
			return command.Result{Err: kv.ErrLeaderChanged}
		}
		for _, change := range p.Leases {
			if l, ok := w.leases[change.ID]; ok && (change.Granted == 0 || change.Granted == l.Granted || w.noFence) {
				l.Remaining = change.Remaining
				w.leases[l.ID] = l
				w.tell(func(j *Jobs) { j.Changed(l) })
				if l.Remaining > 0 {
					w.checkpoints++
				}
			}
		}
	}
	return command.Result{Index: w.index, Term: w.term}
}

func (w *world) applyRevoke(v *command.LeaseRevoke) command.Result {
	l, ok := w.leases[v.ID]
	if !w.noFence {
		if v.Term != 0 && v.Term != w.term {
			return command.Result{Err: kv.ErrLeaderChanged}
		}
		ok = ok && (v.Granted == 0 || v.Granted == l.Granted)
	}
	if !ok {
		return command.Result{Err: kv.ErrLeaseNotFound}
	}
	if early := w.alive[v.ID].Sub(w.now()); v.Term != 0 && early > 0 {
		if w.early++; !w.noFence {
			w.t.Errorf("at %v, lease %d is revoked %v too early, in term %d", time.Since(w.began), v.ID, early, w.term)
		}
	}
	delete(w.leases, v.ID)
	w.revoked[v.ID] = w.now()
	w.tell(func(j *Jobs) { j.Revoked(v.ID) })
	return command.Result{}
}

// tell tells the jobs of all members, in the order of the log.
func (w *world) tell(f func(*Jobs)) {
	w.mu.Unlock()
	defer w.mu.Lock()
	for _, m := range w.members {
		f(m.jobs)
	}
}

// Lookup and Each make a world the table of leases of every member.
func (w *world) Lookup(id kv.LeaseID) (kv.Lease, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l, ok := w.leases[id]
	return l, ok
}

func (w *world) Each(visit func(kv.Lease)) {
	w.mu.Lock()
	leases := make([]kv.Lease, 0, len(w.leases))
	for _, l := range w.leases {
		leases = append(leases, l)
	}
	w.mu.Unlock()
	for _, l := range leases {
		visit(l)
	}
}

// counts returns the checkpoints written and the index of the last entry.
func (w *world) counts() (checkpoints int, index uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.checkpoints, w.index
}

func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.leases)
}

func (w *world) grant(id kv.LeaseID, ttl int64) error {
	w.mu.Lock()
	at := max(w.leader, 0)
	w.mu.Unlock()
	q := queued{&command.Command{LeaseGrant: &command.LeaseGrant{ID: id, TTL: ttl}}, make(chan command.Result, 1)}
	w.members[at].queue <- q
	return (<-q.done).Err
}

// renew asks a member and writes down what the client may rely on.
func (w *world) renew(ctx context.Context, member int, id kv.LeaseID) (int64, error) {
	asked := w.now()
	ttl, err := w.members[member].jobs.Renew(ctx, id)
	if err == nil {
		until := asked.Add(time.Duration(ttl) * time.Second)
		w.mu.Lock()
		defer w.mu.Unlock()
		if gone, ok := w.revoked[id]; ok && gone.After(w.alive[id]) && gone.Before(until) && w.leases[id].ID == 0 {
			w.t.Errorf("at %v, lease %d was renewed until %v, but had gone at %v", time.Since(w.began), id, until.Sub(w.began), gone.Sub(w.began))
		}
		if until.After(w.alive[id]) {
			w.alive[id] = until
		}
	}
	return ttl, err
}
