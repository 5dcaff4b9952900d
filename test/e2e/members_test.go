package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// newMember prepares a member that is not in the cluster yet, without flags.
func (c *cluster) newMember(name string) *member {
	c.t.Helper()
	m := &member{t: c.t, name: name, clientURL: loopback(freePort(c.t)), peerURL: loopback(freePort(c.t)), tls: c.tls}
	if c.tls != nil {
		m.clientURL, m.peerURL = strings.Replace(m.clientURL, "http", "https", 1), strings.Replace(m.peerURL, "http", "https", 1)
	}
	m.dir = filepath.Join(c.t.TempDir(), name)
	return m
}

// joining are the flags of a member that asks the members given to take it.
func (m *member) joining(endpoints ...string) []string {
	return []string{
		"server", "--name", m.name, "--data-dir", m.dir,
		"--listen-client-urls", m.clientURL, "--advertise-client-urls", m.clientURL,
		"--listen-peer-urls", m.peerURL, "--initial-advertise-peer-urls", m.peerURL,
		"--join", strings.Join(endpoints, ","),
	}
}

// add adds a member in etcd's way: first to the cluster, then as a process that is told so, with more flags.
func (c *cluster) add(client *clientv3.Client, name string, flags ...string) *member {
	c.t.Helper()
	m := c.newMember(name)
	added := retry(c.t, func(ctx context.Context) (*clientv3.MemberAddResponse, error) {
		return client.MemberAdd(ctx, []string{m.peerURL})
	})
	var initial []string
	for _, one := range added.Members {
		n := one.Name
		if one.ID == added.Member.ID {
			n = name
		}
		initial = append(initial, n+"="+one.PeerURLs[0])
	}
	m.args = append(append(m.flags(strings.Join(initial, ",")), "--initial-cluster-state", "existing"), flags...)
	c.members = append(c.members, m)
	m.start()
	m.ready(30 * time.Second)
	return m
}

