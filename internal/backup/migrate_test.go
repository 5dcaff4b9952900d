package backup_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/backup"
	"github.com/trivet-kv/trivet/internal/datadir"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/member"
	"github.com/trivet-kv/trivet/internal/mvcc"
	"github.com/trivet-kv/trivet/internal/rpc"
)

// Directories of etcd servers that were killed: the last entries of each are in its log alone. All were filled by the same
// calls, the last of them by a user of few rights, one of whose puts was refused. The hashes are what each answered before.
var killed = []struct {
	version string
	hash    uint32
}{{"3.4", 1949847455}, {"3.5.21", 1641950175}, {"3.6.5", 1538250487}, {"3.7.3", 3222294111}}

func TestMigrate(t *testing.T) {
	for _, k := range killed {
		t.Run(k.version, func(t *testing.T) {
			from := filepath.Join(t.TempDir(), "etcd")
			if err := os.CopyFS(from, os.DirFS(filepath.Join("testdata", "etcd-"+k.version))); err != nil {
				t.Fatal(err)
			}
			before := tree(t, from)
			p := backup.Place{
				DataDir: filepath.Join(t.TempDir(), "new"), Identity: datadir.Identity{Name: "m1"},
				Members: []member.Member{{ID: 1, Name: "m1"}}, ConfState: []byte("conf"),
			}
			m, err := backup.Migrate(t.Context(), backup.EtcdDir{Path: from, Wait: time.Millisecond, Translate: rpc.Logged}, p)
			if err != nil {
				t.Fatal(err)
			}
			if after := tree(t, from); after != before {
				t.Errorf("the directory has changed:\n%s\nwas:\n%s", after, before)
			}
			if m.Entries == 0 || m.LastIndex != m.StateIndex+uint64(m.Entries) || m.Revision != 18 || m.Compact != 6 ||
				m.Keys != 8 || m.Leases != 1 || m.Users != 2 || m.Roles != 1 || !m.Auth {
				t.Errorf("told %+v", m)
			}
			s := opened(t, p.DataDir)
			if hash, compact, _, err := s.Store.HashKV(t.Context(), 18); hash != k.hash || compact != 6 || err != nil {
				t.Errorf("hash %d, compacted at %d, %v; etcd said %d", hash, compact, err, k.hash)
			}
			for key, want := range map[string]string{"a1": "w1", "a3": "", "tail1": "", "tail2": "y", "k1": "x", "zz": "", "withlease": "x"} {
				r, _, err := s.Store.Range(kv.RangeOptions{Range: kv.Range{Key: []byte(key)}})
				if err != nil || len(r.KVs) > 1 || (len(r.KVs) == 1) != (want != "") || want != "" && string(r.KVs[0].Value) != want {
					t.Errorf("%s: %v, %v; want %q", key, r.KVs, err, want)
				}
			}
			keys, err := s.Leases.Keys(s.Engine, s.Leases.IDs()[0])
			if err != nil || len(keys) != 1 || string(keys[0]) != "withlease" {
				t.Errorf("the lease has the keys %q, %v", keys, err)
			}
		})
	}
}

func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		info, _ := d.Info()
		b.WriteString(path + info.ModTime().String() + info.Mode().String() + string(content))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func opened(t *testing.T, dir string) *fsm.State {
	t.Helper()
	d, err := datadir.Look(vfs.Default, dir)
	if err != nil {
		t.Fatal(err)
	}
	path, err := d.State()
	if err != nil {
		t.Fatal(err)
	}
	e, err := engine.Open(engine.Options{Dir: path, MustExist: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	s, err := fsm.Open(e, mvcc.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestMigrateDamaged changes the files: what is refused leaves nothing behind.
func TestMigrateDamaged(t *testing.T) {
	from := filepath.Join(t.TempDir(), "etcd")
	if err := os.CopyFS(from, os.DirFS(filepath.Join("testdata", "etcd-3.7.3"))); err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	try := func() error {
		t.Helper()
		p := backup.Place{DataDir: filepath.Join(to, "new"), Identity: datadir.Identity{Name: "m1"}, ConfState: []byte("conf")}
		_, err := backup.Migrate(t.Context(), backup.EtcdDir{Path: from, Wait: time.Millisecond, Translate: rpc.Logged}, p)
		left, readErr := os.ReadDir(to)
		if readErr != nil || err != nil && len(left) > 0 {
			t.Fatalf("%v, and left is %v, %v", err, left, readErr)
		}
		return errors.Join(err, os.RemoveAll(p.DataDir))
	}
	for _, name := range []string{"snap/db", "wal/0000000000000000-0000000000000000.wal"} {
		path := filepath.Join(from, "member", filepath.FromSlash(name))
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		refused := 0
		for i := range 60 {
			changed := append([]byte{}, whole...)
			changed[i*len(whole)/60] ^= 0x55
			if err := os.WriteFile(path, changed, 0o600); err != nil {
				t.Fatal(err)
			}
			if try() != nil {
				refused++
			}
		}
		if refused == 0 {
			t.Errorf("%s: no change was noticed", name)
		}
		if err := os.WriteFile(path, whole[:len(whole)/3], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := try(); err == nil && name == "snap/db" {
			t.Errorf("%s: cut short, and taken", name)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if try() == nil {
			t.Errorf("%s: gone, and taken", name)
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := try(); err != nil {
		t.Error(err)
	}
}
