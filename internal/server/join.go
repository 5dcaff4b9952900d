package server

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/trivet-kv/trivet/internal/datadir"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/member"
	"github.com/trivet-kv/trivet/internal/replica"
)

// Joined is a running cluster, as a member that joins it must know it.
type Joined struct {
	ClusterID uint64          `json:"cluster_id"`
	MemberID  uint64          `json:"member_id"` // of who joins; of who answers, in an answer to CallMembers
	Members   []member.Member `json:"members"`
	Version   string          `json:"version"` // the cluster's; may be empty
}

// JoinRequest is what a member without data asks any member of the cluster that it wants to join.
type JoinRequest struct {
	Name     string   `json:"name"`
	PeerURLs []string `json:"peer_urls"`
	Version  string   `json:"version,omitempty"` // of its binary's API
}

// joinAnswer is the answer. Later tells that the same question may be answered otherwise soon.
type joinAnswer struct {
	Joined
	Error string `json:"error,omitempty"`
	Later bool   `json:"later,omitempty"`
}

// CallMembers is the call that a stranger may make of a member to learn who is in its cluster, and CallJoin the one by which
// it asks to be let in.
const (
	CallMembers = callMembers
	CallJoin    = callJoin
)

// ErrTryLater is wrapped when a request to join was refused for now.
var ErrTryLater = errors.New("the cluster cannot take another member right now")

// DecodeJoined reads the answer to either call.
func DecodeJoined(b []byte) (Joined, error) {
	var a joinAnswer
	if err := json.Unmarshal(b, &a); err != nil {
		return Joined{}, fmt.Errorf("read the answer of a member: %w", err)
	}
	switch {
	case a.Later:
		return Joined{}, fmt.Errorf("%w: %s", ErrTryLater, a.Error)
	case a.Error != "":
		return Joined{}, errors.New(a.Error)
	}
	return a.Joined, nil
}

// join makes this member one of a cluster that runs. What it knows at first is what the cluster told; its state comes as a
// checkpoint.
func (m *Member) join() error {
	joined, err := m.options.Join(m.life)
	if err != nil {
		return err
	}
	if err := tooOld(m.options.APIVersion, joined.Version); err != nil {
		return err
	}
	i := slices.IndexFunc(joined.Members, func(one member.Member) bool { return one.ID == joined.MemberID })
	if i < 0 {
		return fmt.Errorf("the cluster %x does not know this member (%x): add it first", joined.ClusterID, joined.MemberID)
	}
	self := joined.Members[i]
	m.identity = datadir.Identity{
		ClusterID: joined.ClusterID, MemberID: self.ID, Name: m.options.Name, Token: m.options.Token, PeerURLs: self.PeerURLs,
	}
	if err := m.joinNetwork(joined.Members, nil); err != nil {
		return err
	}
	if err := m.refuseIfKnown(joined.Members); err != nil {
		return err
	}
	// Raft is told of itself only what keeps it from voting for itself: a voter finds itself in the checkpoint.
	var voters, learners []uint64
	for _, one := range joined.Members {
		switch {
		case one.Learner:
			learners = append(learners, one.ID)
		case one.ID != self.ID:
			voters = append(voters, one.ID)
		}
	}
	if len(voters) == 0 {
		return fmt.Errorf("the cluster %x has no voting member beside this one; nobody could bring it up", joined.ClusterID)
	}
	return m.dir.Create(m.identity, func(stateDir string) error {
		e, err := engine.Open(engine.Options{FS: m.options.FS, Dir: stateDir, Logger: m.logger, Fatal: m.options.Fatal})
		if err != nil {
			return err
		}
		err = fsm.BootstrapJoin(e, joined.Members, replica.EncodeConfState(voters, learners))
		return errors.Join(err, e.Close())
	})
}

// refuseOtherCluster refuses to start with the data of one cluster if it is another one that answers where this member is to
// join. Who does not answer within a moment says nothing, and one member of its own cluster is enough.
func (m *Member) refuseOtherCluster() error {
	ctx, cancel := context.WithTimeout(m.life, askPeersFor)
	defer cancel()
	var other *Joined
	for answer := range m.options.Answers(ctx) {
		if answer.ClusterID == m.identity.ClusterID {
			return nil
		}
		other = &answer
	}
	if other == nil {
		return nil
	}
	return fmt.Errorf("the data directory %s belongs to the cluster %x, and at the endpoints to join (--join) answers the cluster %x: give endpoints of its own cluster, or an empty data directory to join the other one",
		m.options.DataDir, m.identity.ClusterID, other.ClusterID)
}

