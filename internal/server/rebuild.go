package server

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/datadir"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/member"
	"github.com/trivet-kv/trivet/internal/raftlog"
	"github.com/trivet-kv/trivet/internal/replica"
)

// How a member whose log or state is damaged or lost comes back under its own id, without a person.
//
// It must not simply get the cluster's state: with its log it forgot which entries it acknowledged and whom it voted for.
// So it keeps silent (no replica runs) until what it forgot cannot matter any more, and then goes on from the leader's
// state:
//
//	1. it asks the leader (callRebuild);
//	2. the leader proposes a fence. When that is applied, at entry d, and this leader still leads in the term T of that
//	   entry, a majority without the silent member holds everything that was ever acknowledged;
//	3. the leader makes a checkpoint, which holds d, and sends it;
//	4. the member puts it in the place of its state and begins a log behind it, in term T and with its vote given to
//	   that leader (datadir says how a crash meanwhile is survived), and starts as after any checkpoint.
//
// Why that is safe is A8 in docs/invariants.md. Nothing on the disk is changed before the checkpoint is here.

// rebuildPatience bounds how long a member looks for a leader that helps, beside some elections.
const rebuildPatience = 10 * time.Second

// maxRebuildFailures is how often a leader may fail to send its state before the member gives up.
const maxRebuildFailures = 5

// ErrRebuild is wrapped when a member that runs found that its log or state is not to be trusted. It must be stopped by
// Abort and may be started again at once: it then rebuilds itself from the others.
var ErrRebuild = errors.New("the member's own data is not to be trusted; it rebuilds itself from the other members")

// errNoHelp is wrapped when a member with damaged data cannot be rebuilt.
var errNoHelp = errors.New("the member cannot be rebuilt from the others")

// damaged reports whether an error says that data of this member is damaged or lost, so that others could replace it.
func damaged(err error) bool {
	for _, kind := range []error{errLostLog, errDiverged, errDamagedState, datadir.ErrLostState, replica.ErrUnfit, engine.ErrMalformed, fsm.ErrNotBootstrapped} {
		if errors.Is(err, kind) {
			return true
		}
	}
	_, ofLog := errors.AsType[*raftlog.DamageError](err)
	return ofLog || engine.IsDamage(err)
}

// openData opens state and log. If they are damaged they are rebuilt first, or the error says why they cannot be.
func (m *Member) openData() error {
	var err error
	if why := m.dir.Identity.Rebuild; why != "" {
		err = fmt.Errorf("%w: %s", errDamagedState, why)
	} else if err = m.lostLog(); err == nil {
		err = m.tryOpen()
	}
	if err == nil || !damaged(err) || m.options.ForceNewCluster || errors.Is(err, ErrRemoved) {
		return err
	}
	select {
	case <-m.broken: // the same damage, as the state told it that is closed by now
	default:
	}
	if helpless := m.rebuild(err); helpless != nil {
		return fmt.Errorf("%w; %w", err, helpless)
	}
	return m.tryOpen()
}

// tryOpen opens state and log and looks whether they fit each other. After an error neither is open.
func (m *Member) tryOpen() error {
	if err := m.openState(); err != nil {
		return err
	}
	err := m.openLog()
	if err != nil {
		return errors.Join(err, m.machine.abandon())
	}
	if err = replica.Fits(replicaLog{m.log}, replica.Position(m.machine.state.Load().Applied)); err == nil && m.options.ForceNewCluster {
		err = m.force()
	}
	if err == nil {
		err = m.checkMembership()
	}
	if err != nil {
		return errors.Join(err, m.log.Close(), m.machine.abandon())
	}
	return nil
}

// rebuild replaces state and log by those of the leader. The error says why that cannot be done.
func (m *Member) rebuild(why error) error {
	members, err := m.lastMembers()
	if err != nil {
		return err
	}
	voters := 0
	for _, one := range members {
		if !one.Learner && one.ID != m.identity.MemberID {
			voters++
		}
	}
	if self := m.isVoter(members); voters < (voters+self)/2+1 {
		return fmt.Errorf("%w: without it there is no majority that could, for the cluster has %d other members with a vote", errNoHelp, voters)
	}
	m.logger.Error("this member's data is damaged or lost; it is rebuilt from the other members", "error", why)
	if m.transport == nil {
		if err := m.joinNetwork(members, nil); err != nil {
			return err
		}
	}
	start := time.Now()
	received, err := m.receiveState(members)
	if err != nil {
		return err
	}
	defer received.discard()
	if err := m.replaceData(received, why.Error()); err != nil {
		return fmt.Errorf("put the received state in place: %w", err)
	}
	m.rebuilt = true
	meta := received.message.GetSnapshot().GetMetadata()
	m.logger.Warn("this member was rebuilt", "from", fmt.Sprintf("%x", received.message.GetFrom()), "index", meta.GetIndex(), "term", meta.GetTerm(), "took", time.Since(start))
	return nil
}

