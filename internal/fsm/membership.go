package fsm

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/member"
)

// How a change of the members is applied. It stands in an entry of raft's own kind, with one command beside raft's part.
// CheckConf decides by the state alone whether it is done; only then does raft count with it; ApplyConf writes the row of
// the member and raft's conf state in one batch. A change that is refused moves the applied index only.
//
// Its proposer proposes it again until it is applied, since raft drops what comes while another change is under way. So
// the state remembers the last changes that it saw, done or refused, and passes over one that it has seen.

// maxSeen is how many changes are remembered. A proposer repeats one for seconds; so many changes take longer.
const maxSeen = 64

var (
	rowSeen   = engine.MetaName("confseen")   // origin and id of the last changes, 16 bytes each, the oldest first
	rowForced = engine.MetaName("confforced") // 8 bytes: changes up to this index are void
)

// CheckConf reports whether the change of members in e, which is the next entry, fits the state. Its Data is what the
// proposer gave to raft beside the change itself.
func (s *State) CheckConf(e command.Entry) (bool, error) {
	c, seen, _, err := s.readConf(e)
	if err != nil || c == nil || seen {
		return false, err
	}
	if void, err := s.forced(); err != nil || e.Index <= void {
		return false, err
	}
	return s.checkConf(c) == nil, nil
}

func (s *State) checkConf(c *command.Command) error {
	switch {
	case c.MemberAdd != nil:
		a := c.MemberAdd
		return s.Members.CheckAdd(member.Member{ID: a.ID, PeerURLs: a.PeerURLs, Learner: a.Learner}, a.MaxLearners)
	case c.MemberRemove != nil:
		return s.Members.CheckRemove(c.MemberRemove.ID)
	default:
		return s.Members.CheckPromote(c.MemberPromote.ID)
	}
}

// readConf returns the command in a change of members, nil if there is none that fits there; whether it was seen before;
// and the row of those that were, with it.
func (s *State) readConf(e command.Entry) (c *command.Command, seen bool, row []byte, err error) {
	row, _, err = s.Engine.Get(rowSeen)
	if err != nil {
		return nil, false, nil, err
	}
	row = slices.Clone(row)
	n := 0
	err = command.Batch(e.Data, func(origin uint64, encoded []byte) error {
		c = new(command.Command)
		if err := c.Decode(encoded); err != nil {
			return err
		}
		n++
		key := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, origin), c.ID)
		for at := 0; at+16 <= len(row); at += 16 {
			seen = seen || string(row[at:at+16]) == string(key)
		}
		row = append(row, key...)
		return nil
	})
	if err != nil {
		return nil, false, nil, fmt.Errorf("change of members in entry %d of term %d: %w", e.Index, e.Term, err)
	}
	if n != 1 || !c.Conf() {
		return nil, false, nil, nil
	}
	return c, seen, row[max(0, len(row)-16*maxSeen):], nil
}

// ApplyConf applies the change of members in e. ConfState is raft's after it, nil if raft was not to count with it.
func (s *State) ApplyConf(e command.Entry, confState []byte, waiters Waiters) (Outcome, error) {
	if e.Index != s.Applied.Index+1 {
		panic(fmt.Sprintf("fsm: configuration change %d after %d", e.Index, s.Applied.Index))
	}
	b := s.Engine.NewBatch()
	defer b.Close()
	a := s.newApplier(b, waiters)
	a.entry, a.conf = &e, confState != nil
	c, seen, row, err := s.readConf(e)
	if err != nil {
		return Outcome{}, err
	}
	if c != nil && !seen {
		if err := b.Set(rowSeen, row); err != nil {
			return Outcome{}, err
		}
		if err := command.Batch(e.Data, a.apply); err != nil {
			a.discard()
			return Outcome{}, fmt.Errorf("apply entry %d of term %d: %w", e.Index, e.Term, err)
		}
	}
	if err := a.commit(Position{Index: e.Index, Term: e.Term}, confState); err != nil {
		return Outcome{}, err
	}
	if confState != nil {
		s.ConfState = confState
	}
	return a.outcome, nil
}

// membership runs what concerns the members and the version that they agree on.
func (a *applier) membership(c *command.Command, r *command.Result) error {
	r.Revision = a.writer.Revision()
	switch {
	case c.Conf():
		return a.changeMembers(c, r)
	case c.MemberUpdate != nil:
		u := c.MemberUpdate
		refused, err := a.Members.Update(a.batch, u.ID, u.PeerURLs)
		r.Err = refused
		return err
	case c.ClusterVersion != nil:
		return a.Members.SetVersion(a.batch, c.ClusterVersion.Version)
	case c.Downgrade != nil:
		return a.Members.SetDowngrade(a.batch, member.Downgrade{Enabled: c.Downgrade.Enabled, Target: c.Downgrade.Target})
	}
	panic("fsm: a command with no request")
}

// changeMembers does what CheckConf agreed to, or says why it did not.
func (a *applier) changeMembers(c *command.Command, r *command.Result) error {
	if r.Err = a.checkConf(c); r.Err != nil {
		return nil
	}
	if !a.conf {
		r.Err = kv.ErrBadMemberChange // outside of raft's own kind of entry, void, or impossible for raft
		return nil
	}
	switch {
	case c.MemberAdd != nil:
		return a.Members.Set(a.batch, member.Member{ID: c.MemberAdd.ID, PeerURLs: c.MemberAdd.PeerURLs, Learner: c.MemberAdd.Learner})
	case c.MemberRemove != nil:
		return a.Members.Remove(a.batch, c.MemberRemove.ID)
	default:
		return a.Members.Promote(a.batch, c.MemberPromote.ID)
	}
}

func (s *State) forced() (uint64, error) {
	row, found, err := s.Engine.Get(rowForced)
	if err != nil || !found {
		return 0, err
	}
	n, err := engine.DecodeNumber(row)
	return uint64(n), err
}

// ForceAlone makes a new cluster out of this state: self is its only member, with a vote. Changes of members in the log up
// to entry last, which the others may have agreed on, are void. It is durable when it returns.
func (s *State) ForceAlone(self member.Member, confState []byte, last uint64) error {
	b := s.Engine.NewBatch()
	defer b.Close()
	if err := s.Members.ForceAlone(b, self); err != nil {
		return err
	}
	if err := b.Set(rowForced, engine.AppendNumber(nil, int64(last))); err != nil {
		return err
	}
	if err := writePosition(b, s.Applied, confState); err != nil {
		return err
	}
	if err := b.Commit(); err != nil {
		return err
	}
	s.Members.Publish()
	s.ConfState = confState
	return s.Engine.Flush()
}
