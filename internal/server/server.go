// Package server builds one member of a cluster: it opens the data directory, the state and the log, joins the network,
// starts the replica, and offers what clients' services stand on (rpc.Backend). It is the only package that sees all the
// others. Everything is built by Start in the order in which it is needed, and Stop takes it down in reverse.
//
// A Member serves no sockets of its own: package cli puts the client port in front of it, and package sim calls it
// directly.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trivet-kv/trivet/internal/compactor"
	"github.com/trivet-kv/trivet/internal/datadir"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/leader"
	"github.com/trivet-kv/trivet/internal/member"
	"github.com/trivet-kv/trivet/internal/raftlog"
	"github.com/trivet-kv/trivet/internal/replica"
	"github.com/trivet-kv/trivet/internal/watch"
)

// Member is one running member.
type Member struct {
	options  Options
	logger   *slog.Logger
	identity datadir.Identity

	dir       *datadir.Dir
	machine   *machine
	log       *raftlog.Log
	transport Transport
	replica   *replica.Replica
	peers     *peers
	waiters   *waiters
	deadlines *deadlines
	hub       *watch.Hub
	jobs      *leader.Jobs
	compactor *compactor.Driver

	leadership  leadership
	snapshots   atomic.Int32 // how many clients are being sent one
	authChanged broadcast
	room        *room
	usage       usage
	overQuota   chan struct{} // capacity 1: a command was refused
	othersNow   chan struct{} // capacity 1: the members changed
	sending     sync.Mutex    // held while a member that lost its data is sent the state
	hashing     chan struct{} // capacity 1: full while a hash of the whole store is made
	rebuilt     bool          // by this start
	removal     sync.Once     // this member learned that it was removed
	leaving     chan struct{} // closed then
	broken      chan error    // the first error after which the member cannot go on
	failed      chan error    // the same, once it was looked at

	stopOnce sync.Once
	life     context.Context // ends when the member stops
	end      context.CancelFunc
	running  sync.WaitGroup // the member's own goroutines
}

// Start builds the member and joins its cluster. It returns without waiting for a leader. An error says what is wrong and
// what to do; nothing is left running.
func Start(o Options) (*Member, error) {
	o.setDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	m := &Member{
		options: o, logger: o.Logger,
		waiters: newWaiters(o.Origin), deadlines: newDeadlines(o.requestTimeout()),
		broken: make(chan error, 1), failed: make(chan error, 1),
		overQuota: make(chan struct{}, 1), othersNow: make(chan struct{}, 1), hashing: make(chan struct{}, 1),
		leaving: make(chan struct{}),
	}
	m.peers = &peers{m: m, ended: make(map[uint64]bool), up: make(map[uint64]bool)}
	m.life, m.end = context.WithCancel(context.Background())
	m.room = &room{life: m.life, logger: m.logger, tell: o.Observer.DiskFull}
	undo := []func() error{}
	fail := func(err error) (*Member, error) {
		m.end()
		for _, f := range slices.Backward(undo) {
			err = errors.Join(err, f())
		}
		return nil, err
	}
	dir, err := datadir.Open(roomFS{o.FS, m.room}, o.DataDir)
	if err != nil {
		return fail(err)
	}
	m.dir = dir
	undo = append(undo, dir.Abandon, m.leaveNetwork)
	if err := dir.UseLog(o.LogDir); err != nil {
		return fail(err)
	}
	fresh := dir.Identity == nil
	if err := m.openDir(); err != nil {
		return fail(err)
	}
	if err := m.openData(); err != nil {
		return fail(err)
	}
	undo = append(undo, m.machine.close, m.log.Close)
	m.startListeners()
	undo = append(undo, m.stopListeners)
	if m.transport == nil {
		s := m.machine.state.Load()
		if err := m.joinNetwork(s.Members.All(), s.Members.RemovedIDs()); err != nil {
			return fail(err)
		}
	} else {
		m.membersChanged() // what it was joined with may be older
	}
	if o.InitialCorruptCheck && !fresh {
		if err := m.checkBeforeServing(); err != nil {
			return fail(err)
		}
	}
	if err := m.startReplica(); err != nil {
		return fail(err)
	}
	m.room.open()
	m.startJobs()
	return m, nil
}

// startJobs starts the member's own goroutines.
func (m *Member) startJobs() {
	o := &m.options
	m.running.Go(m.watchFailures)
	m.running.Go(m.keepMembers)
	if m.rebuilt || slices.Contains(m.Alarms(), m.ownCorrupt()) {
		m.running.Go(m.clearOwn)
	}
	if o.IntegrityInterval > 0 {
		m.running.Go(m.compareEffects)
	}
	m.running.Go(m.watchLeader)
	m.running.Go(m.publishSelf)
	if o.APIVersion != "" {
		m.running.Go(m.watchVersions)
	}
	if o.Promote {
		m.running.Go(m.askForVote)
	}
	m.running.Go(m.flushNowAndThen)
	m.sayQuota()
	m.running.Go(m.watchQuota)
	m.running.Go(m.giveSpaceBack)
	if o.Retention.Enabled() {
		m.running.Go(m.compactNowAndThen)
	}
	if o.CorruptCheckTime > 0 {
		m.running.Go(m.compareNowAndThen)
	}
	if o.CompactHashCheckTime > 0 {
		m.running.Go(m.compareCompactions)
	}
}

