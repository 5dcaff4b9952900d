package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestFullDisk starts a member where no file may grow beyond a few KiB, which is how a full disk looks to it: it says so
// and ends with status 1, and starts well on the same directory once there is room.
func TestFullDisk(t *testing.T) {
	c := newCluster(t, 1)
	m := c.members[0]
	p := spawn(t, "m1 without room", nil, "sh", append([]string{"-c", `ulimit -f 8; exec "$0" "$@"`, trivet(t)}, m.args...)...)
	if status := p.wait(20 * time.Second); status != 1 {
		t.Errorf("ended with status %d, want 1", status)
	}
	said := sentences(p.output())
	if len(said) != 1 || !strings.Contains(said[0], m.dir) || !strings.Contains(said[0], syscall.EFBIG.Error()) {
		t.Errorf("said, of a directory without room in %s:\n%s", m.dir, strings.Join(said, "\n"))
	}
	c.start(m)
	if _, err := c.client().Put(context.Background(), "a", "b"); err != nil {
		t.Fatal(err)
	}

	// And again, without room for anything, when there is data.
	c.kill(m)
	p = spawn(t, "m1 without room", nil, "sh", append([]string{"-c", `ulimit -f 0; exec "$0" "$@"`, trivet(t)}, m.args...)...)
	if status := p.wait(20 * time.Second); status != 1 {
		t.Errorf("ended with status %d, want 1", status)
	}
	if said := sentences(p.output()); len(said) != 1 || !strings.Contains(said[0], syscall.EFBIG.Error()) {
		t.Errorf("said, of a directory without room in %s:\n%s", m.dir, strings.Join(said, "\n"))
	}
	c.start(m)
	got, err := c.client().Get(context.Background(), "a")
	if err != nil || len(got.Kvs) != 1 {
		t.Errorf("after the disk was full, the key is %v, %v", got, err)
	}
}

// TestDiskFillsUp lets the disk of one of three members fill up while clients write, and that of a cluster of one: reads go on,
// writes that need room are refused where there is none, and the others go on. When there is room again the member goes on by
// itself, in the same process, with everything; also after it was killed on the full disk. A writer that counts, readers and
// watchers of every member go on all the while.
func TestDiskFillsUp(t *testing.T) {
	c, ballast := newClusterOnSmallDisk(t, 3)
	m := c.members[0]
	c.start(c.members...)
	fill(t, c.client(), "before", 50, 1000, 4)
	client := c.client(m)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	witness := c.witness(t, c.client())

	fillDisk(t, ballast)
	fill(t, c.client(c.members[1], c.members[2]), "while", 100, 1<<20, 8)
	untilRefused(ctx, t, client)
	serializable(ctx, t, client, "before")
	for c.leader() == m {
		if ctx.Err() != nil {
			t.Fatal("the member whose disk is full leads")
		}
		time.Sleep(50 * time.Millisecond)
	}
	witness.count.goesOn() // it asks the others where one refuses
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	untilTaken(ctx, t, client)
	witness.count.sees(m)
	if m.starts != 1 {
		t.Errorf("the member was started %d times", m.starts)
	}

	fillDisk(t, ballast)
	fill(t, c.client(c.members[1], c.members[2]), "again", 60, 1<<20, 8)
	c.kill(m)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	c.start(m)
	witness.verify(t)
}

// TestLoneDiskFillsUp is the same for a cluster of one, where nobody else writes.
func TestLoneDiskFillsUp(t *testing.T) {
	c, ballast := newClusterOnSmallDisk(t, 1)
	c.start(c.members...)
	client := c.client()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	fill(t, client, "before", 50, 1000, 4)
	witness := c.witness(t, client)

	fillDisk(t, ballast)
	acknowledged := 0
	value := strings.Repeat("x", 1<<20)
	for refused := false; !refused; {
		if acknowledged > 700 {
			t.Fatal("a full disk takes everything")
		}
		// The put that finds no room waits; those after it are refused.
		once, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := client.Put(once, fmt.Sprint("while/", acknowledged), value)
		cancel()
		switch {
		case err == nil:
			acknowledged++
		case errors.Is(err, rpctypes.ErrNoSpace):
			refused = true
		case !errors.Is(err, rpctypes.ErrTimeout) && !errors.Is(err, context.DeadlineExceeded):
			t.Fatalf("a put on a full disk: %v", err)
		}
	}
	t.Logf("%d MiB were still taken", acknowledged)
	serializable(ctx, t, client, "before")
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	untilTaken(ctx, t, client)
	all := func() {
		t.Helper()
		got, err := c.client().Get(ctx, "while/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil || got.Count < int64(acknowledged) {
			t.Errorf("%v keys are left of %d, %v", got, acknowledged, err)
		}
	}
	all()

	// And a stop on the full disk, which cannot keep what is in memory, but ends and loses nothing.
	fillDisk(t, ballast)
	for i := 0; ; i++ {
		once, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := client.Put(once, fmt.Sprint("again/", i%5), value)
		if cancel(); errors.Is(err, rpctypes.ErrNoSpace) {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("nothing is refused")
		}
	}
	m := c.members[0]
	if status := m.p.stop(time.Minute); status != 1 {
		t.Errorf("a member that was stopped on a full disk ended with status %d, want 1", status)
	}
	if said := sentences(m.p.output()); len(said) != 1 || !strings.Contains(said[0], "the disk is") && !strings.Contains(said[0], "no space left") {
		t.Errorf("a member that was stopped on a full disk said:\n%s", strings.Join(said, "\n"))
	} else {
		t.Log(said[0])
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	c.start(m)
	all()
	witness.verify(t)
}

// newClusterOnSmallDisk puts the first member on a disk of its own, of 400 MiB. Ballast is the name of a file there.
func newClusterOnSmallDisk(t *testing.T, n int) (c *cluster, ballast string) {
	t.Helper()
	small := t.TempDir()
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=400m"); err != nil {
		t.Skipf("this test needs to mount a small disk: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(small, syscall.MNT_DETACH) })
	c = newCluster(t, n)
	m := c.members[0]
	m.dir = filepath.Join(small, m.name)
	m.set("--data-dir", m.dir)
	return c, filepath.Join(small, "ballast")
}

// untilRefused puts through the client until it is told that there is no room, or that the member cannot.
func untilRefused(ctx context.Context, t *testing.T, client *clientv3.Client) {
	t.Helper()
	for {
		_, err := client.Put(ctx, "refused", "x")
		if errors.Is(err, rpctypes.ErrNoSpace) || err != nil && strings.Contains(err.Error(), "the disk of this member does not answer") {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("nothing is refused; the last put: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// untilTaken puts through the client until that is done.
func untilTaken(ctx context.Context, t *testing.T, client *clientv3.Client) {
	t.Helper()
	for {
		_, err := client.Put(ctx, "taken", "x")
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("nothing is taken again: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func serializable(ctx context.Context, t *testing.T, client *clientv3.Client, prefix string) {
	t.Helper()
	got, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithSerializable(), clientv3.WithLimit(10))
	if err != nil || len(got.Kvs) == 0 {
		t.Errorf("a serializable read on a full disk: %v, %v", got, err)
	}
}

// fillDisk writes a file until the disk takes no more.
func fillDisk(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for {
		if _, err := f.Write(block); err != nil {
			return
		}
	}
}
