package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/member"
	"github.com/trivet-kv/trivet/internal/replica"
)

// AddMember makes a new member known, under the id that etcd would give it, and returns it.
func (m *Member) AddMember(ctx context.Context, peerURLs []string, learner bool) (uint64, error) {
	if err := m.mayAdd(learner); err != nil {
		return 0, err
	}
	id := member.AddedID(peerURLs, "", time.Now().Unix()) // etcd leaves the token out here
	return id, m.changeMembers(ctx,
		&command.Command{MemberAdd: &command.MemberAdd{ID: id, PeerURLs: peerURLs, Learner: learner, MaxLearners: m.options.MaxLearners}},
		replica.MemberChange{ID: id, Learner: learner})
}

// RemoveMember removes a member for good.
func (m *Member) RemoveMember(ctx context.Context, id uint64) error {
	if err := m.mayRemove(id); err != nil {
		return err
	}
	return m.changeMembers(ctx, &command.Command{MemberRemove: &command.MemberRemove{ID: id}}, replica.MemberChange{ID: id, Remove: true})
}

// PromoteMember gives a learner a vote, if the leader finds that it has caught up.
func (m *Member) PromoteMember(ctx context.Context, id uint64) error {
	if err := m.mayPromote(ctx, id); err != nil {
		return err
	}
	return m.changeMembers(ctx, &command.Command{MemberPromote: &command.MemberPromote{ID: id}}, replica.MemberChange{ID: id})
}

// UpdateMember changes where the others reach a member.
func (m *Member) UpdateMember(ctx context.Context, id uint64, peerURLs []string) error {
	r, err := m.Propose(ctx, &command.Command{MemberUpdate: &command.MemberUpdate{ID: id, PeerURLs: peerURLs}})
	if err != nil {
		return err
	}
	return r.Err
}

// changeMembers proposes a change of the members until it was applied here: raft drops one that comes while another is
// under way. The state passes over what it has seen.
func (m *Member) changeMembers(ctx context.Context, c *command.Command, change replica.MemberChange) error {
	start := time.Now()
	c.Time = start.UnixNano()
	var result <-chan command.Result
	c.ID, result = m.waiters.add()
	defer m.waiters.drop(c.ID)
	data := command.AppendBatch(nil, m.options.Origin, [][]byte{c.Append(nil)})
	ctx, cancel := context.WithTimeoutCause(ctx, m.options.requestTimeout(), kv.ErrTimeout)
	defer cancel()
	for wait := m.options.Tick; ; wait = min(2*wait, m.options.electionTimeout()) {
		changed := m.replica.LeaderChanged()
		err := m.replica.ChangeMembers(ctx, []replica.MemberChange{change}, data)
		if err != nil && !errors.Is(err, kv.ErrNoLeader) && !errors.Is(err, kv.ErrTooManyRequests) && ctx.Err() == nil {
			return err
		}
		select {
		case r := <-result:
			return r.Err
		case <-changed:
		case <-time.After(wait):
		case <-ctx.Done():
			return m.why(ctx, start, ctx.Err(), context.DeadlineExceeded)
		case <-m.replica.Left():
			if r, ok := came(result); ok {
				return r.Err
			}
			if c.MemberRemove != nil && c.MemberRemove.ID == m.identity.MemberID && m.isLeaving() {
				return nil // it was the others that told this member
			}
			return kv.ErrStopped
		}
	}
}

// voters are the members with a vote, but for one; started is how many of them have ever run.
func (m *Member) voters(but uint64) (voters []member.Member, started int) {
	for _, one := range m.machine.state.Load().Members.All() {
		if one.Learner || one.ID == but {
			continue
		}
		voters = append(voters, one)
		if one.Started() {
			started++
		}
	}
	return voters, started
}

// active is how many of the members are connected with this one, itself among them.
func (m *Member) active(members []member.Member) (n int) {
	for _, one := range members {
		if one.ID == m.identity.MemberID || m.peers.connected(one.ID) {
			n++
		}
	}
	return n
}

// mayAdd refuses a member whose coming would leave the cluster without a majority that runs (E#21667), if the member is
// strict. The new one counts as one that does not run.
func (m *Member) mayAdd(learner bool) error {
	if !m.options.StrictReconfig {
		return nil
	}
	voters, started := m.voters(0)
	if n := len(voters) + 1; !learner && started < n/2+1 && !(started == 1 && n == 2) {
		return kv.ErrNotEnoughStarted
	}
	if len(voters) > 1 && m.active(voters) < (len(voters)+1)/2+1 {
		return kv.ErrUnhealthy
	}
	return nil
}

