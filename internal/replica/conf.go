package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/confchange"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"github.com/trivet-kv/trivet/internal/kv"
)

// MemberChange is one change of the members.
type MemberChange struct {
	ID      uint64
	Remove  bool
	Learner bool // add, or keep, as a learner
}

// ChangeMembers proposes a change of the members; context comes back in StateMachine.CheckConf and ApplyConf. Nil means
// that it was handed to the leader: like any proposal it may be lost, or dropped because another change is under way;
// then nothing comes back, and the caller may propose it again. Errors: kv.ErrNoLeader, kv.ErrTooManyRequests, kv.ErrStopped.
func (r *Replica) ChangeMembers(ctx context.Context, changes []MemberChange, context []byte) error {
	cc := &raftpb.ConfChangeV2{Context: context}
	for _, c := range changes {
		t := raftpb.ConfChangeAddNode
		switch {
		case c.Remove:
			t = raftpb.ConfChangeRemoveNode
		case c.Learner:
			t = raftpb.ConfChangeAddLearnerNode
		}
		cc.Changes = append(cc.Changes, &raftpb.ConfChangeSingle{Type: t.Enum(), NodeId: new(c.ID)})
	}
	data, err := proto.Marshal(cc)
	if err != nil {
		return err
	}
	e := &raftpb.Entry{Type: raftpb.EntryConfChangeV2.Enum(), Data: data}
	var refusal error
	if err := r.onLoop(ctx, func(l *loop) { refusal = l.proposeConf(e) }); err != nil {
		return err
	}
	return refusal
}

func (l *loop) proposeConf(e *raftpb.Entry) error {
	l.observe()
	switch {
	case l.lead == 0:
		return kv.ErrNoLeader
	case l.state == raft.StateLeader:
		if err := l.proposeEntries([]*raftpb.Entry{e}); err != nil {
			return fmt.Errorf("%w: %w", kv.ErrTooManyRequests, err)
		}
		return nil
	}
	low := l.inflight.low()
	l.inflight.seq++
	l.c.Transport.Send([]*raftpb.Message{{
		Type: raftpb.MsgProp.Enum(), To: new(l.lead), From: new(l.c.ID), Term: new(l.term),
		Context: ticket{l.inflight.origin, l.inflight.seq, low}.encode(),
		Entries: []*raftpb.Entry{e},
	}})
	return nil
}

type appliedConf struct {
	confState []byte // nil: the change was refused
	err       error
}

// applyConfChange makes raft count with the members after an entry. Raft would panic on a change that does not fit; such
// a change is refused here, on every member alike since all are at the same conf state.
func (l *loop) applyConfChange(index uint64, cc *raftpb.ConfChangeV2) (a appliedConf) {
	if err := fits(l.confState, cc); err != nil {
		l.c.Logger.Warn("refused a change of members", "index", index, "err", err)
		return appliedConf{}
	}
	l.confState = l.rn.ApplyConfChange(cc)
	l.view.stale = true
	l.stand()
	for _, c := range cc.Changes {
		if c.GetType() == raftpb.ConfChangeRemoveNode && c.GetNodeId() == l.lead && l.lead != l.c.ID {
			// A leader that was removed steps down when it applies this too, and tells nobody.
			l.observe()
			l.campaign = campaign{}
			l.forgetLeader()
		}
	}
	a.confState, a.err = encodeConfState(l.confState)
	return a
}

func decodeConfChange(e *raftpb.Entry) (*raftpb.ConfChangeV2, error) {
	if e.GetType() == raftpb.EntryConfChange {
		var cc raftpb.ConfChange
		if err := proto.Unmarshal(e.Data, &cc); err != nil {
			return nil, err
		}
		return cc.AsV2(), nil
	}
	cc := &raftpb.ConfChangeV2{}
	return cc, proto.Unmarshal(e.Data, cc)
}

// fits tries a change on a copy.
func fits(cs *raftpb.ConfState, cc *raftpb.ConfChangeV2) error {
	changer := confchange.Changer{Tracker: tracker.MakeProgressTracker(1, 0), LastIndex: 1}
	cfg, progress, err := confchange.Restore(changer, cs)
	if err != nil {
		return err
	}
	changer.Tracker.Config, changer.Tracker.Progress = cfg, progress
	if cc.LeaveJoint() {
		_, _, err = changer.LeaveJoint()
	} else if autoLeave, ok := cc.EnterJoint(); ok {
		_, _, err = changer.EnterJoint(autoLeave, cc.Changes...)
	} else {
		_, _, err = changer.Simple(cc.Changes...)
	}
	return err
}

// EncodeConfState makes the conf state of a cluster that begins with these members.
func EncodeConfState(voters, learners []uint64) []byte {
	b, err := encodeConfState(&raftpb.ConfState{Voters: voters, Learners: learners})
	if err != nil {
		panic(fmt.Sprintf("replica: encode a conf state of %v and %v: %v", voters, learners, err))
	}
	return b
}

// DecodeConfState names the members of an encoded conf state.
func DecodeConfState(b []byte) (voters, learners []uint64, err error) {
	cs, err := decodeConfState(b)
	if err != nil {
		return nil, nil, err
	}
	return cs.Voters, cs.Learners, nil
}

// encodeConfState gives equal conf states equal bytes, on whatever way they came about.
func encodeConfState(cs *raftpb.ConfState) ([]byte, error) {
	cs = proto.CloneOf(cs)
	slices.Sort(cs.Voters)
	slices.Sort(cs.Learners)
	if !cs.GetAutoLeave() {
		cs.AutoLeave = nil
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(cs)
}

func sameConf(a, b *raftpb.ConfState) bool {
	x, errX := encodeConfState(a)
	y, errY := encodeConfState(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

func decodeConfState(b []byte) (*raftpb.ConfState, error) {
	cs := &raftpb.ConfState{}
	if err := proto.Unmarshal(b, cs); err != nil {
		return nil, fmt.Errorf("replica: decode the conf state: %w", err)
	}
	if len(cs.Voters) == 0 {
		return nil, errors.New("replica: a conf state without voters")
	}
	return cs, nil
}
