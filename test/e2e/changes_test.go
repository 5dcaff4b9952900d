package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// ctl runs `trivet ctl` with the members as endpoints until it succeeds, and returns what it printed: a change of the members waits for the
// cluster to be healthy, and a hand-over for who is to take over.
func (c *cluster) ctl(t *testing.T, at []*member, args ...string) string {
	t.Helper()
	args = append([]string{"ctl", "--endpoints", strings.Join(c.endpoints(at...), ",")}, args...)
	return retry(t, func(ctx context.Context) (string, error) {
		out, err := exec.CommandContext(ctx, trivet(t), args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("trivet %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return string(out), err
	})
}

// moveTo stops the member and starts it at another peer URL, which the cluster has been told of. Where the cluster was founded stays.
func (c *cluster) moveTo(peerURL string, m *member) {
	c.t.Helper()
	if status := m.p.stop(30 * time.Second); status != 0 {
		c.t.Errorf("%s ended with status %d:\n%s", m.name, status, tail(m.p.output(), 40))
	}
	m.peerURL = peerURL
	m.set("--listen-peer-urls", peerURL)
	m.set("--initial-advertise-peer-urls", peerURL)
	c.start(m)
}

// leads waits until the member does.
func (c *cluster) leads(t *testing.T, m *member) {
	t.Helper()
	for deadline := time.Now().Add(patience); c.leader() != m; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not lead within %v", m.name, patience)
		}
	}
}

// at is where the others reach the member, as its cluster has it.
func (c *cluster) at(m *member) []string {
	c.t.Helper()
	id := m.id()
	list := retry(c.t, func(ctx context.Context) (*clientv3.MemberListResponse, error) { return c.client().MemberList(ctx) })
	for _, one := range list.Members {
		if one.ID == id {
			return one.PeerURLs
		}
	}
	return nil
}

// TestChangesUnderLoad adds a member, moves it, a follower and the leader to other peer URLs, hands leadership round and removes the
// member again, through the API and through `trivet ctl`, while clients that know the founders put, compare and put, read, watch and keep
// leases alive. No call fails, nothing is lost or done twice, and the watchers see every revision once.
func TestChangesUnderLoad(t *testing.T) {
	c := startCluster(t, 3)
	founders := c.members
	s := startSteady(t, c, 2)

	added := c.newMember("m4")
	said := c.ctl(t, founders, "member", "add", added.name, "--peer-urls="+added.peerURL)
	initial := regexp.MustCompile(`(?m)^ETCD_INITIAL_CLUSTER="(.*)"$`).FindStringSubmatch(said)
	if initial == nil || !strings.Contains(said, `ETCD_INITIAL_CLUSTER_STATE="existing"`) {
		t.Fatalf("member add printed:\n%s", said)
	}
	added.args = append(added.flags(initial[1]), "--initial-cluster-state", "existing")
	c.members = append(founders[:3:3], added)
	c.start(added)
	s.note("m4 was added")

	leader := c.leader()
	for _, m := range []*member{added, c.others(added, leader)[0], leader} {
		id, to := m.id(), loopback(freePort(t))
		if m == added {
			c.ctl(t, founders, "member", "update", fmt.Sprintf("%x", id), "--peer-urls="+to)
		} else {
			retry(t, func(ctx context.Context) (*clientv3.MemberUpdateResponse, error) {
				return c.client(founders...).MemberUpdate(ctx, id, []string{to})
			})
		}
		s.note("%s is told to be at %s", m.name, to)
		c.moveTo(to, m)
		if got := c.at(m); !slices.Equal(got, []string{to}) {
			t.Errorf("%s is at %v, want %s", m.name, got, to)
		}
		s.note("%s is there", m.name)
		if m != added {
			s.meets(m)
		}
	}

	for i, m := range append(c.others(c.leader()), c.members...) { // each at least once
		old := c.leader()
		if old == m {
			continue
		}
		id := m.id()
		if i%2 == 0 {
			c.ctl(t, []*member{old}, "move-leader", fmt.Sprintf("%x", id))
		} else {
			retry(t, func(ctx context.Context) (*clientv3.MoveLeaderResponse, error) {
				return c.client(old).MoveLeader(ctx, id)
			})
		}
		c.leads(t, m)
		s.note("%s leads", m.name)
	}

	c.ctl(t, founders, "member", "remove", fmt.Sprintf("%x", added.id()))
	added.p.expect(20*time.Second, 0, "this member has been removed from the cluster")
	if status := added.p.wait(20 * time.Second); status != 0 {
		t.Errorf("the member that was removed ended with status %d", status)
	}
	c.members = founders
	s.end()
	t.Log(s.summary())
	s.failures()
	s.verifyAll()
	revision := c.agree(patience)
	s.reached(revision, patience)
}

