package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/trivet-kv/trivet/internal/datadir"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/member"
	"github.com/trivet-kv/trivet/internal/raftlog"
	"github.com/trivet-kv/trivet/internal/replica"
)

// askPeersFor bounds how long a new member waits for peers that neither answer nor refuse.
const askPeersFor = time.Second

// found makes a new member of a new cluster: it joins the network, makes sure that its peers do not know it from an
// earlier life, and writes the first state, the same on every founding member.
//
// A member that comes back with an empty disk must not take part under its old id: it may have voted, and have
// acknowledged entries, and would deny both. Peers that cannot be reached cannot warn; as in etcd, a cluster whose members
// all lost sight of one another while one lost its disk is beyond this check.
func (m *Member) found() error {
	members, self, clusterID := m.options.founders(m.options.Token)
	m.identity = datadir.Identity{
		ClusterID: clusterID, MemberID: self.ID, Name: m.options.Name, Token: m.options.Token, PeerURLs: self.PeerURLs,
	}
	if err := m.joinNetwork(members, nil); err != nil {
		return err
	}
	if err := m.refuseIfKnown(members); err != nil {
		return err
	}
	var voters []uint64
	for _, f := range members {
		voters = append(voters, f.ID)
	}
	slices.Sort(voters)
	return m.dir.Create(m.identity, func(stateDir string) error {
		e, err := engine.Open(engine.Options{FS: m.options.FS, Dir: stateDir, Logger: m.logger, Fatal: m.options.Fatal})
		if err != nil {
			return err
		}
		err = fsm.Bootstrap(e, members, replica.EncodeConfState(voters, nil))
		return errors.Join(err, e.Close())
	})
}

// refuseIfKnown asks every peer that answers whether this member has been started before.
func (m *Member) refuseIfKnown(members []member.Member) error {
	ctx, cancel := context.WithTimeout(m.life, askPeersFor)
	defer cancel()
	var wg sync.WaitGroup
	known := make(chan uint64, len(members))
	for _, p := range members {
		if p.ID == m.identity.MemberID {
			continue
		}
		wg.Go(func() {
			if m.askIfKnown(ctx, p.ID) {
				known <- p.ID
			}
		})
	}
	wg.Wait()
	select {
	case by := <-known:
		return fmt.Errorf("the cluster knows the member %q (%x, asked %x) from an earlier start, but its data directory %s is empty: put the old directory back, or remove the member from the cluster and add it anew",
			m.options.Name, m.identity.MemberID, by, m.options.DataDir)
	default:
		return nil
	}
}

// askIfKnown asks one peer, until it answers, is found to have no process, or ctx ends.
func (m *Member) askIfKnown(ctx context.Context, peer uint64) bool {
	for {
		answer, err := m.transport.Call(ctx, peer, callKnown, binary.BigEndian.AppendUint64(nil, m.identity.MemberID))
		if err == nil {
			return len(answer) == 1 && answer[0] == 1
		}
		if ctx.Err() != nil || m.peers.gone(peer) {
			return false
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// knows answers a peer's callKnown: it reports whether the member has been started, as far as this one has applied.
func (m *Member) knows(id uint64) bool {
	if m.peers.replica.Load() == nil {
		return false // this member starts itself
	}
	known, ok := m.machine.state.Load().Members.Get(id)
	return ok && len(known.ClientURLs) > 0
}

// errLostLog is why a member without its log must not start: it would deny what it promised.
var errLostLog = errors.New("the log is gone, and with it writes that this member acknowledged and votes that it gave, so it " +
	"must not serve: put the data directory back whole, or remove the member from the cluster and add it again with an empty " +
	"data directory (the other members hold everything)")

// lostLog tells that there was a log and it is gone.
func (m *Member) lostLog() error {
	if !m.dir.Identity.HasLog {
		return nil
	}
	if ok, err := raftlog.Exists(m.options.FS, m.dir.Log()); err != nil || ok {
		return err
	}
	return fmt.Errorf("%s: %w", m.dir.Log(), errLostLog)
}

// checkIdentity refuses a directory that belongs to another member than the flags describe. The list of members may differ
// from the founders: it changes with time. The token may too, because flags that begin with initial- speak of founding only:
// whoever restores a snapshot under a token need not repeat it. What tells clusters apart is the id that was made of it.
func (m *Member) checkIdentity() error {
	id, o := m.dir.Identity, &m.options
	if id.Name != o.Name {
		return fmt.Errorf("the data directory %s belongs to the member %q, not to %q: give the data directory of this member, "+
			"or an empty one to found a new member", o.DataDir, id.Name, o.Name)
	}
	if id.Token != o.Token {
		m.logger.Info("the token given means nothing to a member that was founded before",
			"data-dir", o.DataDir, "founded-with", id.Token, "given", o.Token)
	}
	return nil
}
