package datadir

import (
	"errors"
	"math/rand/v2"
	"os"
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

// stepFS calls step before every operation that changes what is on the disk.
type stepFS struct {
	vfs.FS
	step func()
}

func (f *stepFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f.step()
	file, err := f.FS.Create(name, c)
	return stepFile{file, f}, err
}

func (f *stepFS) OpenDir(name string) (vfs.File, error) {
	file, err := f.FS.OpenDir(name)
	return stepFile{file, f}, err
}

func (f *stepFS) Rename(from, to string) error {
	f.step()
	return f.FS.Rename(from, to)
}

func (f *stepFS) RemoveAll(name string) error {
	f.step()
	return f.FS.RemoveAll(name)
}

func (f *stepFS) MkdirAll(name string, perm os.FileMode) error {
	f.step()
	return f.FS.MkdirAll(name, perm)
}

type stepFile struct {
	vfs.File
	fs *stepFS
}

func (f stepFile) Write(p []byte) (int, error) {
	f.fs.step()
	return f.File.Write(p)
}

func (f stepFile) Sync() error {
	f.fs.step()
	return f.File.Sync()
}

// A crash before any operation of founding and of replacing the state leaves a directory that opens, either with no
// identity and free to be founded, or with an identity and one whole state; what had returned before the crash is there.
func TestCrashes(t *testing.T) {
	for at := 0; crashAt(t, at); at++ {
		if at > 1000 {
			t.Fatal("it never ends")
		}
	}
}

// crashAt founds a member and replaces its state, and looks at what some crashes before operation at leave, with various
// parts of what was not synced. It reports whether there was such an operation.
func crashAt(t *testing.T, at int) bool {
	mem := vfs.NewCrashableMem()
	var crashed []*vfs.MemFS
	var past, then string // the last call that had returned: now, and at the crash
	n := 0
	fsys := &stepFS{FS: mem, step: func() {
		if n == at {
			then = past
			for seed := range uint64(40) {
				r := rand.New(rand.NewPCG(seed, uint64(at)))
				crashed = append(crashed, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 30, 60, 100}[seed%4], RNG: r}))
			}
		}
		n++
	}}
	whole := func(dir string) {
		touch(t, fsys, fsys.PathJoin(dir, "whole"))
		if err := syncDir(fsys, dir); err != nil {
			t.Fatal(err)
		}
	}
	d, err := Open(fsys, "data")
	if err == nil {
		err = d.Create(Identity{MemberID: 7}, func(dir string) error { whole(dir); return nil })
	}
	past = "create"
	staged := fsys.PathJoin(d.Incoming(), "x")
	if err == nil {
		err = fsys.MkdirAll(staged, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	whole(staged)
	_, err = d.Replace(staged)
	past = "replace"
	if err := errors.Join(err, syncDir(fsys, d.Incoming()), d.Prune()); err != nil {
		t.Fatal(err)
	}
	for i, fs := range crashed {
		again, err := Open(fs, "data")
		if err != nil {
			t.Fatalf("operation %d, crash %d: %v", at, i, err)
		}
		if then != "" && again.Identity == nil {
			t.Fatalf("operation %d, crash %d: the identity is lost", at, i)
		}
		if again.Identity == nil {
			continue
		}
		state, err := again.State()
		if err != nil {
			t.Fatalf("operation %d, crash %d: %v", at, i, err)
		}
		if _, err := fs.Stat(fs.PathJoin(state, "whole")); err != nil {
			t.Fatalf("operation %d, crash %d: the state %s is not whole: %v", at, i, state, err)
		}
		if then == "replace" && fs.PathBase(state) != "state-2" {
			t.Fatalf("operation %d, crash %d: the new state is lost", at, i)
		}
	}
	return n > at
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
		d, err := Open(fsys, "data")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.State(); !errors.Is(err, ErrLostState) || !strings.Contains(err.Error(), "STATE is damaged") {
			t.Errorf("opened with %q: %v", text, err)
		}
		if _, err := fsys.Stat("data/state-1/first"); err != nil {
			t.Errorf("with %q: %v", text, err)
		}
		d.Close()
	}
}