// mayRemove refuses to remove a voter if too few of those that stay run, if the member is strict.
func (m *Member) mayRemove(id uint64) error {
	if one, ok := m.machine.state.Load().Members.Get(id); !m.options.StrictReconfig || ok && one.Learner {
		return nil
	}
	rest, started := m.voters(id)
	if started < len(rest)/2+1 {
		return kv.ErrNotEnoughStarted
	}
	if id != m.identity.MemberID && !m.peers.connected(id) {
		return nil // nobody counts on it
	}
	voters, _ := m.voters(0)
	if m.active(voters)-1 < 1+(len(voters)-1)/2 {
		return kv.ErrUnhealthy
	}
	return nil
}

// readyAnswers are what a leader says of a learner that is to get a vote.
var readyAnswers = []error{nil, kv.ErrMemberNotFound, kv.ErrLearnerNotReady, kv.ErrNotLeader}

// mayPromote asks the leader whether the learner has caught up, and refuses if too few of the voters that there will be
// have ever run.
func (m *Member) mayPromote(ctx context.Context, id uint64) error {
	if err := m.askReady(ctx, id); err != nil {
		return err
	}
	if voters, started := m.voters(id); m.options.StrictReconfig && started+1 < (len(voters)+1)/2+1 {
		return kv.ErrNotEnoughStarted
	}
	return nil
}

// askReady puts the question to whoever leads until a leader answers it. That the learner is not ready must be the answer for
// half an election timeout: the leader's picture of the others is up to a tick old, and raft forgets at each check of the
// majority whom it has heard of, until the next heartbeat.
func (m *Member) askReady(ctx context.Context, id uint64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, m.options.requestTimeout(), kv.ErrTimeout)
	defer cancel()
	var behind time.Time // since when the learner is said not to be ready
	for {
		changed := m.replica.LeaderChanged()
		answer := kv.ErrNotLeader
		switch leader := m.replica.Status().Leader; leader {
		case 0:
		case m.identity.MemberID:
			answer = readyAnswers[m.learnerReady(id)]
		default:
			once, cancel := context.WithTimeout(ctx, m.options.electionTimeout())
			b, err := m.transport.Call(once, leader, callLearnerReady, binary.BigEndian.AppendUint64(nil, id))
			cancel()
			if err == nil && len(b) == 1 && int(b[0]) < len(readyAnswers) {
				answer = readyAnswers[b[0]]
			}
		}
		if answer == kv.ErrLearnerNotReady && behind.IsZero() {
			behind = time.Now()
		}
		again := answer == kv.ErrNotLeader || answer == kv.ErrLearnerNotReady && time.Since(behind) < m.options.electionTimeout()/2
		if !again {
			return answer
		}
		select {
		case <-changed:
		case <-time.After(m.options.Tick):
		case <-ctx.Done():
			if context.Cause(ctx) == kv.ErrTimeout {
				return kv.ErrTimeout
			}
			return ctx.Err()
		case <-m.replica.Left():
			return kv.ErrStopped
		}
	}
}

// readyWithin is how many entries a learner may be behind its leader and count as caught up.
const readyWithin = 1000

// learnerReady answers as the leader, with an index into readyAnswers. A voter counts as ready; that it is no learner is
// found when the change is applied.
func (m *Member) learnerReady(id uint64) byte {
	s := m.replica.Status()
	if s.Leader != m.identity.MemberID {
		return 3
	}
	if id == m.identity.MemberID {
		return 0
	}
	for _, p := range s.Progress {
		if p.ID != id {
			continue
		}
		// etcd's rule, nine tenths of the log, says little of a long one.
		if !p.Learner || p.Active && p.State == "StateReplicate" && p.Match*10 >= s.LastIndex*9 && p.Match+readyWithin >= s.LastIndex {
			return 0
		}
		return 2
	}
	if slices.Contains(s.Learners, id) || slices.Contains(s.Voters, id) {
		return 2 // so new that the picture of progress does not have it
	}
	return 1
}

