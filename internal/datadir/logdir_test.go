package datadir

import (
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// withLog founds a member whose log is in logDir, and stops it.
func withLog(t *testing.T, fsys vfs.FS, path, logDir string, id uint64) {
	t.Helper()
	d, err := Open(fsys, path)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.UseLog(logDir); err != nil {
		t.Fatal(err)
	}
	if err := d.Create(Identity{MemberID: id, Name: "a"}, func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := fsys.MkdirAll(d.Log(), 0o700); err != nil {
		t.Fatal(err)
	}
	touch(t, fsys, fsys.PathJoin(d.Log(), "0000000000000001.log"))
	if err := errors.Join(d.LogMade(), d.Close()); err != nil {
		t.Fatal(err)
	}
}

func useLog(t *testing.T, fsys vfs.FS, path, logDir string) error {
	t.Helper()
	d, err := Open(fsys, path)
	if err != nil {
		t.Fatal(err)
	}
	err = d.UseLog(logDir)
	return errors.Join(err, d.Close())
}

func TestUseLog(t *testing.T) {
	fsys := vfs.NewMem()
	withLog(t, fsys, "data", "/wal", 1)
	withLog(t, fsys, "other", "/otherwal", 2)
	withLog(t, fsys, "inside", "", 3)

	for _, c := range []struct{ path, logDir, want string }{
		{"data", "/wal", ""},
		{"inside", "", ""},
		{"data", "", "the log of this member is in /wal/log, not in data/log"},
		{"data", "/empty", "the log of this member is in /wal/log, not in /empty/log"},
		{"inside", "/empty", "the log of this member is in inside/log, not in /empty/log"},
		{"data", "/otherwal", `/otherwal holds the log of the member "a" (2 of the cluster 0)`},
		{"new", "/wal", "/wal holds the log of a member, and the data directory new is empty"},
	} {
		err := useLog(t, fsys, c.path, c.logDir)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with %q: %v", c.path, c.logDir, err)
		}
	}
	if d, err := Look(fsys, "data"); err != nil || d.Log() != "/wal/log" {
		t.Errorf("looked: %v", err)
	}
}

// The owner may move the log while the member is stopped; a copy left behind is refused, because one of the two is old.
func TestMovedLog(t *testing.T) {
	fsys := vfs.NewMem()
	withLog(t, fsys, "data", "", 1)
	if err := fsys.MkdirAll("/wal", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := fsys.Rename("data/log", "/wal/log"); err != nil {
		t.Fatal(err)
	}
	if err := useLog(t, fsys, "data", "/wal"); err != nil {
		t.Fatal(err)
	}
	if err := useLog(t, fsys, "data", "/wal"); err != nil {
		t.Fatal(err)
	}
	if err := fsys.MkdirAll("data/log", 0o700); err != nil {
		t.Fatal(err)
	}
	touch(t, fsys, "data/log/0000000000000001.log")
	if err := useLog(t, fsys, "data", ""); err == nil || !strings.Contains(err.Error(), "is in /wal/log") {
		t.Errorf("an old copy of the log was taken: %v", err)
	}
}

func TestLogDirIsLocked(t *testing.T) {
	fsys := vfs.NewMem()
	d, err := Open(fsys, "data")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.UseLog("/wal"); err != nil {
		t.Fatal(err)
	}
	if err := useLog(t, fsys, "other", "/wal"); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("two members took one directory: %v", err)
	}
}