// openDir takes the data directory; a new one is founded.
func (m *Member) openDir() error {
	if m.dir.Identity == nil && m.options.Join != nil {
		return m.join()
	}
	if m.dir.Identity == nil {
		return m.found()
	}
	if err := m.checkIdentity(); err != nil {
		return err
	}
	m.identity = *m.dir.Identity
	if m.options.Answers != nil {
		return m.refuseOtherCluster()
	}
	return nil
}

// openState opens the state and everything that is told of its changes.
func (m *Member) openState() error {
	o := &m.options
	m.machine = &machine{
		fs: roomFS{o.FS, m.room}, dir: m.dir, logger: m.logger, waiters: m.waiters,
		engine: engine.Options{
			FS: roomFS{o.FS, m.room}, MemTableBytes: o.MemTableBytes, CacheBytes: o.CacheBytes, Logger: m.logger,
			OnFlush: m.flushed, OnError: m.stateFailed, OnJob: o.OnStateJob, Fatal: o.Fatal,
		},
	}
	return m.machine.open()
}

// stateFailed hears of background work of the engine that failed. What failed for want of room is tried again.
func (m *Member) stateFailed(err error) {
	if !raftlog.IsNoRoom(err) {
		m.fail(err)
	}
}

func (m *Member) flushed(applied uint64) {
	m.peers.flushed(applied)
	if f := m.options.Observer.Flushed; f != nil {
		f(applied)
	}
}

// startListeners makes what is told of each applied batch.
func (m *Member) startListeners() {
	m.hub = watch.New(watch.Options{
		History: m.Store(), Writing: m.waiters.any, Logger: m.logger, ProgressInterval: m.options.WatchProgress,
	})
	m.jobs = leader.New(leader.Options{
		Propose: m.Propose, Confirm: m.leads, Logger: m.logger, Extend: m.options.electionTimeout(),
	})
	m.compactor = compactor.Start(compactor.Options{
		Store: m.Store(), Logger: m.logger, OnStep: m.options.Observer.CompactStep, OnDone: m.options.Observer.Compacted,
	})
	m.machine.listeners = listeners{
		Events:    m.hub.Publish,
		Leases:    m.leasesChanged,
		Members:   m.membersChanged,
		Told:      m.leaveIfRemoved,
		Compacted: m.compactor.Done,
		Diverged:  m.diverged,
		Applied:   m.options.Observer.Applied,
		Tokens:    m.options.OnToken,
		Auth:      m.authChanged.tell,
		Replaced: func(s *fsm.State) {
			m.hub.Reset(s.Store)
			m.compactor.Reset(s.Store)
			m.membersChanged()
			m.leaveIfRemoved()
			m.authChanged.tell()
		},
	}
}

func (m *Member) stopListeners() error {
	m.compactor.Stop()
	m.hub.Close()
	return nil
}

func (m *Member) openLog() error {
	log, err := raftlog.Open(m.logOptions())
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	if err := m.dir.LogMade(); err != nil { // before the replica starts, so before anything is promised
		return errors.Join(err, log.Close())
	}
	m.log = log
	return nil
}

func (m *Member) logOptions() raftlog.Options {
	return raftlog.Options{
		FS: m.options.FS, Dir: m.dir.Log(), SegmentBytes: m.options.LogSegmentBytes, OnFull: m.room.wait,
		Logger: m.logger, OnSync: m.options.Observer.LogSync, OnWrite: m.options.Observer.LogWrite,
	}
}

func (m *Member) joinNetwork(members []member.Member, removed []uint64) error {
	others := make(map[uint64][]string)
	for _, p := range members {
		if p.ID != m.identity.MemberID {
			others[p.ID] = p.PeerURLs
		}
	}
	t, err := m.options.Transport(TransportConfig{
		ClusterID: m.identity.ClusterID, MemberID: m.identity.MemberID, Peers: others,
		FS: m.options.FS, Incoming: m.dir.Incoming(),
	})
	if err != nil {
		return err
	}
	m.transport = t
	for _, id := range removed {
		t.RemovePeer(id)
	}
	t.Serve(m.peers)
	return nil
}

func (m *Member) leaveNetwork() error {
	if m.transport == nil {
		return nil
	}
	return m.transport.Close()
}

