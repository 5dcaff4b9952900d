package datadir

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A crash before any operation of a rebuild leaves a directory that says that it is being rebuilt, or one whose state and
// log are both the old ones, or both the new ones.
func TestRebuildCrashes(t *testing.T) {
	for _, lost := range []string{"", "data/STATE", "data/state-1"} {
		for at := 0; rebuildCrashAt(t, lost, at); at++ {
			if at > 1000 {
				t.Fatal("it never ends")
			}
		}
	}
}

// rebuildCrashAt rebuilds a member without the file or folder named lost, and looks at what some crashes before operation
// at leave. It reports whether there was such an operation.
func rebuildCrashAt(t *testing.T, lost string, at int) bool {
	mem := vfs.NewCrashableMem()
	d := found(t, mem)
	put := func(fsys vfs.FS, dir, name string) {
		if err := fsys.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		touch(t, fsys, fsys.PathJoin(dir, name))
		if err := errors.Join(syncDir(fsys, dir), syncDir(fsys, fsys.PathDir(dir))); err != nil {
			t.Fatal(err)
		}
	}
	put(mem, d.Log(), "old")
	staged := mem.PathJoin(d.Incoming(), "x")
	put(mem, staged, "new")
	if err := errors.Join(d.LogMade(), syncDir(mem, d.path)); err != nil {
		t.Fatal(err)
	}
	if lost != "" {
		if err := errors.Join(mem.RemoveAll(lost), syncDir(mem, d.path)); err != nil {
			t.Fatal(err)
		}
	}
	var crashed []*vfs.MemFS
	n := 0
	fsys := &stepFS{FS: mem, step: func() {
		if n == at {
			for seed := range uint64(20) {
				r := rand.New(rand.NewPCG(seed, uint64(at)))
				crashed = append(crashed, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 30, 60, 100}[seed%4], RNG: r}))
			}
		}
		n++
	}}
	d.fs = fsys
	err := d.BeginRebuild("damage")
	if err == nil {
		_, err = d.Replace(staged)
	}
	if err == nil {
		err = d.SetLogAside()
	}
	if err == nil {
		put(fsys, d.Log(), "new")
		err = errors.Join(d.EndRebuild(), d.Prune())
	}
	if err != nil {
		t.Fatal(err)
	}
	for i, fs := range crashed {
		again, err := Open(fs, "data")
		if err == nil {
			err = again.UseLog("")
		}
		if err != nil {
			t.Fatalf("operation %d, crash %d: %v", at, i, err)
		}
		if again.Identity.Rebuild != "" {
			continue
		}
		has := func(dir, name string) bool {
			_, err := fs.Stat(fs.PathJoin(dir, name))
			return err == nil
		}
		state, err := again.State()
		fresh := err == nil && has(state, "new")
		if fresh != has(again.Log(), "new") || fresh == has(again.Log(), "old") || has(again.Log()+damagedLogSuffix, "old") {
			t.Fatalf("operation %d, crash %d: the state %s (new %t, %v) beside the other log", at, i, state, fresh, err)
		}
		if !fresh && lost == "" && err != nil {
			t.Fatalf("operation %d, crash %d: the old state is lost: %v", at, i, err)
		}
	}
	return n > at
}

// What is known of the members is found again.
func TestKeepMembers(t *testing.T) {
	fsys := vfs.NewCrashableMem()
	d := found(t, fsys)
	if b, err := d.KeptMembers(); b != nil || err != nil {
		t.Fatalf("%q, %v", b, err)
	}
	for _, text := range []string{"a", "b", "b"} {
		if err := d.KeepMembers([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	d, err := Open(fsys.CrashClone(vfs.CrashCloneCfg{}), "data")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := d.KeptMembers(); string(b) != "b" || err != nil {
		t.Fatalf("%q, %v", b, err)
	}
}
