package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/datadir"
	"github.com/trivet-kv/trivet/internal/raftlog"
)

// remove takes away a file or folder of a member that does not run.
func remove(t *testing.T, fsys vfs.FS, name string) {
	t.Helper()
	if _, err := fsys.Stat(name); err != nil {
		t.Fatal(err)
	}
	if err := fsys.RemoveAll(name); err != nil {
		t.Fatal(err)
	}
}

// flip changes some bytes in the middle of a file.
func flip(t *testing.T, fsys vfs.FS, name string, at int64) {
	t.Helper()
	f, err := fsys.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	var b [16]byte
	_, err = f.ReadAt(b[:], at)
	for i := range b {
		b[i] ^= 0x5a
	}
	_, werr := f.WriteAt(b[:], at)
	if err := errors.Join(err, werr, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// files names those of a folder that end in suffix.
func files(t *testing.T, fsys vfs.FS, dir, suffix string) (paths []string) {
	t.Helper()
	names, err := fsys.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, suffix) {
			paths = append(paths, fsys.PathJoin(dir, name))
		}
	}
	if len(paths) == 0 {
		t.Fatalf("%s has no file that ends in %s: %v", dir, suffix, names)
	}
	return paths
}

// damages are what may happen to the data of a member while it is stopped.
var damages = map[string]func(t *testing.T, fsys vfs.FS){
	"the log is gone":          func(t *testing.T, fsys vfs.FS) { remove(t, fsys, "data/log") },
	"the last segment is gone": func(t *testing.T, fsys vfs.FS) { f := files(t, fsys, "data/log", ".log"); remove(t, fsys, f[len(f)-1]) },
	"the log has other bytes":  func(t *testing.T, fsys vfs.FS) { flip(t, fsys, files(t, fsys, "data/log", ".log")[0], 6000) },
	"STATE is gone":            func(t *testing.T, fsys vfs.FS) { remove(t, fsys, "data/STATE") },
	"the state is gone":        func(t *testing.T, fsys vfs.FS) { remove(t, fsys, "data/state-1") },
	"the state is empty":       func(t *testing.T, fsys vfs.FS) { emptied(t, fsys, "data/state-1") },
	"the manifest is gone":     func(t *testing.T, fsys vfs.FS) { manifests(t, fsys, func(m string) { remove(t, fsys, m) }) },
	"the manifest is other":    func(t *testing.T, fsys vfs.FS) { manifests(t, fsys, func(m string) { flip(t, fsys, m, 20) }) },
	"the tables have other bytes": func(t *testing.T, fsys vfs.FS) {
		for _, path := range files(t, fsys, "data/state-1", ".sst") {
			flip(t, fsys, path, 10)
			flip(t, fsys, path, 300)
		}
	},
	"a table is gone":            func(t *testing.T, fsys vfs.FS) { remove(t, fsys, files(t, fsys, "data/state-1", ".sst")[0]) },
	"the log and STATE are gone": func(t *testing.T, fsys vfs.FS) { remove(t, fsys, "data/log"); remove(t, fsys, "data/STATE") },
}

func emptied(t *testing.T, fsys vfs.FS, dir string) {
	remove(t, fsys, dir)
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}

func manifests(t *testing.T, fsys vfs.FS, each func(path string)) {
	names, err := fsys.List("data/state-1")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, "MANIFEST") {
			each(fsys.PathJoin("data/state-1", name))
		}
	}
}

// write writes keys through a member.
func write(t *testing.T, m *Member, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		put(t, m, fmt.Sprintf("key%d", i), fmt.Sprint("value", i))
	}
}

func hasAll(t *testing.T, m *Member, to int) {
	t.Helper()
	for i := range to {
		if got := get(t, m, fmt.Sprintf("key%d", i)); got != fmt.Sprint("value", i) {
			t.Fatalf("key%d is %q", i, got)
		}
	}
}

// A member whose data was damaged while it was stopped comes back by itself, with everything that was acknowledged, and
// counts again: with it and one other the cluster goes on.
func TestRebuild(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c := newCluster(t, 3)
				defer c.network.Close()
				c.startAll()
				write(t, c.members[1], 0, 100)
				if err := c.members[1].machine.state.Load().Engine.Flush(); err != nil {
					t.Fatal(err)
				}
				c.members[1].Kill()
				damage(t, c.disks[1])
				write(t, c.members[0], 100, 120)
				m := c.start(1)
				hasAll(t, m, 120)
				// A manifest that is cut is that of an older state, from which the log goes on.
				if first := m.replica.Status().FirstIndex; first < 100 && name != "the manifest is other" {
					t.Errorf("it was not rebuilt: its log begins at %d", first)
				}
				if m.dir.Identity.Rebuild != "" || !m.dir.Identity.HasLog {
					t.Errorf("the identity is %+v", m.dir.Identity)
				}
				c.members[2].Kill()
				write(t, m, 120, 130)
				m.Kill()
				m = c.start(1)
				hasAll(t, m, 130)
				c.start(2)
				hasAll(t, c.members[2], 130)
				c.stopAll()
			})
		})
	}
}

