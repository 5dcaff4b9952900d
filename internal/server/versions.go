package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/leader"
	"github.com/trivet-kv/trivet/internal/rpc"
)

// versionEvery is how often a leader looks at the versions of all members, as etcd's does.
const versionEvery = 4 * time.Second

// ClusterVersion is the version that the whole cluster serves, and whether it is to go back.
func (m *Member) ClusterVersion() (string, rpc.Downgrade) {
	members := m.machine.state.Load().Members
	d := members.Downgrade()
	return members.Version(), rpc.Downgrade{Enabled: d.Enabled, Target: d.Target}
}

// tooOld is the error of a member whose binary is older than the version that its cluster has agreed on, as etcd's refuses to
// run: others rely on what it does not know. A cluster that was taken back first (ctl downgrade) does not refuse it.
func tooOld(binary, cluster string) error {
	if !leader.TooOld(binary, cluster) {
		return nil
	}
	return fmt.Errorf("invalid downgrade: this binary serves version %s of the API, and the cluster has agreed on version %s, which is newer; start this member with a binary of that version or newer, or take the cluster back first (etcdctl downgrade enable, through members of the newer version)",
		binary, cluster)
}

// watchVersions keeps the cluster's version at what all members serve while this member leads. It runs until the member
// stops.
func (m *Member) watchVersions() {
	var looked, checked time.Time
	var undecided time.Time // since when this leader could not decide on the first version
	for {
		changed := m.replica.LeaderChanged()
		wait := versionEvery
		s := m.replica.Status()
		switch version, _ := m.ClusterVersion(); {
		case s.Leader != m.identity.MemberID:
			undecided = time.Time{}
		case s.AppliedTerm != s.Term:
			wait = m.options.Tick // what earlier leaders agreed on comes first
		case version == "" && undecided.IsZero():
			undecided = time.Now()
			fallthrough
		case version == "" || time.Since(looked) >= versionEvery:
			if version == "" {
				wait = m.options.Tick
			}
			looked = time.Now()
			m.decideVersion(version == "" && time.Since(undecided) >= m.options.electionTimeout())
		}
		if every := m.options.DowngradeCheck; every > 0 {
			if s.Leader == m.identity.MemberID && time.Since(checked) >= every {
				checked = time.Now()
				m.endDowngrade()
			}
			wait = min(wait, every)
		}
		select {
		case <-changed:
		case <-time.After(wait):
		case <-m.life.Done():
			return
		}
	}
}

// memberVersions asks all members for the versions of their binaries; empty for one that does not answer.
func (m *Member) memberVersions() []string {
	members := m.machine.state.Load().Members.All()
	versions := make([]string, len(members))
	ctx, cancel := context.WithTimeout(m.life, m.options.electionTimeout())
	defer cancel()
	var wg sync.WaitGroup
	for i, one := range members {
		if one.ID == m.identity.MemberID {
			versions[i] = m.options.APIVersion
			continue
		}
		wg.Go(func() {
			if b, err := m.transport.Call(ctx, one.ID, callVersion, nil); err == nil {
				versions[i] = string(b)
			}
		})
	}
	wg.Wait()
	return versions
}

func (m *Member) decideVersion(insist bool) {
	version, down := m.ClusterVersion()
	next, err := leader.NextVersion(version, down.Enabled, down.Target, m.memberVersions(), insist)
	if err != nil {
		m.logger.Error("the cluster's version cannot be decided", "error", err)
		return
	}
	if next == "" {
		return
	}
	m.logger.Info("setting the cluster's version", "from", version, "to", next)
	m.proposeQuietly(&command.Command{ClusterVersion: &command.ClusterVersion{Version: next}})
}

// endDowngrade ends a downgrade once all members run the version that it is to.
func (m *Member) endDowngrade() {
	_, down := m.ClusterVersion()
	if !down.Enabled || !leader.AllAt(down.Target, m.memberVersions()) {
		return
	}
	m.logger.Info("the cluster has been downgraded", "version", down.Target)
	m.proposeQuietly(&command.Command{Downgrade: &command.Downgrade{}})
}

func (m *Member) proposeQuietly(c *command.Command) {
	r, err := m.Propose(m.life, c)
	if err == nil {
		err = r.Err
	}
	if err != nil && m.life.Err() == nil {
		m.logger.Warn("what this member decided could not be agreed on; it tries again", "what", c.Name(), "error", err)
	}
}
