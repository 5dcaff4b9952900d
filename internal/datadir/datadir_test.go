package datadir

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func touch(t *testing.T, fsys vfs.FS, name string) {
	t.Helper()
	f, err := fsys.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func found(t *testing.T, fsys vfs.FS) *Dir {
	t.Helper()
	d, err := Open(fsys, "data")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Create(Identity{MemberID: 7, Name: "a"}, func(dir string) error {
		touch(t, fsys, fsys.PathJoin(dir, "first"))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestFoundReplaceReopen(t *testing.T) {
	fsys := vfs.NewMem()
	d := found(t, fsys)
	staged := fsys.PathJoin(d.Incoming(), "x")
	if err := fsys.MkdirAll(staged, 0o700); err != nil {
		t.Fatal(err)
	}
	touch(t, fsys, fsys.PathJoin(staged, "second"))
	if _, err := d.Replace(staged); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Prune(), d.Close()); err != nil {
		t.Fatal(err)
	}
	d, err := Open(fsys, "data")
	if err != nil {
		t.Fatal(err)
	}
	state, err := d.State()
	if err != nil || d.Identity == nil || d.Identity.MemberID != 7 {
		t.Fatalf("state %q, identity %+v, %v", state, d.Identity, err)
	}
	if _, err := fsys.Stat(fsys.PathJoin(state, "second")); err != nil {
		t.Fatalf("the replaced state is not the current one: %v", err)
	}
	if _, err := fsys.Stat("data/state-1"); err == nil {
		t.Fatal("the old state is still there")
	}
}

func TestRefusals(t *testing.T) {
	fsys := vfs.NewMem()
	if err := fsys.MkdirAll("etcd/member/wal", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(fsys, "etcd"); !errors.Is(err, ErrEtcd) {
		t.Fatalf("etcd's directory: %v", err)
	}
	if names, _ := fsys.List("etcd"); len(names) != 1 {
		t.Fatalf("etcd's directory was touched: %v", names)
	}
	if err := fsys.MkdirAll("etcd/member/snap", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(fsys, "etcd/member"); !errors.Is(err, ErrEtcd) {
		t.Fatalf("the folder inside etcd's directory: %v", err)
	}
	if err := fsys.MkdirAll("lost/log", 0o700); err != nil {
		t.Fatal(err)
	}
	touch(t, fsys, "lost/log/segment")
	if _, err := Open(fsys, "lost"); !errors.Is(err, ErrLostIdentity) {
		t.Fatalf("a directory without an identity: %v", err)
	}
	if _, err := Look(fsys, "nothing"); err == nil {
		t.Fatal("looked at a directory that does not exist")
	}
	d := found(t, fsys)
	defer d.Close()
	if _, err := Open(fsys, "data"); !errors.Is(err, ErrLocked) {
		t.Fatalf("opened twice: %v", err)
	}
}

// A crash at any step of founding and of replacing the state leaves a directory that opens, either with no identity and
// free to be founded, or with an identity and one whole state.
func TestCrashes(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		fsys := vfs.NewCrashableMem()
		var crashed *vfs.MemFS
		at := r.IntN(6)
		step := func(n int) {
			if n == at {
				crashed = fsys.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(101), RNG: r})
			}
		}
		d, err := Open(fsys, "data")
		if err != nil {
			t.Fatal(err)
		}
		step(0)
		if err := d.Create(Identity{MemberID: 7}, func(dir string) error {
			touch(t, fsys, fsys.PathJoin(dir, "whole"))
			if err := syncDir(fsys, dir); err != nil {
				t.Fatal(err)
			}
			step(1)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		step(2)
		staged := fsys.PathJoin(d.Incoming(), "x")
		if err := fsys.MkdirAll(staged, 0o700); err != nil {
			t.Fatal(err)
		}
		touch(t, fsys, fsys.PathJoin(staged, "whole"))
		if err := syncDir(fsys, staged); err != nil {
			t.Fatal(err)
		}
		if err := syncDir(fsys, d.Incoming()); err != nil {
			t.Fatal(err)
		}
		step(3)
		if _, err := d.Replace(staged); err != nil {
			t.Fatal(err)
		}
		step(4)
		if err := d.Prune(); err != nil {
			t.Fatal(err)
		}
		step(5)
		again, err := Open(crashed, "data")
		if err != nil {
			t.Fatalf("seed %d, step %d: %v", seed, at, err)
		}
		if at >= 2 && again.Identity == nil {
			t.Fatalf("seed %d, step %d: the identity is lost", seed, at)
		}
		if again.Identity == nil {
			continue
		}
		state, err := again.State()
		if err != nil {
			t.Fatalf("seed %d, step %d: %v", seed, at, err)
		}
		if _, err := crashed.Stat(crashed.PathJoin(state, "whole")); err != nil {
			t.Fatalf("seed %d, step %d: the state %s is not whole: %v", seed, at, state, err)
		}
	}
}

// That there is a log is remembered.
func TestLogMade(t *testing.T) {
	fsys := vfs.NewCrashableMem()
	d := found(t, fsys)
	if d.Identity.HasLog {
		t.Fatal("a new member has a log")
	}
	if err := d.LogMade(); err != nil {
		t.Fatal(err)
	}
	after := fsys.CrashClone(vfs.CrashCloneCfg{})
	if d, err := Open(after, "data"); err != nil || !d.Identity.HasLog || d.Identity.MemberID != 7 {
		t.Fatalf("after a crash: %+v, %v", d, err)
	}
}

// A STATE file that names no state folder is refused: the folder it led to would be somebody else's.
func TestDamagedState(t *testing.T) {
	for _, text := range []string{"", "\n", "nowhere", "state-", "state-0", "state-01", "state-1/../..", "../state-1"} {
		fsys := vfs.NewMem()
		d := found(t, fsys)
		if err := d.writeFile(stateName, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if name, err := d.State(); err == nil {
			t.Errorf("%q stands for %s", text, name)
		}
		d.Close()
		if _, err := Open(fsys, "data"); err == nil || !strings.Contains(err.Error(), "STATE is damaged") {
			t.Errorf("opened with %q: %v", text, err)
		}
		if _, err := fsys.Stat("data/state-1/first"); err != nil {
			t.Errorf("with %q: %v", text, err)
		}
	}
}