// retry asks until there is an answer: a change of the members waits for the cluster to be healthy.
func retry[T any](t testing.TB, f func(context.Context) (T, error)) T {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		answer, err := f(ctx)
		cancel()
		if err == nil {
			return answer
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// id is the member's id, asked of itself.
func (m *member) id() uint64 {
	m.t.Helper()
	return retry(m.t, func(context.Context) (*clientv3.StatusResponse, error) { return m.status() }).Header.MemberId
}

// remove removes the member, which says so and ends with status 0, as etcd's does.
func (c *cluster) remove(m *member) {
	c.t.Helper()
	id := m.id()
	client := c.client(c.others(m)...)
	retry(c.t, func(ctx context.Context) (*clientv3.MemberRemoveResponse, error) {
		answer, err := client.MemberRemove(ctx, id)
		if err != nil && strings.Contains(err.Error(), "member not found") { // an earlier attempt whose answer was lost
			return answer, nil
		}
		return answer, err
	})
	m.p.expect(20*time.Second, 0, "this member has been removed from the cluster")
	if status := m.p.wait(20 * time.Second); status != 0 {
		c.t.Errorf("%s ended with status %d", m.name, status)
	}
	c.members = c.others(m)
}

// TestGrowAndShrink grows a cluster from one member to seven and shrinks it to one again while clients write, and kills
// a member meanwhile. No acknowledged write is lost, and no watcher misses an event.
func TestGrowAndShrink(t *testing.T) {
	c := startCluster(t, 1)
	start := retry(t, func(ctx context.Context) (*clientv3.GetResponse, error) { return c.client().Get(ctx, "start") })
	var joined []*member
	for i := range 6 {
		joined = append(joined, c.newMember(fmt.Sprintf("m%d", i+2)))
	}
	all := []string{c.members[0].clientURL}
	for _, m := range joined {
		all = append(all, m.clientURL)
	}
	client := c.client()
	client.SetEndpoints(all...)
	watching := c.client()
	watching.SetEndpoints(all...)
	watcher := audit(t, "all", watching, start.Header.Revision+1)
	l := startLoad(t, client, 20, 400)
	for i, m := range joined {
		l.reach(5 * (i + 1))
		m.args = m.joining(c.endpoints()...)
		c.members = append(c.members, m)
		m.start()
		m.ready(60 * time.Second) // as a voter
	}
	c.kill(c.members[1])
	l.reach(40)
	c.start(c.members[1])
	// The leader goes first.
	for i := range 6 {
		l.reach(50 + 7*i)
		c.remove(c.leader())
	}
	l.reach(100)
	l.writers.Wait()
	l.verify(t, c.members[0].name, c.client())
	watcher.reach(t, c.agree(30*time.Second), 60*time.Second)
}

// TestAddedMember adds a member in etcd's way, with all its checks, and starts it again.
func TestAddedMember(t *testing.T) {
	c := startCluster(t, 1)
	m := c.add(c.client(), "m2")
	put := retry(t, func(ctx context.Context) (*clientv3.PutResponse, error) { return c.client(m).Put(ctx, "k", "v") })
	c.kill(m)
	c.start(m)
	if revision := c.agree(30 * time.Second); revision != put.Header.Revision {
		t.Errorf("revision %d, want %d", revision, put.Header.Revision)
	}
	stranger := c.newMember("m3")
	stranger.args = append(stranger.flags("m1="+c.members[0].peerURL+",m3="+stranger.peerURL), "--initial-cluster-state", "existing")
	stranger.start()
	stranger.p.expect(20*time.Second, 0, "PeerURLs: no match found for existing member", "which --initial-cluster does not have")
	few := c.newMember("m4")
	few.args = append(few.flags("m1="+c.members[0].peerURL+",m2="+m.peerURL+",m4="+few.peerURL), "--initial-cluster-state", "existing")
	few.start()
	few.p.expect(20*time.Second, 0, "member count is unequal", "has 3 members", "has 2")
}

// TestWipedMember wipes the disk of a member that joined, under a writer and a watcher, and starts it with the same command
// line: it comes back by itself, and nothing acknowledged is lost (E#15107, E#21611).
func TestWipedMember(t *testing.T) {
	c := startCluster(t, 3)
	wiped := c.members[2]
	wiped.args = wiped.joining(c.endpoints(c.members[:2]...)...)
	start := retry(t, func(ctx context.Context) (*clientv3.GetResponse, error) { return c.client().Get(ctx, "start") })
	watcher := audit(t, "all members", c.client(), start.Header.Revision+1)
	l := startLoad(t, c.client(), 8, 250)
	before := wiped.id()
	l.reach(10)
	c.kill(wiped)
	if err := os.RemoveAll(wiped.dir); err != nil {
		t.Fatal(err)
	}
	l.reach(20)
	wiped.start()
	wiped.ready(60 * time.Second)
	if after := wiped.id(); after == before {
		t.Error("it has its old id")
	}
	l.reach(40)
	c.kill(wiped)
	wiped.start()
	wiped.ready(30 * time.Second)
	// It counts: the cluster lives with it and one other.
	l.reach(60)
	other := c.others(wiped)[0]
	c.kill(other)
	retry(t, func(ctx context.Context) (*clientv3.PutResponse, error) { return c.client(wiped).Put(ctx, "k", "w") })
	l.reach(100)
	l.writers.Wait()
	c.start(other)
	revision := c.agree(30 * time.Second)
	for _, m := range c.members {
		l.verify(t, m.name, c.client(m))
	}
	watcher.reach(t, revision, 30*time.Second)

	taken := c.newMember(wiped.name)
	taken.args = taken.joining(wiped.peerURL)
	taken.start()
	taken.p.expect(30*time.Second, 0, "and it is alive")
	if status := taken.p.wait(20 * time.Second); status != 1 {
		t.Errorf("a member whose name is taken ended with status %d", status)
	}
	nowhere := c.newMember("m9")
	nowhere.args = nowhere.joining(loopback(freePort(t)))
	nowhere.start()
	nowhere.p.expect(30*time.Second, 0, "no cluster answers there")
	nowhere.p.wait(20 * time.Second)
	for _, m := range []*member{taken, nowhere} {
		if _, err := os.Stat(m.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a refused join left %s: %v", m.dir, err)
		}
	}
}

// TestRemovedUnderClients removes a follower, and then the leader, under a client that sits on it and reads in a loop. The client is sent
// elsewhere, with the words of a member that stops; it does not wait for the end of the process, and nothing is broken off.
func TestRemovedUnderClients(t *testing.T) {
	c := startCluster(t, 3)
	for _, m := range []*member{c.others(c.leader())[0], c.leader()} {
		client := c.client(m)
		stream := retry(t, func(context.Context) (pb.Watch_WatchClient, error) {
			return pb.NewWatchClient(client.ActiveConnection()).Watch(t.Context())
		})
		if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("k")}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		reading := make(chan error, 1)
		go func() {
			kvs := pb.NewKVClient(client.ActiveConnection()) // which tries nothing again
			for {
				if _, err := kvs.Range(t.Context(), &pb.RangeRequest{Key: []byte("k")}); err != nil {
					reading <- err
					return
				}
			}
		}()
		c.remove(m)
		if _, err := stream.Recv(); !errors.Is(rpctypes.Error(err), rpctypes.ErrStopped) {
			t.Errorf("%s: the watch ended with %v", m.name, err)
		}
		// Where the last read was answered just before, the next one finds the door closed.
		if err := <-reading; !errors.Is(rpctypes.Error(err), rpctypes.ErrStopped) && !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: reading ended with %v", m.name, err)
		}
	}
}

