package replica

import (
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// How a member that is too far behind for the log gets the state.
//
// On the leader raft asks its storage for a snapshot. The first time there is none yet: the state machine is asked for a
// checkpoint, by a goroutine of its own, and raft asks again at the next heartbeat. Then raft emits a MsgSnap, and the
// transport streams the checkpoint's files before it. Until the follower has them the log is not cut behind the
// checkpoint, so that it can go on from there. Raft is told how it ended.
//
// On the follower the transport stages the files durably and then delivers the MsgSnap. Raft either ignores it, and the
// files are discarded, or asks for it to be persisted. Then, in this order:
//
//	1. the applier finishes the entries it has, and installs the checkpoint (atomic and durable: StateMachine.Install);
//	2. the log is reset to begin behind the snapshot's position, with the hard state of the same MsgStorageAppend;
//	3. when that is durable, raft and the leader get their responses.
//
// Appends that raft asks for in the meantime wait behind 2. A crash before the end of 1 leaves the old state and the old
// log, as if the snapshot had never come. A crash between 1 and 2 leaves a state that the log does not hold: reconcile
// finishes step 2 at the next start. After 2 all is as it should be.

// stagedSnapshot is a received MsgSnap with its files.
type stagedSnapshot struct {
	m       *raftpb.Message
	dir     string
	discard func()
}

// positionOf is the position of the snapshot in a message, zero if it has none.
func positionOf(m *raftpb.Message) Position {
	meta := m.GetSnapshot().GetMetadata()
	return Position{meta.GetIndex(), meta.GetTerm()}
}

// takeSnapshot offers a received snapshot to raft.
func (l *loop) takeSnapshot(s stagedSnapshot) {
	p := positionOf(s.m)
	if _, twice := l.staged[p]; twice {
		s.discard()
		return
	}
	l.staged[p] = s
	_ = l.rn.Step(s.m) // stale or from a stranger: raft's to ignore, and discardStaged's to clean up
}

// discardStaged removes what raft has ignored: what it wanted, it has asked for by now. What it asked for while another
// snapshot is being installed waits in held.
func (l *loop) discardStaged() {
	for p, s := range l.staged {
		if slices.ContainsFunc(l.held, func(m *raftpb.Message) bool { return positionOf(m) == p }) {
			continue
		}
		l.c.Logger.Info("discarded a snapshot that is of no use any more", "index", p.Index, "term", p.Term)
		s.discard()
		delete(l.staged, p)
	}
}

// beginInstall hands a snapshot to the applier.
func (l *loop) beginInstall(m *raftpb.Message) {
	p := positionOf(m)
	s, ok := l.staged[p]
	if !ok {
		l.fail(fmt.Errorf("raft wants the snapshot at entry %d of term %d, whose files were not received", p.Index, p.Term))
		return
	}
	delete(l.staged, p)
	l.confState = m.GetSnapshot().GetMetadata().GetConfState()
	l.view.stale = true
	l.stand()
	l.forgetUnknown(p)
	l.installing = true
	l.apply.push(applyItem{m: m, staged: &s})
}

// installed goes on with step 2, and with the appends that waited for it.
func (l *loop) installed(m *raftpb.Message) {
	p := positionOf(m)
	l.installing = false
	l.cut, l.durable = p.Index, max(l.durable, p.Index)
	l.write(m, &p)
	held := l.held
	l.held = nil
	for _, m := range held {
		l.persist(m) // may begin the next installation, and hold the rest again
	}
}

// sharedCheckpoint is a checkpoint and how many followers are being sent it.
type sharedCheckpoint struct {
	Checkpoint
	confState *raftpb.ConfState
	madeAt    uint64 // tick
	users     int
}

// A checkpoint is given to further followers for so long, and kept for so long when none takes it. The time is short
// because the log is not cut behind it meanwhile.
const checkpointLife = 30 * time.Second

// checkpointRetry is the time between attempts to make one that failed.
const checkpointRetry = 5 * time.Second

func (l *loop) inTicks(d time.Duration) uint64 { return uint64((d + l.c.Tick - 1) / l.c.Tick) }

// currentCheckpoint is the one to send now, or nil.
func (l *loop) currentCheckpoint() *sharedCheckpoint {
	c := l.checkpoint
	if c == nil || l.ticks-c.madeAt >= l.inTicks(checkpointLife) {
		return nil
	}
	if first, err := l.c.Log.FirstIndex(); err != nil || c.Applied.Index+1 < first {
		return nil // made while the log was cut: the follower could not go on from it
	}
	if !sameConf(c.confState, l.confState) {
		return nil // made before a change of the members: one that is new would not find itself in it, and ignore it
	}
	return c
}

// makeCheckpoint has a checkpoint made, unless one is being made or still in use.
func (l *loop) makeCheckpoint() {
	if l.making || l.checkpoint != nil && l.checkpoint.users > 0 || l.madeAt != 0 && l.ticks-l.madeAt < l.inTicks(checkpointRetry) {
		return
	}
	l.releaseCheckpoint()
	l.making = true
	l.wg.Go(func() { // ends with the checkpoint, or soon after ctx
		start := time.Now()
		c, err := l.c.Machine.Checkpoint(l.ctx)
		took := time.Since(start)
		l.c.Observer.SnapshotMade(took, err)
		if !l.in.made(madeCheckpoint{c, err, took}) && err == nil && c.Release != nil {
			c.Release() // the loop has ended
		}
	})
}

// madeCheckpoint is what became of an attempt to make one.
type madeCheckpoint struct {
	Checkpoint
	err  error
	took time.Duration
}

func (m *madeCheckpoint) release() {
	if m.err == nil && m.Release != nil {
		m.Release()
	}
}

func (l *loop) checkpointMade(m madeCheckpoint) {
	l.making, l.madeAt = false, l.ticks
	if m.err != nil {
		l.c.Logger.Warn("could not make a checkpoint for a follower", "err", m.err)
		return
	}
	confState, err := decodeConfState(m.ConfState)
	if err != nil {
		l.c.Logger.Warn("could not make a checkpoint for a follower", "err", err)
		m.release()
		return
	}
	l.madeAt = 0
	l.checkpoint = &sharedCheckpoint{Checkpoint: m.Checkpoint, confState: confState, madeAt: l.ticks}
	l.c.Logger.Info("made a checkpoint for a follower", "index", m.Applied.Index, "took", m.took)
}

// expireCheckpoint lets go of a checkpoint that nobody uses.
func (l *loop) expireCheckpoint() {
	c := l.checkpoint
	if c != nil && c.users == 0 && (l.ticks-c.madeAt >= l.inTicks(checkpointLife) || l.state != raft.StateLeader) {
		l.releaseCheckpoint()
	}
}

func (l *loop) releaseCheckpoint() {
	if c := l.checkpoint; c != nil {
		l.checkpoint = nil
		if c.Release != nil {
			c.Release()
		}
	}
}

// sendSnapshot has the transport stream the checkpoint that raft was named in Snapshot.
func (l *loop) sendSnapshot(m *raftpb.Message) {
	c, to := l.checkpoint, m.GetTo()
	if c == nil || c.Applied.Index != m.GetSnapshot().GetMetadata().GetIndex() {
		l.rn.ReportSnapshot(to, raft.SnapshotFailure)
		return
	}
	c.users++
	start := time.Now()
	l.c.Transport.SendSnapshot(m, c.Dir, func(err error) {
		l.c.Observer.SnapshotSent(to, time.Since(start), err)
		l.in.control(func(l *loop) {
			c.users--
			status := raft.SnapshotFinish
			if err != nil {
				l.c.Logger.Warn("could not send a snapshot", "to", hex(to), "index", c.Applied.Index, "err", err)
				status = raft.SnapshotFailure
			}
			l.rn.ReportSnapshot(to, status)
		})
	})
}