// askForVote runs until this member has a vote or stops.
func (m *Member) askForVote() {
	for {
		self, known := m.machine.state.Load().Members.Get(m.identity.MemberID)
		if known && !self.Learner && m.replica.Status().Applied > 0 {
			return
		}
		err := m.PromoteMember(m.life, m.identity.MemberID)
		if err == nil {
			m.logger.Info("this member has caught up, and has a vote now")
			return
		}
		switch {
		case m.life.Err() != nil, errors.Is(err, kv.ErrLearnerNotReady), errors.Is(err, kv.ErrTimeout):
		case errors.Is(err, kv.ErrMemberNotLearner): // it has its vote, and has yet to apply that again
		default:
			m.logger.Warn("this member asked for its vote and was refused; it asks again", "error", err)
		}
		select {
		case <-m.life.Done():
			return
		case <-time.After(m.options.electionTimeout() / 2):
		}
	}
}

// ErrRemoved is why a member that was removed from its cluster stops.
var ErrRemoved = errors.New("the member has been permanently removed from the cluster: its data directory is of no use any " +
	"more and must be removed; to bring the machine back, add it as a new member with an empty data directory")

// removalDelay leaves time for answers, and for the others to hear of the removal from this member if it leads.
const removalDelay = time.Second

// Counted are the members that raft counts with, which must be those of the table. It is for simulation.
func (m *Member) Counted() (voters, learners []uint64) {
	s := m.replica.Status()
	return slices.Clone(s.Voters), slices.Clone(s.Learners)
}

// membersChanged runs on the apply goroutine after the members changed: it makes the network as the table says.
func (m *Member) membersChanged() {
	members := m.machine.state.Load().Members
	if m.transport != nil {
		for _, one := range members.All() {
			m.transport.SetPeer(one.ID, one.PeerURLs)
		}
		for _, id := range members.RemovedIDs() {
			if id != m.identity.MemberID {
				m.transport.RemovePeer(id)
			}
		}
	}
	select {
	case m.othersNow <- struct{}{}:
	default:
	}
	if err := tooOld(m.options.APIVersion, members.Version()); err != nil {
		m.fail(err)
	}
}

// leaveIfRemoved runs on the apply goroutine after membersChanged, and after everybody has what came of the entries so far.
func (m *Member) leaveIfRemoved() {
	if m.machine.state.Load().Members.Removed(m.identity.MemberID) {
		m.removedBy("its own log says so")
	}
}

// Leaving is closed when this member has learned that it was removed. It answers nothing any more that needs the others, and Failed
// will tell ErrRemoved a moment later: clients should go elsewhere.
func (m *Member) Leaving() <-chan struct{} { return m.leaving }

func (m *Member) isLeaving() bool {
	select {
	case <-m.leaving:
		return true
	default:
		return false
	}
}

// removedBy ends this member a moment later.
func (m *Member) removedBy(how string) {
	m.removal.Do(func() {
		close(m.leaving)
		if r := m.peers.replica.Load(); r != nil {
			r.Leave()
		}
		m.logger.Error("this member has been removed from the cluster and stops", "member", fmt.Sprintf("%x", m.identity.MemberID), "known-because", how)
		time.AfterFunc(removalDelay, func() { m.fail(ErrRemoved) })
	})
}

// checkMembership refuses to start a member that knows that it was removed, a binary that is too old, and a state whose members are not those that
// raft counts with.
func (m *Member) checkMembership() error {
	s := m.machine.state.Load()
	if s.Members.Removed(m.identity.MemberID) {
		return fmt.Errorf("member %x, %s: %w", m.identity.MemberID, m.options.DataDir, ErrRemoved)
	}
	if err := tooOld(m.options.APIVersion, s.Members.Version()); err != nil {
		return err
	}
	if s.Applied.Index == 0 {
		return nil // as others told it; a checkpoint will replace it
	}
	voters, learners, err := replica.DecodeConfState(s.ConfState)
	if err != nil {
		return err
	}
	for _, one := range s.Members.All() {
		if !slices.Contains(voters, one.ID) && !one.Learner || !slices.Contains(learners, one.ID) && one.Learner {
			return fmt.Errorf("%w: member %x (learner %t) is in the table of members, and raft counts with the voters %x and the learners %x; remove this member from the cluster and add it again with an empty data directory",
				errDamagedState, one.ID, one.Learner, voters, learners)
		}
	}
	if n := len(voters) + len(learners); n != len(s.Members.All()) {
		return fmt.Errorf("%w: the table has %d members, and raft counts with %d; remove this member from the cluster and add it again with an empty data directory",
			errDamagedState, len(s.Members.All()), n)
	}
	return nil
}