// TestRemovedWhileDown removes a member that is down; it learns of it when it comes back.
func TestRemovedWhileDown(t *testing.T) {
	c := startCluster(t, 3)
	m := c.others(c.leader())[0]
	id := m.id()
	c.kill(m)
	retry(t, func(ctx context.Context) (*clientv3.MemberRemoveResponse, error) {
		return c.client(c.others(m)...).MemberRemove(ctx, id)
	})
	m.start()
	m.p.expect(20*time.Second, 0, "this member has been removed from the cluster")
	if status := m.p.wait(20 * time.Second); status != 0 {
		t.Errorf("it ended with status %d", status)
	}
}

// TestMovedWhileOthersAway moves two members to other peer URLs while the third is down, with member update and a restart. The
// third comes back knowing only where they were, and with one of the two alone makes a majority, over restarts of both.
func TestMovedWhileOthersAway(t *testing.T) {
	c := startCluster(t, 3)
	away := c.others(c.leader())[0]
	moved := c.others(away)
	retry(t, func(ctx context.Context) (*clientv3.PutResponse, error) { return c.client().Put(ctx, "k", "before") })
	c.kill(away)
	for _, m := range moved {
		id, old := m.id(), m.peerURL
		m.peerURL = loopback(freePort(t))
		retry(t, func(ctx context.Context) (*clientv3.MemberUpdateResponse, error) {
			return c.client(moved...).MemberUpdate(ctx, id, []string{m.peerURL})
		})
		c.kill(m)
		for i, arg := range m.args {
			if arg == old { // but not in --initial-cluster, which says how the cluster was founded
				m.args[i] = m.peerURL
			}
		}
		c.start(m)
	}
	retry(t, func(ctx context.Context) (*clientv3.PutResponse, error) {
		return c.client(moved...).Put(ctx, "k", "after")
	})
	c.kill(moved[0])
	c.start(away)
	for range 2 {
		got := retry(t, func(ctx context.Context) (*clientv3.GetResponse, error) { return c.client(away).Get(ctx, "k") })
		if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "after" {
			t.Errorf("k: %v", got.Kvs)
		}
		list := retry(t, func(ctx context.Context) (*clientv3.MemberListResponse, error) { return c.client(away).MemberList(ctx) })
		for _, m := range moved {
			if !slices.ContainsFunc(list.Members, func(one *pb.Member) bool { return slices.Equal(one.PeerURLs, []string{m.peerURL}) }) {
				t.Errorf("%s is not at %s: %v", m.name, m.peerURL, list.Members)
			}
		}
		c.kill(away, moved[1])
		c.start(moved[1], away)
	}
	c.start(moved[0])
	c.agree(30 * time.Second)
}

