package transport

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// NetworkOptions are the manners of a Network. Probabilities are of one message.
type NetworkOptions struct {
	Seed               uint64
	MinDelay, MaxDelay time.Duration // of each message, evenly spread; unequal delays reorder all but appends
	Loss, Duplicate    float64
}

// Network joins members of one process, for tests and simulation: delay, loss, duplication and reordering of messages,
// partitions (one-way too), pauses and crashes. What happens to a message is drawn from a source of its link's own, so
// that a seed gives each link the same manners whatever the others do. Messages are encoded and decoded on their way:
// members share no memory.
type Network struct {
	mu      sync.Mutex
	o       NetworkOptions
	members map[uint64]*Endpoint
	links   map[link]*manners
	due     deliveries
	seq     uint64
	closed  bool

	wake chan struct{} // 1: due has changed
	done chan struct{} // the scheduler has ended
}

type link struct{ from, to uint64 }

type manners struct {
	rng        *rand.Rand
	cut        bool
	lastAppend time.Time // appends do not overtake one another
}

// delivery is something that happens at a time; seq keeps things of one time in order.
type delivery struct {
	at  time.Time
	seq uint64
	// The delivery waits while either end is paused, and is lost if either has ended.
	from, to *Endpoint
	do       func()
}

type deliveries []delivery

func (d deliveries) Len() int      { return len(d) }
func (d deliveries) Swap(i, j int) { d[i], d[j] = d[j], d[i] }
func (d deliveries) Less(i, j int) bool {
	return d[i].at.Before(d[j].at) || d[i].at.Equal(d[j].at) && d[i].seq < d[j].seq
}
func (d *deliveries) Push(x any) { *d = append(*d, x.(delivery)) }
func (d *deliveries) Pop() any {
	old := *d
	x := old[len(old)-1]
	old[len(old)-1] = delivery{}
	*d = old[:len(old)-1]
	return x
}

// NewNetwork makes a network without members. Close ends its goroutine.
func NewNetwork(o NetworkOptions) *Network {
	n := &Network{
		o: o, members: map[uint64]*Endpoint{}, links: map[link]*manners{},
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	go n.run()
	return n
}

// EndpointConfig says who joins. FS is where sent checkpoints lie and Incoming, on it, where received ones go.
type EndpointConfig struct {
	ID       uint64
	FS       vfs.FS
	Incoming string
}

// Endpoint is one life of one member on a Network; it has the methods of Transport.
type Endpoint struct {
	n      *Network
	c      EndpointConfig
	ctx    context.Context // ends with Close or Crash
	cancel context.CancelFunc
	wg     sync.WaitGroup // checkpoints being sent

	// n.mu guards these.
	h        Handler
	ended    bool
	paused   bool
	held     []delivery // while paused
	receipts int
	removed  map[uint64]bool // whose messages are answered by telling them that they were removed
}

// Join adds a member, or brings back one that crashed or was closed. Incoming is emptied.
func (n *Network) Join(c EndpointConfig) (*Endpoint, error) {
	if err := emptyDir(c.FS, c.Incoming); err != nil {
		return nil, err
	}
	e := &Endpoint{n: n, c: c}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	n.mu.Lock()
	defer n.mu.Unlock()
	if old := n.members[c.ID]; old != nil && !old.ended {
		return nil, fmt.Errorf("transport: member %x is on the network already", c.ID)
	}
	n.members[c.ID] = e
	return e, nil
}

// SetOptions changes the manners from now on, but for the seed.
func (n *Network) SetOptions(o NetworkOptions) {
	n.mu.Lock()
	defer n.mu.Unlock()
	o.Seed = n.o.Seed
	n.o = o
}

// Cut stops what flows from one member to another. Like a firewall it tells nobody.
func (n *Network) Cut(from, to uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.linkLocked(from, to).cut = true
}

// Partition cuts all links between members of different groups and heals those within. Members named in no group are one
// more group.
func (n *Network) Partition(groups ...[]uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	group := func(id uint64) int {
		return slices.IndexFunc(groups, func(g []uint64) bool { return slices.Contains(g, id) })
	}
	for a := range n.members {
		for b := range n.members {
			if a != b {
				n.linkLocked(a, b).cut = group(a) != group(b)
			}
		}
	}
}

// Heal removes all cuts.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.links {
		l.cut = false
	}
	for _, e := range n.members {
		for id := range e.removed {
			e.tellRemovedLocked(id)
		}
	}
}

