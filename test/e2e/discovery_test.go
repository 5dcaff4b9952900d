package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDiscoveryService lets three members that do not know of one another meet at a cluster that serves for discovery. One
// more is refused, and the three need the service no longer once they are founded.
func TestDiscoveryService(t *testing.T) {
	service := startCluster(t, 1)
	c := newCluster(t, 4)
	const token = "4f2a"
	for _, m := range c.members {
		for _, flag := range []string{"--initial-cluster", "--initial-cluster-token", "--initial-cluster-state"} {
			i := slices.Index(m.args, flag)
			m.args = slices.Delete(m.args, i, i+2)
		}
		m.args = append(m.args, "--discovery-token="+token, "--discovery-endpoints="+service.members[0].clientURL)
	}
	unknown := c.members[0]
	unknown.start()
	unknown.p.expect(30*time.Second, 0, "does not know this token")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	registry := service.client(service.members[0])
	if _, err := registry.Put(ctx, "/_etcd/registry/"+token+"/_config/size", "3"); err != nil {
		t.Fatal(err)
	}
	late := c.members[3]
	c.members = c.members[:3]
	// One that is told to stop while it waits, stops; its place is its own when it comes again.
	c.members[0].start()
	c.members[0].p.expect(30*time.Second, 0, "waiting for the other founding members")
	c.members[0].p.stop(20 * time.Second)
	c.start(c.members...)
	if _, err := c.client(c.members...).Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	list, err := c.client(c.members[0]).MemberList(ctx)
	if err != nil || len(list.Members) != 3 {
		t.Fatalf("%v %v", list, err)
	}
	late.start()
	late.p.expect(30*time.Second, 0, "has its 3 members already")
	service.kill(service.members[0])
	c.kill(c.members...)
	c.start(c.members...)
	if v, err := c.client(c.members[1]).Get(ctx, "k"); err != nil || len(v.Kvs) != 1 {
		t.Fatalf("%v %v", v, err)
	}
	if s := strings.Join(late.p.output(), "\n"); !strings.Contains(s, "use a new token") {
		t.Errorf("no way out is named:\n%s", s)
	}
}