func (m *Member) startReplica() error {
	s := m.machine.state.Load()
	r, err := replica.Start(replica.Config{
		ID: m.identity.MemberID, Origin: m.options.Origin,
		Log: replicaLog{m.log}, Machine: m.machine, Transport: m.transport,
		Applied: replica.Position(s.Applied), ConfState: s.ConfState,
		Tick: m.options.Tick, ElectionTicks: m.options.ElectionTicks, HeartbeatTicks: 1,
		CatchupEntries: m.options.CatchupEntries, SlowDisk: m.options.SlowDisk,
		Logger: m.logger, Observer: m.options.Observer.Replica,
	})
	if err != nil {
		return err
	}
	m.replica = r
	applied, err := s.Engine.DurableApplied()
	if err != nil {
		r.Stop()
		return err
	}
	m.peers.replica.Store(r)
	r.Durable(applied)
	return nil
}

// Failed gives the error after which this member cannot go on: its disk failed or is full, or its state cannot be changed
// any more. Its process should end at once, as in a crash: Stop would wait for the disk. An error that wraps ErrRebuild
// is different.
func (m *Member) Failed() <-chan error { return m.failed }

// watchFailures runs until the member stops.
func (m *Member) watchFailures() {
	var err error
	select {
	case <-m.life.Done():
		return
	case err = <-m.broken:
	case err = <-m.log.Failed():
	case err = <-m.replica.Failed():
	}
	if damaged(err) && !errors.Is(err, ErrRemoved) {
		err = m.distrust(err)
	}
	m.failed <- err // the only one
}

// distrust sees to it that the next start rebuilds this member, if others could: alone it has nobody to ask, and is left
// as it is.
func (m *Member) distrust(why error) error {
	if len(m.machine.state.Load().Members.All()) < 2 {
		return why
	}
	if err := m.dir.BeginRebuild(why.Error()); err != nil {
		return errors.Join(why, err)
	}
	return fmt.Errorf("%w: %w", ErrRebuild, why)
}

// fail reports the first failure; those after it say nothing new.
func (m *Member) fail(err error) {
	select {
	case m.broken <- err:
	default:
	}
}

// HandOver hands leadership over if this member has it, before it stops: as far as ctx allows, and for two election timeouts
// at most. The member goes on as a follower.
func (m *Member) HandOver(ctx context.Context) { m.replica.HandOver(ctx) }

// Stop ends the member: it hands leadership over if it (still, or again) has it, as HandOver does, stops taking part, and makes
// the state durable, which takes as long as the disk does. The services in front of it must have stopped before.
func (m *Member) Stop(ctx context.Context) error {
	var err error
	m.stopOnce.Do(func() {
		m.replica.StopGracefully(ctx)
		err = m.shutDown(true)
	})
	return err
}

// Abort ends a member whose data is not to be trusted: like Stop, but nothing is made durable.
func (m *Member) Abort(ctx context.Context) error {
	var err error
	m.stopOnce.Do(func() {
		m.raiseOwn(ctx)
		m.replica.StopGracefully(ctx)
		err = m.shutDown(false)
	})
	return err
}

// Kill ends the member as the death of its process would, without handing anything over or making anything durable. It
// is for simulation.
func (m *Member) Kill() {
	m.stopOnce.Do(func() {
		m.replica.Stop()
		_ = m.shutDown(false)
	})
}

var errStoppedFull = errors.New("the disk is full, so that the state was not written to it. Nothing is lost: the next start applies the end of the log again")

func (m *Member) shutDown(flush bool) error {
	var errs []error
	if flush && m.room.full() {
		flush, errs = false, append(errs, errStoppedFull) // a flush would wait for room
	}
	m.end()
	m.running.Wait()
	errs = append(errs, m.transport.Close(), m.log.Close(), m.stopListeners())
	if flush {
		errs = append(errs, m.machine.close())
	} else {
		errs = append(errs, m.machine.abandon())
	}
	return errors.Join(append(errs, m.dir.Close())...)
}

// flushEvery bounds how much of the log a start may have to apply again: what a full memtable holds, or what came within
// this time.
const flushEvery = time.Minute

// flushNowAndThen runs until the member stops.
func (m *Member) flushNowAndThen() {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	var flushed uint64
	for {
		select {
		case <-m.life.Done():
			return
		case <-tick.C:
		}
		applied := m.replica.Status().Applied
		if applied == flushed || m.room.full() { // a flush would not return before there is room
			continue
		}
		if err := m.machine.state.Load().Engine.Flush(); err != nil {
			m.logger.Warn("making the state durable failed; it will be tried again", "error", err)
			continue
		}
		flushed = applied
	}
}

// publishSelf records this member's name and client URLs in the cluster, once a leader takes it.
func (m *Member) publishSelf() {
	ctx := m.life
	for {
		self, ok := m.machine.state.Load().Members.Get(m.identity.MemberID)
		if ok && self.Name == m.options.Name && slices.Equal(self.ClientURLs, m.options.ClientURLs) {
			return
		}
		if _, err := m.Propose(ctx, m.description()); err != nil && ctx.Err() == nil {
			m.logger.Warn("publishing the member's client URLs failed; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(m.options.Tick):
		}
	}
}