// A member that nobody can help says what is wrong with its data and why the others cannot help, and changes nothing: the
// same start works once they can.
func TestRebuildNeedsHelp(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.startAll()
		write(t, c.members[1], 0, 20)
		for _, m := range c.members {
			m.Kill()
		}
		path := files(t, c.disks[1], "data/log", ".log")[0]
		flip(t, c.disks[1], path, 6000)
		c.start(0)
		_, err := Start(c.options(1))
		if damage := (*raftlog.DamageError)(nil); !errors.As(err, &damage) || !errors.Is(err, errNoHelp) {
			t.Fatalf("with one other: %v", err)
		}
		d, err := datadir.Look(c.disks[1], "data")
		if err != nil || d.Identity.Rebuild != "" {
			t.Fatalf("a member that found no help has changed: %+v, %v", d, err)
		}
		flip(t, c.disks[1], path, 6000) // back again
		c.start(1)
		hasAll(t, c.members[1], 20)
		c.stop(1)
		flip(t, c.disks[1], path, 6000)
		c.start(2)
		c.start(1)
		hasAll(t, c.members[1], 20)
		c.stopAll()
	})
}

// A member alone, and one of two, are refused at once.
func TestRebuildAlone(t *testing.T) {
	for n := 1; n <= 2; n++ {
		bubble.Test(t, func(t *testing.T) {
			c := newCluster(t, n)
			defer c.network.Close()
			c.startAll()
			write(t, c.members[0], 0, 5)
			c.members[0].Kill()
			remove(t, c.disks[0], "data/log")
			began := time.Now()
			if _, err := Start(c.options(0)); !errors.Is(err, errLostLog) || !errors.Is(err, errNoHelp) {
				t.Fatalf("of %d: %v", n, err)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("of %d: it took %v", n, took)
			}
			if n == 2 {
				c.members[1].Kill()
			}
		})
	}
}

// A member that was added later, and whose state is lost, knows whom to ask by the note beside it.
func TestRebuildByTheNote(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.startAll()
		write(t, c.members[2], 0, 20)
		for c.members[2].dir.Identity == nil || !c.noted(2, 3) {
			time.Sleep(10 * time.Millisecond)
		}
		c.members[2].Kill()
		remove(t, c.disks[2], "data/STATE")
		o := c.options(2)
		o.Join = func(context.Context) (Joined, error) { return Joined{}, errors.New("asked to join again") }
		m, err := Start(o)
		if err != nil {
			t.Fatal(err)
		}
		c.members[2] = m
		hasAll(t, m, 20)
		c.stopAll()
	})
}

func (c *cluster) noted(i, members int) bool {
	b, err := c.members[i].dir.KeptMembers()
	return err == nil && strings.Count(string(b), "peer") >= members
}

// A leader that finds its log damaged when a member needs old entries of it gives up, to be rebuilt, and does not take the
// process with it.
func TestDamagedLogIsRead(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.startAll()
		c.members[2].Kill()
		write(t, c.members[0], 0, 300)
		c.stop(0)
		c.stop(1)
		c.start(0) // nothing of the log is in memory now
		c.start(1)
		put(t, c.members[0], "there is", "a leader")
		bad := 0
		if c.members[1].Leader() == c.members[1].identity.MemberID {
			bad = 1
		}
		for _, path := range files(t, c.disks[bad], "data/log", ".log") {
			for at := int64(4100); at < 30_000; at += 100 {
				flip(t, c.disks[bad], path, at)
			}
		}
		c.start(2)
		err := <-c.members[bad].Failed()
		if damage := (*raftlog.DamageError)(nil); !errors.As(err, &damage) || !errors.Is(err, ErrRebuild) {
			t.Fatalf("it fails with %v", err)
		}
		_ = c.members[bad].Abort(t.Context())
		hasAll(t, c.members[2], 300)
		hasAll(t, c.start(bad), 300)
		c.stopAll()
	})
}