// Pause holds up everything to and from a member, as if its process was stopped by a signal; Resume lets it all go on.
func (n *Network) Pause(id uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if e := n.members[id]; e != nil {
		e.paused = true
	}
}

// Resume ends a pause.
func (n *Network) Resume(id uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if e := n.members[id]; e != nil {
		e.paused = false
		for _, d := range e.held {
			heap.Push(&n.due, d)
		}
		e.held = nil
		n.nudge()
	}
}

// Crash ends a member's endpoint as the death of its process would: what is under way to and from it is lost, and the
// other members soon find that nobody listens.
func (n *Network) Crash(id uint64) {
	n.mu.Lock()
	e := n.members[id]
	if e != nil {
		e.endLocked()
	}
	n.mu.Unlock()
}

// Close ends the network.
func (n *Network) Close() {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return
	}
	n.closed = true
	n.nudge()
	members := n.members
	for _, e := range members {
		e.ended = true
		e.cancel()
	}
	n.mu.Unlock()
	for _, e := range members {
		e.wg.Wait()
	}
	<-n.done
}

func (n *Network) nudge() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// run makes things happen at their time.
func (n *Network) run() {
	defer close(n.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		n.mu.Lock()
		if n.closed {
			n.mu.Unlock()
			return
		}
		now, wait := time.Now(), time.Hour
		var ready []func()
		for len(n.due) > 0 && !n.due[0].at.After(now) {
			if do := n.releaseLocked(heap.Pop(&n.due).(delivery)); do != nil {
				ready = append(ready, do)
			}
		}
		if len(n.due) > 0 {
			wait = n.due[0].at.Sub(now)
		}
		n.mu.Unlock()
		for _, do := range ready {
			do()
		}
		if len(ready) > 0 {
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-n.wake:
		}
	}
}

// releaseLocked returns what is to be done for a delivery whose time has come, if anything.
func (n *Network) releaseLocked(d delivery) func() {
	for _, e := range []*Endpoint{d.from, d.to} {
		if e == nil {
			continue
		}
		if e.ended {
			return nil
		}
		if e.paused {
			e.held = append(e.held, d)
			return nil
		}
	}
	return d.do
}

func (n *Network) linkLocked(from, to uint64) *manners {
	l := n.links[link{from, to}]
	if l == nil {
		l = &manners{rng: rand.New(rand.NewPCG(n.o.Seed, from<<32^to))}
		n.links[link{from, to}] = l
	}
	return l
}

// delayLocked draws how long a message takes; false if it is lost.
func (n *Network) delayLocked(l *manners) (time.Duration, bool) {
	d := n.o.MinDelay
	if spread := n.o.MaxDelay - n.o.MinDelay; spread > 0 {
		d += time.Duration(l.rng.Int64N(int64(spread)))
	}
	return d, l.rng.Float64() >= n.o.Loss && !l.cut
}

func (n *Network) scheduleLocked(d delivery) {
	n.seq++
	d.seq = n.seq
	heap.Push(&n.due, d)
	n.nudge()
}

// Serve begins to deliver; other members that serve find each other.
func (e *Endpoint) Serve(h Handler) {
	e.n.mu.Lock()
	defer e.n.mu.Unlock()
	if e.ended || e.h != nil {
		return
	}
	e.h = h
	for _, other := range e.n.members {
		if other == e || other.ended || other.h == nil {
			continue
		}
		at := time.Now().Add(e.n.o.MinDelay)
		e.n.scheduleLocked(delivery{at: at, from: e, to: other, do: func() { other.h.PeerUp(e.c.ID) }})
		e.n.scheduleLocked(delivery{at: at, from: other, to: e, do: func() { e.h.PeerUp(other.c.ID) }})
		if other.removed[e.c.ID] {
			other.tellRemovedLocked(e.c.ID)
		}
	}
}