// Joined is the cluster as this member has applied it, with this member as the one that knows.
func (m *Member) joined() Joined {
	members := m.machine.state.Load().Members
	return Joined{ClusterID: m.identity.ClusterID, MemberID: m.identity.MemberID, Members: members.All(), Version: members.Version()}
}

func (m *Member) tellMembers() ([]byte, error) {
	if m.peers.replica.Load() == nil {
		return nil, errStarting
	}
	return json.Marshal(joinAnswer{Joined: m.joined()})
}

// serveJoin lets a member without data in, as a learner. An earlier member of the same name or with the same peer URLs is
// what it was before it lost its data, and is removed first, unless it is alive.
func (m *Member) serveJoin(ctx context.Context, body []byte) ([]byte, error) {
	var r JoinRequest
	if err := json.Unmarshal(body, &r); err != nil || r.Name == "" || len(r.PeerURLs) == 0 {
		return nil, fmt.Errorf("a malformed request to join: %.100q", body)
	}
	if m.peers.replica.Load() == nil {
		return nil, errStarting
	}
	id, err := m.letIn(ctx, r)
	a := joinAnswer{Joined: m.joined()}
	a.MemberID = id
	if err != nil {
		a = joinAnswer{Error: err.Error(), Later: errors.Is(err, ErrTryLater)}
	}
	return json.Marshal(a)
}

func (m *Member) letIn(ctx context.Context, r JoinRequest) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, m.options.requestTimeout())
	defer cancel()
	if err := m.ReadBarrier(ctx); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrTryLater, err)
	}
	if err := tooOld(r.Version, m.machine.state.Load().Members.Version()); err != nil {
		return 0, err
	}
	for _, old := range m.machine.state.Load().Members.All() {
		sameURL := slices.ContainsFunc(old.PeerURLs, func(u string) bool { return slices.Contains(r.PeerURLs, u) })
		if old.Name != r.Name && !sameURL {
			continue
		}
		if m.isAlive(ctx, old.ID) {
			return 0, fmt.Errorf("the cluster %x has a member %q (%x) with the peer URLs %v already, and it is alive: give this member another --name and peer URLs of its own, or stop that one",
				m.identity.ClusterID, old.Name, old.ID, old.PeerURLs)
		}
		m.logger.Warn("a member comes back without its data: what it was is removed", "name", old.Name, "member", fmt.Sprintf("%x", old.ID))
		if err := m.RemoveMember(ctx, old.ID); err != nil && !errors.Is(err, kv.ErrMemberRemoved) {
			return 0, fmt.Errorf("%w: its earlier identity %x could not be removed: %w", ErrTryLater, old.ID, err)
		}
	}
	id, err := m.AddMember(ctx, r.PeerURLs, true)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrTryLater, err)
	}
	return id, nil
}

// isAlive reports whether any member that answers is connected with that one.
func (m *Member) isAlive(ctx context.Context, id uint64) bool {
	if id == m.identity.MemberID || m.peers.connected(id) {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, m.options.electionTimeout())
	defer cancel()
	var wg sync.WaitGroup
	members := m.machine.state.Load().Members.All()
	seen := make(chan struct{}, len(members))
	for _, one := range members {
		if one.ID == id || one.ID == m.identity.MemberID {
			continue
		}
		wg.Go(func() {
			b, err := m.transport.Call(ctx, one.ID, callConnected, binary.BigEndian.AppendUint64(nil, id))
			if err == nil && len(b) == 1 && b[0] == 1 {
				seen <- struct{}{}
			}
		})
	}
	wg.Wait()
	return len(seen) > 0
}

// refuseForcing says why no new cluster can be made of what is here; force makes it.
func (m *Member) force() error {
	s := m.machine.state.Load()
	if s.Applied.Index == 0 {
		return errors.New("--force-new-cluster: this member never received the data of its cluster; use the data directory of another one")
	}
	last, err := m.log.LastIndex()
	if err != nil {
		return err
	}
	self, ok := s.Members.Get(m.identity.MemberID)
	if !ok {
		self = member.Member{ID: m.identity.MemberID, Name: m.options.Name, PeerURLs: m.options.PeerURLs}
	}
	m.logger.Warn("making a new cluster of this member alone, as --force-new-cluster says; start it without the flag from now on",
		"member", fmt.Sprintf("%x", self.ID), "forgotten", len(s.Members.All())-1, "at", time.Now().UTC())
	return s.ForceAlone(self, replica.EncodeConfState([]uint64{self.ID}, nil), max(last, s.Applied.Index))
}
