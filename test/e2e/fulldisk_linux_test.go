package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
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

// TestDiskFillsUp lets the disk of one of three members fill up while clients write: the member ends with status 1, the
// others go on, and when there is room again the member comes back with everything.
func TestDiskFillsUp(t *testing.T) {
	small := t.TempDir()
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=768m"); err != nil {
		t.Skipf("this test needs to mount a small disk: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(small, syscall.MNT_DETACH) })
	c := newCluster(t, 3)
	m := c.members[0]
	m.dir = filepath.Join(small, m.name)
	m.set("--data-dir", m.dir)
	ballast := filepath.Join(small, "ballast")
	c.start(c.members...)
	fill(t, c.client(), "before", 50, 1000, 4)

	if err := fillDisk(ballast); err != nil {
		t.Fatal(err)
	}
	fill(t, c.client(c.members[1], c.members[2]), "while", 150, 1<<20, 8)
	if status := m.p.wait(30 * time.Second); status != 1 {
		t.Errorf("the member whose disk is full ended with status %d, want 1", status)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	c.start(m)
	c.agree(30 * time.Second)
}

// fillDisk writes a file until the disk takes no more.
func fillDisk(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for {
		if _, err := f.Write(block); err != nil {
			return nil
		}
	}
}