// Send is as Transport's.
func (e *Endpoint) Send(ms []*raftpb.Message) {
	e.n.mu.Lock()
	var lost []uint64
	for _, m := range ms {
		if !e.sendLocked(m) && !slices.Contains(lost, m.GetTo()) {
			lost = append(lost, m.GetTo())
		}
	}
	h := e.h
	e.n.mu.Unlock()
	for _, id := range lost {
		if h != nil {
			h.Unreachable(id)
		}
	}
}

// sendLocked reports whether the peer was there to be sent to. What the network then does, it tells nobody.
func (e *Endpoint) sendLocked(m *raftpb.Message) bool {
	to := e.n.members[m.GetTo()]
	if e.ended || to == nil || to.ended || to.h == nil || !sendable(m.GetType()) {
		return false
	}
	l := e.n.linkLocked(e.c.ID, to.c.ID)
	copies := 1
	if l.rng.Float64() < e.n.o.Duplicate {
		copies = 2
	}
	for range copies {
		delay, ok := e.n.delayLocked(l)
		if !ok {
			continue
		}
		c, err := copyMessage(m, e.c.ID, to.c.ID)
		if err != nil {
			panic(fmt.Sprintf("transport: cannot decode what was encoded from %v: %v", m, err))
		}
		at := time.Now().Add(delay)
		if m.GetType() == raftpb.MsgApp {
			if at.Before(l.lastAppend) {
				at = l.lastAppend
			}
			l.lastAppend = at
		}
		e.n.scheduleLocked(delivery{at: at, from: e, to: to, do: func() { to.receive(e, c) }})
	}
	return true
}

// way finds the endpoint at the other end, with the delay of one message, if a message would get there.
func (e *Endpoint) way(id uint64) (*Endpoint, time.Duration, error) {
	e.n.mu.Lock()
	defer e.n.mu.Unlock()
	to := e.n.members[id]
	if e.ended {
		return nil, 0, ErrClosed
	}
	if to == nil || to.ended || to.h == nil {
		return nil, 0, ErrUnreachable
	}
	delay, ok := e.n.delayLocked(e.n.linkLocked(e.c.ID, id))
	if !ok {
		return to, delay, errLost
	}
	return to, delay, nil
}

var errLost = errors.New("transport: lost on its way")

// SendSnapshot is as Transport's: the files are copied from this member's file system to the other's.
func (e *Endpoint) SendSnapshot(m *raftpb.Message, dir string, done func(error)) {
	e.n.mu.Lock()
	defer e.n.mu.Unlock()
	if e.ended {
		go done(ErrClosed)
		return
	}
	e.wg.Add(1)
	go func() {
		defer e.wg.Done()
		done(e.sendSnapshot(m, dir))
	}()
}

func (e *Endpoint) sendSnapshot(m *raftpb.Message, dir string) error {
	to, delay, err := e.way(m.GetTo())
	if err != nil {
		return err
	}
	if !sleep(e.ctx, delay) {
		return ErrClosed
	}
	e.n.mu.Lock()
	to.receipts++
	meta := m.GetSnapshot().GetMetadata()
	name := fmt.Sprintf("%x-%d-%d-%d", e.c.ID, meta.GetTerm(), meta.GetIndex(), to.receipts)
	e.n.mu.Unlock()
	staged, _, err := copyCheckpoint(e.c.FS, dir, to.c.FS, to.c.Incoming, name)
	if err != nil {
		return err
	}
	discard := func() { _ = to.c.FS.RemoveAll(staged) }
	if now, _, err := e.way(m.GetTo()); err != nil || now != to {
		discard()
		return errors.Join(errLost, err)
	}
	if err := to.h.ReceiveSnapshot(proto.Clone(m).(*raftpb.Message), staged, discard); err != nil {
		discard()
		return &RemoteError{err.Error()}
	}
	return nil
}

