package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/kv"
)

// Replica is one member's part in the agreement. All its methods may be called from any goroutine.
//
// Its goroutines are the loop (loop.go), the applier (apply.go) and, while a checkpoint is being made, one for that
// (snapshot.go). Stop ends them all.
type Replica struct {
	c   Config
	ctx context.Context // ends when the replica stops or fails
	end context.CancelFunc
	// serving ends with ctx, or before it with leave: callers have their answers until then.
	serving context.Context
	leave   context.CancelFunc
	wg      sync.WaitGroup

	in      inbox
	apply   applier
	pending pending
	applied appliedIndex
	reads   reads
	view    view
	stuck   stuck

	failed   chan error // capacity 1
	failOnce sync.Once
}

// Start starts the replica. It returns when the log agrees with the state machine; from then on the state machine gets
// entries. Messages of peers are to be passed to Receive and its sisters (Replica implements transport.Handler but for
// Serve).
func Start(c Config) (*Replica, error) {
	c.setDefaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	confState, err := decodeConfState(c.ConfState)
	if err != nil {
		return nil, err
	}
	hs, err := reconcile(c.Log, c.Applied, c.Logger)
	if err != nil {
		return nil, err
	}
	r := &Replica{c: c, failed: make(chan error, 1)}
	r.ctx, r.end = context.WithCancel(context.Background())
	r.serving, r.leave = context.WithCancel(r.ctx)
	r.stuck.open()
	r.in.wake = make(chan struct{}, 1)
	r.apply.wake = make(chan struct{}, 1)
	r.reads.acks = acks{c.ID, map[uint64]uint64{}}
	r.reads.late = time.AfterFunc(time.Hour, r.askLate)
	r.reads.late.Stop()
	r.applied.index.Store(c.Applied.Index)
	r.applied.term.Store(c.Applied.Term)
	l, err := newLoop(r, hs, confState)
	if err != nil {
		r.end()
		return nil, err
	}
	r.wg.Go(l.run)
	r.wg.Go(r.runApply)
	return r, nil
}

// newLoop makes the loop's state, with a RawNode that stands where the log and the state machine stand.
func newLoop(r *Replica, hs *raftpb.HardState, confState *raftpb.ConfState) (*loop, error) {
	l := &loop{
		Replica: r, confState: confState,
		inflight: inflight{origin: r.c.Origin},
		gone:     map[uint64]bool{},
		awaited:  map[uint64]chan struct{}{},
		staged:   map[Position]stagedSnapshot{},
		writes:   outstanding{term: hs.GetTerm(), vote: hs.GetVote()},
		commit:   hs.GetCommit(),
	}
	var err error
	l.rn, err = raft.NewRawNode(&raft.Config{
		ID:                        r.c.ID,
		ElectionTick:              r.c.ElectionTicks,
		HeartbeatTick:             r.c.HeartbeatTicks,
		Storage:                   &storage{l, hs, confState},
		Applied:                   r.c.Applied.Index,
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             1 << 20,
		MaxCommittedSizePerReady:  r.c.MaxApplyBytes,
		MaxUncommittedEntriesSize: r.c.MaxUncommittedBytes,
		MaxInflightMsgs:           512,
		MaxInflightBytes:          64 << 20,
		CheckQuorum:               true,
		PreVote:                   true,
		Logger:                    raftLogger{r.c.Logger},
		DisableProposalForwarding: true, // forward.go does it, at most once
		StepDownOnRemoval:         true,
	})
	if err != nil {
		return nil, fmt.Errorf("replica: %w", err)
	}
	last, err := r.c.Log.LastIndex()
	if err != nil {
		return nil, err
	}
	l.view.last.Store(last)
	l.view.commit.Store(l.commit)
	l.view.stale = true
	l.observe()
	l.publish()
	return l, nil
}

// fail stops the replica for good. Who hears why finds it stopped.
func (r *Replica) fail(err error) {
	r.end()
	r.failOnce.Do(func() {
		r.c.Logger.Error("the replica stops", "err", err)
		r.failed <- err
	})
}

// Failed gives the error with which the replica stopped by itself: the log or the state machine failed.
func (r *Replica) Failed() <-chan error { return r.failed }

// Stop ends the replica's goroutines and waits for them. The log stays open. Whoever waits gets kv.ErrStopped.
func (r *Replica) Stop() {
	r.end()
	r.wg.Wait()
}

// HandOver hands leadership to the voter that can take over soonest, if this member has it, and waits for that for two election
// timeouts at most. If that one's process ends meanwhile, the next is tried; with nobody to take over it does nothing.
func (r *Replica) HandOver(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, r.transferTimeout())
	defer cancel()
	for {
		var heir uint64
		var gone <-chan struct{}
		if err := r.onLoop(ctx, func(l *loop) {
			if heir = l.heir(); heir != 0 {
				gone = l.untilGone(heir)
			}
		}); err != nil || heir == 0 {
			return
		}
		err := r.transferTo(ctx, heir, gone)
		if err == nil {
			return
		}
		r.c.Logger.Warn("leadership was not handed over before the stop", "to", hex(heir), "err", err)
		if !errors.Is(err, errHeirGone) {
			return
		}
	}
}

