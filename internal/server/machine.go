package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/datadir"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/mvcc"
	"github.com/trivet-kv/trivet/internal/replica"
)

// machine is the state machine as the replica drives it: it hands entries to the state, and tells everybody who must
// know what came of them. Apply, ApplyConf and Install run on the replica's apply goroutine, one at a time.
type machine struct {
	fs      vfs.FS
	dir     *datadir.Dir
	engine  engine.Options // but for Dir
	store   mvcc.Options
	logger  *slog.Logger
	waiters *waiters

	// told after each batch, in this order
	listeners listeners

	state       atomic.Pointer[fsm.State]
	checkpoints atomic.Uint64  // made so far, for the names of their folders
	closing     sync.WaitGroup // states that were replaced and are being closed
}

// listeners are told what was applied, on the apply goroutine and after the batch was committed. None may block.
type listeners struct {
	Events    func(revision int64, events []kv.Event)
	Leases    func([]fsm.LeaseChange)
	Members   func() // they are others now, or something that is known of them
	Told      func() // after Members, when everybody has what came of the batch
	Compacted func(revision int64) <-chan struct{}
	// Tokens is told of a token before whoever asked for it; it may be nil. Auth is told that users and roles changed.
	Tokens func(fsm.Token)
	Auth   func()
	// Diverged is told that this state is not that of the majority.
	Diverged func(fsm.Divergence)
	// Applied is told last, for metrics. It may be nil, and must not keep the outcome.
	Applied func(out *fsm.Outcome, took time.Duration)
	// Replaced is called when a checkpoint of another member took the place of the state.
	Replaced func(s *fsm.State)
}

func (m *machine) open() error {
	dir, err := m.dir.State()
	if err != nil {
		return err
	}
	s, err := m.openState(dir)
	if err != nil {
		return err
	}
	m.state.Store(s)
	return nil
}

func (m *machine) openState(dir string) (*fsm.State, error) {
	o := m.engine
	o.Dir, o.MustExist = dir, true
	e, err := engine.Open(o)
	if err != nil {
		return nil, explainState(err)
	}
	s, err := fsm.Open(e, m.store)
	if err != nil {
		e.Close()
		return nil, explainState(fmt.Errorf("read the state in %s: %w", dir, err))
	}
	return s, nil
}

// explainState adds the way out if the state is damaged.
func explainState(err error) error {
	if !engine.IsDamage(err) {
		return err
	}
	return fmt.Errorf("%w; %w: keep a copy of the data directory, check the disk, then remove the member from the cluster and add it again with an empty data directory (the other members hold everything), or restore a backup",
		err, errDamagedState)
}

var errDamagedState = errors.New("the state is damaged")

// Apply implements replica.StateMachine.
func (m *machine) Apply(entries []command.Entry) error {
	start := time.Now()
	out, err := m.state.Load().Apply(entries, m.waiters)
	if err != nil {
		return err
	}
	m.tell(&out, time.Since(start))
	return nil
}

// tell tells everybody what came of a batch.
func (m *machine) tell(out *fsm.Outcome, took time.Duration) {
	var compacted <-chan struct{}
	if out.Compacted > 0 {
		compacted = m.listeners.Compacted(out.Compacted)
	}
	if out.MembersChanged {
		m.listeners.Members()
	}
	if len(out.Leases) > 0 {
		m.listeners.Leases(out.Leases)
	}
	if m.listeners.Tokens != nil {
		for _, t := range out.Tokens {
			m.listeners.Tokens(t)
		}
	}
	// Results go first: who waits for one is served while the watch hub sorts the events.
	for i := range out.Results {
		r := &out.Results[i]
		r.Result.Compacted = compacted
		m.waiters.done(r.ID, r.Result)
	}
	if out.MembersChanged {
		m.listeners.Told()
	}
	if out.AuthChanged {
		m.listeners.Auth()
	}
	if len(out.Events) > 0 {
		m.listeners.Events(out.Revision, out.Events)
	}
	if out.Diverged != nil {
		m.listeners.Diverged(*out.Diverged)
	}
	if m.listeners.Applied != nil {
		m.listeners.Applied(out, took)
	}
}

