package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestNoRoomForOneKindOfFile takes the room from one kind of file after the other while there is a writer and a watcher: the log
// names the file, reads go on, the writer is told that there is no room, and the member goes on by itself when there is some again, with
// everything that was acknowledged, also after it was killed. The last two are small disks that fill up, of the log alone and of all but the log.
func TestNoRoomForOneKindOfFile(t *testing.T) {
	for _, name := range []string{".sst", "MANIFEST", "members.json"} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1)
			faults := c.members[0].startFaulty()
			c.members[0].ready(30 * time.Second)
			noRoom(t, c, name, func(full bool) { fault(t, faults, "full "+name, full) })
		})
	}
	t.Run("segments of the log", func(t *testing.T) {
		c := newCluster(t, 1)
		faults := c.members[0].startFaulty()
		c.members[0].ready(30 * time.Second)
		noRoom(t, c, "/log/", func(full bool) { fault(t, faults, "full "+segments, full) })
	})
	onSmallDisk := func(t *testing.T, named string, logs bool) {
		c, ballast := newClusterOnSmallDisk(t, 1)
		m := c.members[0]
		if other := filepath.Join(t.TempDir(), "m1"); logs {
			m.set("--wal-dir", m.dir)
			m.dir = other
			m.set("--data-dir", m.dir)
		} else {
			m.set("--wal-dir", other)
		}
		c.start(m)
		noRoom(t, c, named, func(full bool) {
			if full {
				fillDisk(t, ballast)
			} else if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("disk of the log", func(t *testing.T) { onSmallDisk(t, "/log/", true) })
	t.Run("disk of the state", func(t *testing.T) { onSmallDisk(t, "/state-", false) })
}

// noRoom lets there be no room on a cluster of one for files with the name, and then some again.
func noRoom(t *testing.T, c *cluster, name string, full func(bool)) {
	t.Helper()
	m, client := c.members[0], c.client()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	start, err := client.Get(ctx, "start")
	if err != nil {
		t.Fatal(err)
	}
	watcher := audit(t, m.name, c.client(), start.Header.Revision+1)
	fill(t, client, "before", 50, 1000, 4)

	full(true)
	if name == "members.json" { // is written when there is another member; this one never comes
		if _, err := client.MemberAddAsLearner(ctx, []string{loopback(freePort(t))}); err != nil {
			t.Fatal(err)
		}
	}
	acknowledged := fillUntilRefused(ctx, t, client)
	m.p.expect(10*time.Second, 0, "the disk is full: reads go on", name)
	serializable(ctx, t, client, "before")
	if name == "/log/" || name == "members.json" { // elsewhere something may be committed that the state has no memory for
		if got, err := client.Get(ctx, "before/1"); err != nil || len(got.Kvs) != 1 {
			t.Errorf("a read: %v, %v", got, err)
		}
	}
	if got := metric(t, m, "trivet_disk_full"); got != 1 {
		t.Errorf("trivet_disk_full is %v", got)
	}
	if _, err := m.status(); err != nil {
		t.Errorf("the status: %v", err)
	}
	full(false)
	untilTaken(ctx, t, client)
	if m.starts != 1 {
		t.Errorf("the member was started %d times", m.starts)
	}
	verify := func() {
		t.Helper()
		got, err := c.client().Get(ctx, "while/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err != nil {
			t.Fatal(err)
		}
		there := map[string]bool{}
		for _, pair := range got.Kvs {
			there[string(pair.Key)] = true
		}
		for _, key := range acknowledged {
			if !there[key] {
				t.Errorf("%s was acknowledged, and is lost", key)
			}
		}
		if got, err := c.client().Get(ctx, "before/", clientv3.WithPrefix(), clientv3.WithCountOnly()); err != nil || got.Count != 50 {
			t.Errorf("of 50 keys from before: %v, %v", got, err)
		}
	}
	verify()
	watcher.reach(t, c.agree(30*time.Second), 60*time.Second)
	c.kill(m)
	c.start(m)
	verify()
}

// fillUntilRefused puts large values until it is told that there is no room, and returns the keys whose puts were acknowledged.
func fillUntilRefused(ctx context.Context, t *testing.T, client *clientv3.Client) (acknowledged []string) {
	t.Helper()
	value := strings.Repeat("x", 1<<20)
	for i := range 700 {
		key := fmt.Sprint("while/", i)
		once, cancel := context.WithTimeout(ctx, 2*time.Second) // the put that finds no room waits; those after it are refused
		_, err := client.Put(once, key, value)
		cancel()
		switch {
		case err == nil:
			acknowledged = append(acknowledged, key)
		case errors.Is(err, rpctypes.ErrNoSpace):
			t.Logf("%d MiB were still taken", len(acknowledged))
			return acknowledged
		case !errors.Is(err, rpctypes.ErrTimeout) && !errors.Is(err, context.DeadlineExceeded):
			t.Fatalf("a put where there is no room: %v", err)
		}
	}
	t.Fatal("everything is taken where there is no room")
	return nil
}

// TestNoRoomForIdentity founds a member where there is no room for one of the files that say whose the data directory is: it ends
// with status 1 and a sentence that names the file, and founds well on the same directory once there is room; and the same on
// a small disk that is full.
func TestNoRoomForIdentity(t *testing.T) {
	ended := func(t *testing.T, c *cluster, words ...string) {
		t.Helper()
		m := c.members[0]
		if status := m.p.wait(20 * time.Second); status != 1 {
			t.Errorf("ended with status %d, want 1", status)
		}
		if said := sentences(m.p.output()); len(said) != 1 || !containsAll(said[0], append(words, "no space left on device")) {
			t.Errorf("said, of want of room for %q:\n%s", words, strings.Join(said, "\n"))
		}
	}
	founds := func(t *testing.T, c *cluster) {
		t.Helper()
		c.start(c.members[0])
		if _, err := c.client().Put(t.Context(), "a", "b"); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"member.json", "STATE", "MANIFEST"} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1)
			m := c.members[0]
			faults := m.dir + ".faults"
			if err := os.MkdirAll(faults, 0o700); err != nil {
				t.Fatal(err)
			}
			fault(t, faults, "full "+name, true)
			m.startFaulty()
			ended(t, c, m.dir, name)
			founds(t, c)
		})
	}
	t.Run("small disk", func(t *testing.T) {
		c, ballast := newClusterOnSmallDisk(t, 1)
		fillDisk(t, ballast)
		c.members[0].start()
		ended(t, c, c.members[0].dir)
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		founds(t, c)
	})
}