// StopGracefully is HandOver and Stop.
func (r *Replica) StopGracefully(ctx context.Context) {
	r.HandOver(ctx)
	r.Stop()
}

// TransferLeadership hands leadership to a voter and waits until this member knows it as leader. Errors:
// kv.ErrNotLeader, kv.ErrBadLeaderTransferee, kv.ErrLeaderTransferTimeout after two election timeouts or when ctx ends,
// and kv.ErrStopped.
func (r *Replica) TransferLeadership(ctx context.Context, to uint64) error {
	ctx, cancel := context.WithTimeout(ctx, r.transferTimeout())
	defer cancel()
	return r.transferTo(ctx, to, nil)
}

func (r *Replica) transferTimeout() time.Duration {
	return 2 * time.Duration(r.c.ElectionTicks) * r.c.Tick
}

// errHeirGone ends the wait for a member whose process has ended.
var errHeirGone = errors.New("its process has ended")

// transferTo is TransferLeadership without a bound of its own. It gives up when gone is closed.
func (r *Replica) transferTo(ctx context.Context, to uint64, gone <-chan struct{}) error {
	var refusal error
	changed := r.LeaderChanged()
	if err := r.onLoop(ctx, func(l *loop) { refusal = l.transfer(to) }); err != nil {
		return err
	}
	if refusal != nil {
		return refusal
	}
	for r.Status().Leader != to {
		select {
		case <-changed:
			changed = r.LeaderChanged()
		case <-gone:
			return errHeirGone
		case <-ctx.Done():
			return fmt.Errorf("%w: member %x has not taken over", kv.ErrLeaderTransferTimeout, to)
		case <-r.ctx.Done():
			return kv.ErrStopped
		}
	}
	return nil
}

// Leave ends what callers wait for, and all that they will ask for, with kv.ErrStopped. The replica itself goes on: that it was
// removed from the cluster, and will have no more answers, may be known here before others know it.
func (r *Replica) Leave() { r.leave() }

// Left is closed by Leave and when the replica stops.
func (r *Replica) Left() <-chan struct{} { return r.serving.Done() }

// onLoop runs f on the loop and waits for it.
func (r *Replica) onLoop(ctx context.Context, f func(*loop)) error {
	done := make(chan struct{})
	r.in.control(func(l *loop) {
		f(l)
		close(done)
	})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-r.ctx.Done():
		return kv.ErrStopped
	}
}

// Durable says that the state machine would hold applied after a crash, so that the log may be cut behind it.
func (r *Replica) Durable(applied uint64) { r.in.durable(applied) }

// Receive takes messages of a peer that came together. At MaxInboxBytes they are dropped; raft heals that.
func (r *Replica) Receive(ms ...*raftpb.Message) {
	forLoop := false
	for _, m := range ms {
		if raft.IsLocalMsg(m.GetType()) || r.hear(m) {
			continue
		}
		forLoop = true
		if !r.in.message(m, r.c.MaxInboxBytes) {
			r.c.Observer.MessageDropped(m.GetFrom())
		}
	}
	if forLoop {
		r.in.nudge()
	}
}

// errTooManySnapshots is told to a peer that sends a checkpoint while others wait for the loop.
var errTooManySnapshots = errors.New("too many checkpoints wait to be installed")

// ReceiveSnapshot takes a MsgSnap whose checkpoint is durable in dir; discard is called when dir is done with.
func (r *Replica) ReceiveSnapshot(m *raftpb.Message, dir string, discard func()) error {
	if r.ctx.Err() != nil {
		return kv.ErrStopped
	}
	if !r.in.snapshot(stagedSnapshot{m, dir, discard}) {
		return errTooManySnapshots
	}
	return nil
}

// Unreachable says that messages to a peer were lost.
func (r *Replica) Unreachable(id uint64) { r.in.peer(peerEvent{id: id, kind: peerUnreachable}) }

// PeerUp says that messages flow to a peer.
func (r *Replica) PeerUp(id uint64) { r.in.peer(peerEvent{id: id, kind: peerUp}) }

// PeerDown says that they do not; processGone, that the peer's process has ended.
func (r *Replica) PeerDown(id uint64, processGone bool) {
	kind := peerUnreachable
	if processGone {
		kind = peerGone
	}
	r.in.peer(peerEvent{id: id, kind: kind})
}

// pending counts the commands that are neither committed nor given up, against their bounds.
type pending struct {
	commands atomic.Int64
	bytes    atomic.Int64
}

func hex(id uint64) string { return fmt.Sprintf("%x", id) }