// ApplyConf implements replica.StateMachine.
func (m *machine) ApplyConf(e command.Entry, confState []byte) error {
	start := time.Now()
	out, err := m.state.Load().ApplyConf(e, confState, m.waiters)
	if err != nil {
		return err
	}
	m.tell(&out, time.Since(start))
	return nil
}

// CheckConf implements replica.StateMachine.
func (m *machine) CheckConf(e command.Entry) (bool, error) { return m.state.Load().CheckConf(e) }

// Checkpoint implements replica.StateMachine.
func (m *machine) Checkpoint(context.Context) (replica.Checkpoint, error) {
	dir := m.fs.PathJoin(m.dir.Checkpoints(), strconv.FormatUint(m.checkpoints.Add(1), 10))
	remove := func() {
		if err := m.fs.RemoveAll(dir); err != nil {
			m.logger.Warn("a checkpoint could not be removed; the next start will", "dir", dir, "error", err)
		}
	}
	if err := m.state.Load().Engine.Checkpoint(dir); err != nil {
		remove()
		return replica.Checkpoint{}, err
	}
	p, confState, err := m.positionOf(dir)
	if err != nil {
		remove()
		return replica.Checkpoint{}, err
	}
	return replica.Checkpoint{
		Dir: dir, Applied: replica.Position(p), ConfState: confState, Release: remove,
	}, nil
}

// positionOf reads from a checkpoint how far it reaches: writers went on while it was made.
func (m *machine) positionOf(dir string) (fsm.Position, []byte, error) {
	e, err := engine.Open(engine.Options{FS: m.fs, Dir: dir, ReadOnly: true, Logger: m.logger})
	if err != nil {
		return fsm.Position{}, nil, err
	}
	defer e.Close()
	return fsm.ReadPosition(e)
}

// Install implements replica.StateMachine. The new state is made current on disk first; a crash before that leaves the
// old one, a crash after it finds the new one and a log that must begin behind it, which the replica sees to at start.
func (m *machine) Install(_ context.Context, s replica.Snapshot) error {
	p, _, err := m.positionOf(s.Dir)
	if err != nil {
		return fmt.Errorf("the checkpoint received in %s cannot be read: %w", s.Dir, err)
	}
	if replica.Position(p) != s.Applied {
		return fmt.Errorf("the checkpoint received in %s is at %+v and was announced as %+v", s.Dir, p, s.Applied)
	}
	dir, err := m.dir.Replace(s.Dir)
	if err != nil {
		return fmt.Errorf("put the received state in place: %w", err)
	}
	next, err := m.openState(dir)
	if err != nil {
		return err
	}
	old := m.state.Swap(next)
	m.listeners.Replaced(next)
	m.closing.Go(func() { m.retire(old.Engine) })
	return nil
}

// retire closes a state that was replaced and removes its files. Close waits for the reads that began on it, and they may
// be slow.
func (m *machine) retire(old *engine.Engine) {
	if err := old.Close(); err != nil {
		m.logger.Warn("closing the state that was replaced", "error", err)
	}
	if err := m.fs.RemoveAll(old.Dir()); err != nil {
		m.logger.Warn("the state that was replaced could not be removed; the next start will", "error", err)
	}
}

// close makes the state durable, so that the next start has nothing to replay, and closes it.
func (m *machine) close() error {
	m.closing.Wait()
	e := m.state.Load().Engine
	if err := e.Flush(); err != nil {
		e.Close()
		return err
	}
	return e.Close()
}

// abandon closes the state as it is, as a crash would leave it.
func (m *machine) abandon() error {
	m.closing.Wait()
	return m.state.Load().Engine.Close()
}