// TestForceNewCluster makes a cluster of one out of a member of three, under a writer and a watcher that go on with it.
//
// What may be lost: that which the member had not heard of when it went down. An acknowledged write is on two of three, so with the
// third member down first, everything acknowledged is on the two that are left, and either of them has it all. The third has
// what it had shown before it went down, and lacks what was acknowledged afterwards: forced, it would lose that.
func TestForceNewCluster(t *testing.T) {
	c := startCluster(t, 3)
	survivor, lost, third := c.members[0], c.members[1], c.members[2]
	start := retry(t, func(ctx context.Context) (*clientv3.GetResponse, error) { return c.client().Get(ctx, "start") })
	watcher := audit(t, "the survivor", c.client(survivor, lost), start.Header.Revision+1)
	l := startLoad(t, c.client(survivor, lost), 8, 250)
	l.reach(15)
	shown := retry(t, func(ctx context.Context) (*clientv3.GetResponse, error) { return c.client(third).Get(ctx, "start") })
	c.kill(third)
	l.reach(40)
	c.kill(survivor, lost)

	plain := survivor.args
	survivor.args = append(plain[:len(plain):len(plain)], "--force-new-cluster")
	c.members = c.members[:1]
	c.start(survivor)
	list := retry(t, func(ctx context.Context) (*clientv3.MemberListResponse, error) { return c.client().MemberList(ctx) })
	if len(list.Members) != 1 {
		t.Errorf("members: %v", list.Members)
	}
	l.reach(60)
	lost.start()
	lost.p.expect(20*time.Second, 0, "this member has been removed from the cluster")
	c.kill(survivor)
	survivor.args = plain
	c.start(survivor)
	l.reach(70)
	c.add(c.client(), "m9")
	l.reach(100)
	l.writers.Wait()
	revision := c.agree(30 * time.Second)
	for _, m := range c.members {
		l.verify(t, m.name, c.client(m))
	}
	watcher.reach(t, revision, 30*time.Second)
	c.kill(c.members...)

	third.args = append(third.args, "--force-new-cluster")
	c.members = []*member{third}
	c.start(third)
	l.verifyUpTo(t, c.client(), shown.Header.Revision)
	audit(t, "the third", c.client(), start.Header.Revision+1).reach(t, shown.Header.Revision, 30*time.Second)
}

// TestJoinWithOtherData starts members that joined one cluster with the endpoints of another, by peer URL and by client URL:
// they are refused, and come back with those of their own, in whatever company, and with ones at which nobody answers.
func TestJoinWithOtherData(t *testing.T) {
	c, other := startCluster(t, 1), startCluster(t, 1)
	m := c.newMember("m2")
	m.args = m.joining(c.members[0].peerURL)
	c.members = append(c.members, m)
	c.start(m)
	put := retry(t, func(ctx context.Context) (*clientv3.PutResponse, error) { return c.client().Put(ctx, "k", "v") })
	for _, endpoint := range []string{other.members[0].peerURL, other.members[0].clientURL} {
		c.kill(m)
		m.args = m.joining(endpoint, loopback(freePort(t)))
		m.start()
		m.p.expect(20*time.Second, 0, "and at the endpoints to join (--join) answers the cluster")
		if status := m.p.wait(20 * time.Second); status != 1 {
			t.Errorf("it ended with status %d", status)
		}
	}
	for _, endpoints := range [][]string{
		{other.members[0].peerURL, c.members[0].clientURL}, {loopback(freePort(t)), m.peerURL, m.clientURL},
	} {
		m.args = m.joining(endpoints...)
		c.start(m)
		if revision := c.agree(30 * time.Second); revision != put.Header.Revision {
			t.Errorf("revision %d, want %d", revision, put.Header.Revision)
		}
		c.kill(m)
	}
}

// TestJoinWithAuth joins a cluster with authentication on: members ask one another at peer URLs, where no user is needed.
func TestJoinWithAuth(t *testing.T) {
	c := startCluster(t, 1)
	do := func(what string, err error) {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := c.client()
	_, err := client.UserAdd(ctx, "root", "secret")
	do("add root", err)
	_, err = client.UserGrantRole(ctx, "root", "root")
	do("grant root", err)
	_, err = client.AuthEnable(ctx)
	do("enable authentication", err)
	m := c.newMember("m2")
	m.args = m.joining(c.members[0].peerURL)
	m.start()
	m.p.expect(60*time.Second, 0, "the cluster has taken this member as a learner")
	root, err := clientv3.New(clientv3.Config{Endpoints: []string{c.members[0].clientURL}, Username: "root", Password: "secret", Logger: zap.NewNop()})
	do("log in", err)
	defer root.Close()
	for {
		list, err := root.MemberList(ctx)
		if err == nil && len(list.Members) == 2 && !list.Members[0].IsLearner && !list.Members[1].IsLearner {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("m2 is no voter: %v, %v", list, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	_, err = root.Put(ctx, "k", "v") // needs both
	do("put", err)
	_, err = c.client(m).Get(ctx, "k")
	if err == nil || !strings.Contains(err.Error(), "user name is empty") {
		t.Errorf("the member that joined reads for nobody: %v", err)
	}
}