// isVoter is 1 if this member has a vote as far as is known, or is not known.
func (m *Member) isVoter(members []member.Member) int {
	for _, one := range members {
		if one.ID == m.identity.MemberID && one.Learner {
			return 0
		}
	}
	return 1
}

// lastMembers is who was in the cluster when this member last knew: the note beside the state or, if there is none, what
// the flags say.
func (m *Member) lastMembers() ([]member.Member, error) {
	encoded, err := m.dir.KeptMembers()
	if err != nil {
		return nil, err
	}
	var members []member.Member
	if encoded != nil {
		if err := json.Unmarshal(encoded, &members); err != nil {
			m.logger.Warn("the note of the members cannot be read; the flags are used", "error", err)
			members = nil
		}
	}
	if len(members) == 0 && m.options.Join == nil {
		members, _, _ = m.options.founders(m.identity.Token)
	}
	return members, nil
}

// keepMembers runs until the member stops: it notes the members beside the state, for the case that the state is lost.
func (m *Member) keepMembers() {
	for {
		encoded, err := json.Marshal(m.machine.state.Load().Members.All())
		if err == nil {
			err = m.dir.KeepMembers(append(encoded, '\n'))
		}
		if err != nil {
			m.logger.Warn("the members could not be noted; if the state is lost, the note before is used", "error", err)
		}
		select {
		case <-m.life.Done():
			return
		case <-m.othersNow:
		}
	}
}

// receivedState is a leader's state, which lies in dir.
type receivedState struct {
	message *raftpb.Message
	dir     string
	discard func()
}

// rebuilding is what a member that is being rebuilt waits for.
type rebuilding struct {
	nonce    [8]byte // tells what this start asked for from everything else
	received chan receivedState
	busy     atomic.Int32  // leaders that prepare or send their state
	sign     chan struct{} // capacity 1: a leader was found, or ended its work

	mu       sync.Mutex
	failures int
	last     error
}

// take accepts the first state that was asked for.
func (b *rebuilding) take(s receivedState) error {
	if string(s.message.GetContext()) != string(b.nonce[:]) {
		return errStarting
	}
	select {
	case b.received <- s:
		return nil
	default:
		return errors.New("another checkpoint was here before")
	}
}

func (b *rebuilding) signal() {
	select {
	case b.sign <- struct{}{}:
	default:
	}
}

func (b *rebuilding) failed(peer uint64, err error) {
	b.mu.Lock()
	b.failures++
	b.last = fmt.Errorf("member %x: %w", peer, err)
	b.mu.Unlock()
}

// receiveState asks the other members until one of them has sent its state, or none leads for too long.
func (m *Member) receiveState(members []member.Member) (receivedState, error) {
	b := &rebuilding{received: make(chan receivedState, 1), sign: make(chan struct{}, 1)}
	binary.BigEndian.PutUint64(b.nonce[:], m.options.Origin)
	m.peers.rebuilding.Store(b)
	ctx, cancel := context.WithCancel(m.life)
	var asking sync.WaitGroup
	defer func() {
		m.peers.rebuilding.Store(nil)
		cancel()
		asking.Wait()
	}()
	for _, one := range members {
		if one.ID != m.identity.MemberID {
			asking.Go(func() { m.askToRebuild(ctx, b, one.ID) })
		}
	}
	patience := rebuildPatience + 5*m.options.electionTimeout()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case s := <-b.received:
			return s, nil
		case <-b.sign:
			timer.Reset(patience)
		case err := <-m.broken:
			return receivedState{}, err // it was removed, for instance
		case <-timer.C:
			if b.busy.Load() > 0 {
				timer.Reset(patience)
				continue
			}
			return receivedState{}, b.helpless(patience)
		}
		b.mu.Lock()
		failures := b.failures
		b.mu.Unlock()
		if failures >= maxRebuildFailures {
			return receivedState{}, b.helpless(patience)
		}
	}
}

func (b *rebuilding) helpless(patience time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last != nil {
		return fmt.Errorf("%w: no leader could send its state: %w", errNoHelp, b.last)
	}
	return fmt.Errorf("%w: none of them was found to lead within %v; start a majority of the others and then this member again", errNoHelp, patience)
}

