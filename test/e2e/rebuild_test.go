package e2e

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// spoilFile changes bytes in the middle of the used part of a file.
func spoilFile(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 64)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatalf("%s at %d: %v", path, at, err)
	}
	for i := range b {
		b[i] ^= 0xa5
	}
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// newestFile is the last in order of the files of a member that match.
func (m *member) newestFile(t *testing.T, pattern string) string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(m.dir, pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s of %s: %d files, %v", pattern, m.name, len(paths), err)
	}
	return paths[len(paths)-1]
}

// largestTable is the largest table file of a member's state.
func (m *member) largestTable(t *testing.T) (path string, size int64) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(m.dir, "state-*", "*.sst"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil && info.Size() > size {
			path, size = p, info.Size()
		}
	}
	if size < 4096 {
		t.Fatalf("%s has no table of some size", m.name)
	}
	return path, size
}

// TestRebuild kills members under a writer and a watcher, damages what they have on their disks in every way that matters,
// and starts them as they were: each comes back by itself, level with the others, and nothing acknowledged is lost.
func TestRebuild(t *testing.T) {
	c := startCluster(t, 3)
	client := c.client()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	start, err := client.Get(ctx, "start")
	if err != nil {
		t.Fatal(err)
	}
	watcher := audit(t, "all members", c.client(), start.Header.Revision+1)
	l := startLoad(t, client, 20, 400)
	began := time.Now()
	note := func(what, name string) { t.Logf("%5.1f s: %s %s", time.Since(began).Seconds(), name, what) }

	removeAll := func(path string) {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	damages := []struct {
		name string
		do   func(m *member)
	}{
		{"other bytes in the log", func(m *member) { spoilFile(t, m.newestFile(t, "log/*.log"), 20_000) }},
		{"a segment of the log is gone", func(m *member) { removeAll(m.newestFile(t, "log/*.log")) }},
		{"the state is gone", func(m *member) { removeAll(m.newestFile(t, "state-*")) }},
		{"STATE is gone", func(m *member) { removeAll(filepath.Join(m.dir, "STATE")) }},
	}
	for i, d := range damages {
		l.reach(10 + 15*i)
		m := c.members[i%3]
		if i == 1 {
			m = c.leader()
		}
		note("is killed: "+d.name, m.name)
		c.kill(m)
		d.do(m)
		l.reach(15 + 15*i)
		c.start(m)
		m.p.expect(10*time.Second, 0, "this member was rebuilt")
		note("was rebuilt", m.name)
	}
	// A table is read when somebody wants what is in it: the member finds the damage while it serves, and then rebuilds
	// itself without another start.
	l.reach(80)
	m := c.others(c.leader())[0]
	if status := m.p.stop(20 * time.Second); status != 0 { // leaves all of the state in tables
		t.Fatalf("status %d", status)
	}
	path, size := m.largestTable(t)
	for at := int64(1000); at+64 < size-2000; at += 3000 {
		spoilFile(t, path, at)
	}
	note("is started with a damaged table", m.name)
	c.start(m)
	l.reach(100)
	l.writers.Wait()
	note("all is written", "")
	revision := c.agree(60 * time.Second)
	m.p.expect(10*time.Second, 0, "this member was rebuilt")
	note("was rebuilt", m.name)
	watcher.reach(t, revision, 30*time.Second)
	for _, m := range c.members {
		l.verify(t, m.name, c.client(m))
	}
}
