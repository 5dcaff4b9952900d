package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// spoil stops a member and changes its state; see test/spoil. The member is not started again.
func (m *member) spoil(do string, args ...string) {
	m.t.Helper()
	if status := m.p.stop(30 * time.Second); status != 0 { // leaves all of it in the state, nothing in the log alone
		m.t.Fatalf("%s ended with status %d", m.name, status)
	}
	cmd := exec.Command(filepath.Join(built(m.t), "spoil"), append([]string{do, m.dir}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

// corrupt waits until some alarm CORRUPT is raised, and returns the members that it is raised for.
func corrupt(t *testing.T, client *clientv3.Client) (ids []uint64) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if ids = corruptNow(t, client); len(ids) > 0 {
			return ids
		}
		if time.Now().After(deadline) {
			t.Fatalf("no alarm CORRUPT within %v", patience)
		}
	}
}

func corruptNow(t *testing.T, client *clientv3.Client) (ids []uint64) {
	t.Helper()
	answer := retry(t, func(ctx context.Context) (*clientv3.AlarmResponse, error) { return client.AlarmList(ctx) })
	for _, a := range answer.Alarms {
		if a.Alarm == pb.AlarmType_CORRUPT {
			ids = append(ids, a.MemberID)
		}
	}
	return ids
}

// TestDiverged (E#13766; E#13839: with etcd nothing looks unless it is told to) loses a write in the state of one member while clients write. As soon as that has an effect the member
// finds out, raises CORRUPT for itself alone, rebuilds itself in the same process, and is level again. Meanwhile the others take
// every write, and every answer is right. It may be the leader: then it hands over.
func TestDiverged(t *testing.T) {
	t.Parallel()
	t.Run("follower", func(t *testing.T) {
		t.Parallel()
		diverged(t, false)
	})
	t.Run("leader", func(t *testing.T) {
		t.Parallel()
		diverged(t, true)
	})
}

func diverged(t *testing.T, leads bool) {
	c := startCluster(t, 3)
	bad := c.others(c.leader())[0]
	good := c.others(bad)
	client := c.client(good...)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	first, err := client.Put(ctx, "diverged", "1")
	if err != nil {
		t.Fatal(err)
	}
	watchers := []*auditor{audit(t, "the others", client, first.Header.Revision+1)}
	for _, m := range good {
		watchers = append(watchers, audit(t, m.name, c.client(m), first.Header.Revision+1))
	}
	l := startLoad(t, client, 8, 300)
	count := startCounter(t, client, c.members...)
	l.reach(5)
	if _, err := client.Put(ctx, "diverged", "2"); err != nil {
		t.Fatal(err)
	}
	bad.spoil("rewind", "diverged")
	c.start(bad)
	id := bad.id()
	count.sees(bad)
	if leads {
		c.ctl(t, []*member{c.leader()}, "move-leader", fmt.Sprintf("%x", id))
		c.leads(t, bad)
	}
	tried := l.retries.Load()

	retry(t, func(ctx context.Context) (*clientv3.TxnResponse, error) { // once, however often it is tried
		return client.Txn(ctx).If(clientv3.Compare(clientv3.Value("diverged"), "=", "2")).Then(clientv3.OpPut("diverged", "3")).Commit()
	})
	for rebuilt := false; !rebuilt; time.Sleep(5 * time.Millisecond) {
		rebuilt = slices.ContainsFunc(bad.p.output(), func(line string) bool { return strings.Contains(line, "this member was rebuilt") })
		if got := corruptNow(t, client); len(got) > 0 && !slices.Equal(got, []uint64{id}) {
			t.Fatalf("CORRUPT is raised for %x, want %x alone", got, id)
		}
		if ctx.Err() != nil {
			t.Fatalf("%s was not rebuilt:\n%s", bad.name, tail(bad.p.output(), 40))
		}
	}
	bad.p.expect(patience, 0, "this member has diverged")
	bad.p.expect(patience, 0, "the alarm CORRUPT is raised for this member")
	alarms(t, client, false)
	bad.ready(30 * time.Second)
	count.sees(bad)
	if bad.starts != 2 {
		t.Errorf("%s was started %d times", bad.name, bad.starts)
	}
	got := retry(t, func(ctx context.Context) (*clientv3.GetResponse, error) { return c.client(bad).Get(ctx, "diverged") })
	if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "3" || got.Kvs[0].Version != 3 || got.Kvs[0].CreateRevision != first.Header.Revision {
		t.Errorf("the key is %v through the member that had lost a write of it", got)
	}

	l.reach(100)
	l.writers.Wait()
	count.verify()
	if n := l.retries.Load() - tried; n > 0 {
		t.Errorf("%d writes through the other members failed", n)
	}
	revision := c.agree(30 * time.Second)
	for _, m := range c.members {
		l.verify(t, m.name, c.client(m))
	}
	for _, w := range watchers {
		w.reach(t, revision, 30*time.Second)
	}
}

// TestCorruptChecks changes a value at rest in a member, which no hash of effects sees, and lets each of etcd's checks find it:
// the member does not start with the check before serving; with that on other members now and then, or after a compaction, it is
// named by the alarm CORRUPT, no member takes writes, and reads go on. Then the steps of docs/operations.md make all well.
func TestCorruptChecks(t *testing.T) {
	t.Parallel() // it waits for members' intervals
	for name, flags := range map[string][]string{
		"now and then":     {"--corrupt-check-time=1s"},
		"after compacting": {"--feature-gates=CompactHashCheck=true", "--compact-hash-check-time=1s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 3)
			bad, good := c.members[2], c.members[:2]
			plain := slices.Clone(bad.args)
			for _, m := range good {
				m.args = append(m.args, flags...)
			}
			c.start(c.members...)
			client := c.client(good...)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			first, err := client.Put(ctx, "spoiled", "good value")
			if err != nil {
				t.Fatal(err)
			}
			watcher := audit(t, "the others", c.client(good...), first.Header.Revision+1)
			l := startLoad(t, client, 4, 100)
			l.reach(20)
			for c.leader() == bad { // the checks are the leader's
				_, _ = c.client(bad).MoveLeader(ctx, good[0].id())
			}
			id := bad.id()
			bad.spoil("change", "spoiled", "good", "evil")
			bad.args = append(plain[:len(plain):len(plain)], "--feature-gates=InitialCorruptCheck=true")
			bad.start()
			bad.p.expect(patience, 0, "trivet: ", fmt.Sprintf("the data of this member (%x) differs from that of the member", id))
			if status := bad.p.wait(30 * time.Second); status != 1 {
				t.Errorf("a member that differs ended with status %d", status)
			}
			bad.args = plain
			c.start(bad)
			if name == "after compacting" {
				if _, err := client.Compact(ctx, first.Header.Revision+1); err != nil {
					t.Fatal(err)
				}
			}
			if got := corrupt(t, client); !slices.Equal(got, []uint64{id}) {
				t.Errorf("CORRUPT is raised for %x, want %x", got, id)
			}
			for _, m := range c.members {
				one := c.client(m)
				if _, err := one.Put(ctx, "refused", ""); !errors.Is(err, rpctypes.ErrCorrupt) {
					t.Errorf("a put through %s: %v", m.name, err)
				}
				if r, err := one.Get(ctx, "load/", clientv3.WithPrefix(), clientv3.WithCountOnly()); err != nil || r.Count == 0 {
					t.Errorf("a read through %s: %v, %v", m.name, r, err)
				}
			}

			if _, err := client.MemberRemove(ctx, id); err != nil {
				t.Fatal(err)
			}
			if status := bad.p.wait(30 * time.Second); status != 0 {
				t.Errorf("the member that was removed ended with status %d", status)
			}
			if _, err := client.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(bad.dir); err != nil {
				t.Fatal(err)
			}
			bad.args = bad.joining(c.endpoints(good...)...)
			c.start(bad)
			l.reach(100)
			l.writers.Wait()
			revision := c.agree(30 * time.Second)
			l.verify(t, bad.name, c.client(bad))
			watcher.reach(t, revision, 30*time.Second)
			if got, err := c.client(bad).Get(ctx, "spoiled"); err != nil || len(got.Kvs) != 1 || !strings.HasPrefix(string(got.Kvs[0].Value), "good") {
				t.Errorf("the value that was changed is %v, %v", got, err)
			}
		})
	}
}
