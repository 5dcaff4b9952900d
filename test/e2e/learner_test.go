package e2e

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestLearner adds a learner while clients write: it serves linearizable reads, none of them stale, and watches, which etcd's
// cannot; the leader is killed meanwhile. Then it is promoted, and counts.
func TestLearner(t *testing.T) {
	c := startCluster(t, 3)
	voters := append([]*member(nil), c.members...)
	client := c.client()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	start, err := client.Get(ctx, "start")
	if err != nil {
		t.Fatal(err)
	}
	l := startLoad(t, client, 8, 250)
	m := c.newMember("m4")
	added := retry(t, func(ctx context.Context) (*clientv3.MemberAddResponse, error) {
		return client.MemberAddAsLearner(ctx, []string{m.peerURL})
	})
	initial := m.name + "=" + m.peerURL
	for _, v := range voters {
		initial += "," + v.name + "=" + v.peerURL
	}
	m.args = append(m.flags(initial), "--initial-cluster-state", "existing")
	c.members = append(c.members, m)
	m.start()
	count := startCounter(t, client, append(voters, m)...)
	watcher := audit(t, "the learner", c.client(m), start.Header.Revision+1)
	count.sees(m)
	l.reach(30)
	if status, err := m.status(); err != nil || !status.IsLearner {
		t.Errorf("the member that was added as a learner: %v, %v", status, err)
	}
	dead := c.leader()
	c.kill(dead)
	l.reach(50)
	count.sees(m)
	c.start(dead)
	retry(t, func(ctx context.Context) (*clientv3.MemberPromoteResponse, error) {
		return client.MemberPromote(ctx, added.Member.ID)
	})
	m.ready(30 * time.Second)
	l.reach(100)
	l.writers.Wait()
	count.verify()
	revision := c.agree(30 * time.Second)
	l.verify(t, m.name, c.client(m))
	watcher.reach(t, revision, 30*time.Second)

	// With it and two others there is a majority of four, and not without it.
	c.kill(voters[0])
	if _, err := c.client(m).Put(ctx, "with it", ""); err != nil {
		t.Errorf("a put with the promoted member and two others: %v", err)
	}
	c.kill(m)
	once, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if _, err := c.client(voters[1:]...).Put(once, "without it", ""); err == nil {
		t.Error("two members of four agreed on a put")
	}
}