// askToRebuild asks one member, over and over, whether it leads, and if so for its state.
func (m *Member) askToRebuild(ctx context.Context, b *rebuilding, peer uint64) {
	for ctx.Err() == nil {
		once, cancel := context.WithTimeout(ctx, m.options.electionTimeout())
		answer, err := m.transport.Call(once, peer, callLeads, make([]byte, 8))
		cancel()
		if err == nil && len(answer) == 1 && answer[0] == 1 {
			b.busy.Add(1)
			b.signal()
			_, err := m.transport.Call(ctx, peer, callRebuild, b.nonce[:]) // the answer comes behind the state, or is "not now"
			if err != nil && ctx.Err() == nil {
				m.logger.Warn("the leader did not send its state; it is asked again", "leader", fmt.Sprintf("%x", peer), "error", err)
				b.failed(peer, err)
			}
			b.busy.Add(-1)
			b.signal()
		}
		select {
		case <-ctx.Done():
		case <-time.After(m.options.Tick):
		}
	}
}

// replaceData puts what was received in the place of state and log.
func (m *Member) replaceData(s receivedState, why string) error {
	meta := s.message.GetSnapshot().GetMetadata()
	at := replica.Position{Index: meta.GetIndex(), Term: meta.GetTerm()}
	if p, err := m.positionIn(s.dir); err != nil || replica.Position(p) != at {
		return fmt.Errorf("the checkpoint received in %s is at %+v and was announced as %+v: %w", s.dir, p, at, err)
	}
	if err := m.dir.BeginRebuild(why); err != nil {
		return err
	}
	if _, err := m.dir.Replace(s.dir); err != nil {
		return err
	}
	if err := m.dir.SetLogAside(); err != nil {
		return err
	}
	log, err := raftlog.Open(m.logOptions())
	if err != nil {
		return err
	}
	done := make(chan struct{})
	log.Append(raftlog.Write{
		// It gives its vote to the leader that sent the state, which has won already, so that no other can have it.
		HardState: &raftpb.HardState{Term: new(s.message.GetTerm()), Vote: new(s.message.GetFrom()), Commit: new(at.Index)},
		Reset:     (*raftlog.Position)(&at), Sync: true, Done: func() { close(done) },
	})
	select {
	case <-done:
	case err = <-log.Failed():
	}
	if err := errors.Join(err, log.Close()); err != nil {
		return err
	}
	if err := m.dir.EndRebuild(); err != nil {
		return err
	}
	return m.dir.Prune()
}

func (m *Member) positionIn(dir string) (fsm.Position, error) {
	machine := machine{fs: m.options.FS, logger: m.logger}
	p, _, err := machine.positionOf(dir)
	return p, err
}

// errNotNow says that the leader has another member to see to, or leads no more: it can be asked again.
var errNotNow = errors.New("the leader cannot send its state right now")

// sendState serves callRebuild: as the leader, it makes sure that what the caller may have forgotten does not matter, and
// sends it the state. It returns when the caller has that.
func (m *Member) sendState(ctx context.Context, to uint64, nonce []byte) error {
	r := m.peers.replica.Load()
	if r == nil {
		return errStarting
	}
	if _, known := m.machine.state.Load().Members.Get(to); !known || !m.sending.TryLock() {
		return errNotNow
	}
	defer m.sending.Unlock()
	fence, err := m.proposeFence(ctx, to)
	if err != nil {
		return err
	}
	c, err := m.machine.Checkpoint(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	if c.Applied.Index < fence.Index || c.Applied.Term > fence.Term {
		return errNotNow // another leads by now
	}
	m.logger.Warn("a member lost its data, and is sent this member's state", "to", fmt.Sprintf("%x", to), "index", c.Applied.Index)
	message := &raftpb.Message{
		Type: raftpb.MsgSnap.Enum(), From: new(m.identity.MemberID), To: new(to), Term: new(fence.Term), Context: nonce,
		Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(c.Applied.Index), Term: new(c.Applied.Term)}},
	}
	sent := make(chan error, 1)
	m.transport.SendSnapshot(message, c.Dir, func(err error) { sent <- err })
	return <-sent // before the files go; it ends soon after this member stops
}

// isLeader reports whether this member leads, as far as it knows.
func (m *Member) isLeader() bool {
	return m.peers.replica.Load() != nil && m.replica.Status().State == replica.Leader
}

// proposeFence returns the position of a fence for the member, which this member proposed and applied as the leader of
// that term.
func (m *Member) proposeFence(ctx context.Context, of uint64) (replica.Position, error) {
	if !m.isLeader() {
		return replica.Position{}, errNotNow
	}
	result, err := m.Propose(ctx, &command.Command{Fence: &command.Fence{Member: of}})
	if err != nil {
		return replica.Position{}, err
	}
	if s := m.replica.Status(); s.State != replica.Leader || s.Term != result.Term {
		return replica.Position{}, errNotNow
	}
	return replica.Position{Index: result.Index, Term: result.Term}, nil
}