// Call is as Transport's. A call that is lost on its way is not answered before ctx ends.
func (e *Endpoint) Call(ctx context.Context, to uint64, kind byte, body []byte) ([]byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(e.ctx, func() { cancel(ErrClosed) })
	defer stop()
	travel := func(from *Endpoint, to uint64) (*Endpoint, error) {
		other, delay, err := from.way(to)
		if errors.Is(err, errLost) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
		if err == nil && !sleep(ctx, delay) {
			err = context.Cause(ctx)
		}
		return other, err
	}
	other, err := travel(e, to)
	if err != nil {
		return nil, err
	}
	result, ok := other.serve(e.c.ID, kind, body)
	if !ok {
		return nil, ErrUnreachable
	}
	select {
	case a := <-result:
		if _, err := travel(other, e.c.ID); err != nil {
			return nil, err
		}
		if a.err != nil {
			return nil, &RemoteError{a.err.Error()}
		}
		return slices.Clone(a.body), nil
	case <-other.ctx.Done():
		return nil, ErrUnreachable
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// serve has this member answer a call, which Close waits for; false if it has ended.
func (e *Endpoint) serve(from uint64, kind byte, body []byte) (<-chan answer, bool) {
	e.n.mu.Lock()
	defer e.n.mu.Unlock()
	if e.ended {
		return nil, false
	}
	result := make(chan answer, 1)
	e.wg.Go(func() {
		b, err := e.h.Serve(e.ctx, from, kind, slices.Clone(body))
		result <- answer{b, err}
	})
	return result, true
}

// Ask is as the function Ask, of a member instead of an address. It arrives whatever is cut.
func (n *Network) Ask(ctx context.Context, to uint64, kind byte, body []byte) ([]byte, error) {
	n.mu.Lock()
	other := n.members[to]
	delay := n.o.MinDelay
	there := other != nil && !other.ended && other.h != nil
	n.mu.Unlock()
	if !there {
		return nil, ErrUnreachable
	}
	if !sleep(ctx, delay) {
		return nil, context.Cause(ctx)
	}
	result, ok := other.serve(0, kind, body)
	if !ok {
		return nil, ErrUnreachable
	}
	select {
	case a := <-result:
		if a.err != nil {
			return nil, &RemoteError{a.err.Error()}
		}
		return slices.Clone(a.body), nil
	case <-other.ctx.Done():
		return nil, ErrUnreachable
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// SetPeer does nothing: here every member knows every other.
func (e *Endpoint) SetPeer(uint64, []string) {}

// RemovePeer is as Transport's.
func (e *Endpoint) RemovePeer(id uint64) {
	e.n.mu.Lock()
	defer e.n.mu.Unlock()
	if e.removed == nil {
		e.removed = map[uint64]bool{}
	}
	e.removed[id] = true
	e.tellRemovedLocked(id)
}

// tellRemovedLocked tells a member that it was removed, as a Transport does when that one connects or tries to; n.mu is held.
func (e *Endpoint) tellRemovedLocked(id uint64) {
	to := e.n.members[id]
	if e.ended || to == nil || to.ended || to.h == nil || e.n.linkLocked(id, e.c.ID).cut || e.n.linkLocked(e.c.ID, id).cut {
		return
	}
	e.n.scheduleLocked(delivery{at: time.Now().Add(e.n.o.MinDelay), from: e, to: to, do: func() { to.h.Removed(e.c.ID) }})
}

// receive hands a message on, unless its sender was removed.
func (e *Endpoint) receive(from *Endpoint, m *raftpb.Message) {
	e.n.mu.Lock()
	removed := e.removed[from.c.ID]
	if removed {
		e.tellRemovedLocked(from.c.ID)
	}
	e.n.mu.Unlock()
	if !removed {
		e.h.Receive(m)
	}
}

// endLocked ends an endpoint; n.mu is held.
func (e *Endpoint) endLocked() {
	if e.ended {
		return
	}
	e.ended = true
	e.cancel()
	e.held = nil
	for _, other := range e.n.members {
		if other == e || other.ended || other.h == nil {
			continue
		}
		if e.n.linkLocked(other.c.ID, e.c.ID).cut {
			continue // it dials into the void
		}
		e.n.scheduleLocked(delivery{
			at: time.Now().Add(e.n.o.MinDelay + time.Millisecond), to: other,
			do: func() { other.h.PeerDown(e.c.ID, true) },
		})
	}
}

// Close is as Transport's.
func (e *Endpoint) Close() error {
	e.n.mu.Lock()
	e.endLocked()
	e.n.mu.Unlock()
	e.wg.Wait()
	return nil
}