// TestSeveralLearners adds three learners at once to a cluster under load. Each serves linearizable reads, none of them stale, serializable ones and
// watches; then they are promoted one after the other, through the API and through `trivet ctl`, and each goes on.
func TestSeveralLearners(t *testing.T) {
	c := startCluster(t, 3, "--max-learners=3")
	voters := c.members
	client := c.client()
	start := retry(t, func(ctx context.Context) (*clientv3.GetResponse, error) { return client.Get(ctx, "start") })
	l := startLoad(t, client, 8, 250)
	l.reach(5)
	var learners []*member
	for i := range 3 {
		m := c.newMember(fmt.Sprintf("m%d", i+4))
		retry(t, func(ctx context.Context) (*clientv3.MemberAddResponse, error) {
			return client.MemberAddAsLearner(ctx, []string{m.peerURL})
		})
		learners = append(learners, m)
	}
	for _, m := range learners {
		m.args = append(m.flags(strings.Join(founding(slices.Concat(voters, learners)), ",")), "--initial-cluster-state", "existing", "--max-learners=3")
		m.start()
	}
	c.members = append(voters[:3:3], learners...)
	count := startCounter(t, client, c.members...)
	watchers := []*auditor{audit(t, "all voters", c.client(voters...), start.Header.Revision+1)}
	for _, m := range learners {
		watchers = append(watchers, audit(t, m.name, c.client(m), start.Header.Revision+1))
	}
	l.reach(20)
	for _, m := range learners {
		count.sees(m)
		if status, err := m.status(); err != nil || !status.IsLearner {
			t.Errorf("%s was added as a learner: %v, %v", m.name, status, err)
		}
		got := retry(t, func(ctx context.Context) (*clientv3.GetResponse, error) {
			return c.client(m).Get(ctx, "load/", clientv3.WithPrefix(), clientv3.WithSerializable(), clientv3.WithLimit(1))
		})
		if len(got.Kvs) != 1 {
			t.Errorf("a serializable read through %s: %v", m.name, got)
		}
	}
	for i, m := range learners {
		l.reach(20 + 20*i)
		if id := m.id(); i == 1 {
			c.ctl(t, voters, "member", "promote", fmt.Sprintf("%x", id))
		} else {
			retry(t, func(ctx context.Context) (*clientv3.MemberPromoteResponse, error) {
				return client.MemberPromote(ctx, id)
			})
		}
		m.ready(patience)
		for j, other := range learners {
			status := retry(t, func(context.Context) (*clientv3.StatusResponse, error) { return other.status() })
			if status.IsLearner != (j > i) {
				t.Errorf("%s, number %d of three, is a learner: %v, after %d were promoted", other.name, j+1, status.IsLearner, i+1)
			}
		}
		count.sees(m)
	}
	l.reach(100)
	l.writers.Wait()
	count.verify()
	revision := c.agree(patience)
	for _, m := range learners {
		l.verify(t, m.name, c.client(m))
	}
	for _, w := range watchers {
		w.reach(t, revision, patience)
	}
}

// founding is what --initial-cluster has of the members.
func founding(members []*member) (initial []string) {
	for _, m := range members {
		initial = append(initial, m.name+"="+m.peerURL)
	}
	return initial
}
