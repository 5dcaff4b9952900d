package backup_test

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

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
		if err := try(); err == nil {
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

// writeLog writes a log as etcd does after a snapshot at index: a record of it, and entries behind it.
func writeLog(t *testing.T, index, commit uint64, entries ...*raftpb.Entry) (dir string) {
	t.Helper()
	var out []byte
	crc := uint32(0)
	put := func(kind uint64, data []byte) {
		crc = crc32.Update(crc, crc32.MakeTable(crc32.Castagnoli), data)
		b := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), kind)
		b = protowire.AppendVarint(protowire.AppendTag(b, 2, protowire.VarintType), uint64(crc))
		b = protowire.AppendBytes(protowire.AppendTag(b, 3, protowire.BytesType), data)
		pad := (8 - len(b)%8) % 8
		length := uint64(len(b))
		if pad > 0 {
			length |= uint64(0x80|pad) << 56
		}
		out = append(binary.LittleEndian.AppendUint64(out, length), append(b, make([]byte, pad)...)...)
	}
	message := func(kind uint64, m proto.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		put(kind, b)
	}
	put(4, nil)
	put(1, []byte("metadata"))
	put(5, protowire.AppendVarint([]byte{8}, index))
	for i, e := range entries {
		at, term := index+1+uint64(i), uint64(9)
		e.Index, e.Term = &at, &term
		message(2, e)
	}
	message(3, &raftpb.HardState{Commit: &commit})
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "0000000000000004-0000000000000001.wal"), append(out, make([]byte, 4096)...), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestMigrateTail takes a log that begins at a snapshot, with changes of members and empty entries between the writes.
func TestMigrateTail(t *testing.T) {
	from := filepath.Join(t.TempDir(), "etcd")
	if err := os.CopyFS(from, os.DirFS(filepath.Join("testdata", "etcd-3.7.3"))); err != nil {
		t.Fatal(err)
	}
	migrate := func(dir string) (backup.Migrated, string, error) {
		p := backup.Place{
			DataDir: filepath.Join(t.TempDir(), "new"), Identity: datadir.Identity{Name: "m1"},
			Members: []member.Member{{ID: 1, Name: "m1"}}, ConfState: []byte("conf"),
		}
		m, err := backup.Migrate(t.Context(), backup.EtcdDir{Path: from, WAL: dir, Wait: time.Millisecond, Translate: rpc.Logged}, p)
		return m, p.DataDir, err
	}
	whole, _, err := migrate("")
	if err != nil {
		t.Fatal(err)
	}
	at := whole.StateIndex
	none, _, err := migrate(writeLog(t, at, at))
	if err != nil {
		t.Fatal(err)
	}
	write := func(key, value string) *raftpb.Entry {
		b, err := proto.Marshal(&etcdserverpb.InternalRaftRequest{
			Header: &etcdserverpb.RequestHeader{ID: 7, Username: "root", AuthRevision: 1 << 40},
			Put:    &etcdserverpb.PutRequest{Key: []byte(key), Value: []byte(value)},
		})
		if err != nil {
			t.Fatal(err)
		}
		return &raftpb.Entry{Data: b}
	}
	conf, confV2 := raftpb.EntryConfChange, raftpb.EntryConfChangeV2
	tail := func() []*raftpb.Entry {
		return []*raftpb.Entry{
			{}, write("new1", "a"), {Type: &conf, Data: []byte{8, 1}}, write("new2", "b"), {Type: &confV2, Data: []byte{8, 1}}, write("new1", "c"),
		}
	}
	m, dir, err := migrate(writeLog(t, at, at+4, tail()...))
	if err != nil {
		t.Fatal(err)
	}
	if m.Entries != 6 || m.LastIndex != at+6 || m.LastTerm != 9 || m.Uncommitted != 2 || m.Revision != none.Revision+3 || m.Keys != none.Keys+2 {
		t.Errorf("told %+v, and without the log %+v", m, none)
	}
	s := opened(t, dir)
	for key, want := range map[string]string{"new1": "c", "new2": "b"} {
		r, _, err := s.Store.Range(kv.RangeOptions{Range: kv.Range{Key: []byte(key)}})
		if err != nil || len(r.KVs) != 1 || string(r.KVs[0].Value) != want {
			t.Errorf("%s: %v, %v", key, r.KVs, err)
		}
	}
	for what, dir := range map[string]string{
		"a log that ends before the database":         writeLog(t, at-8, at-2, tail()...),
		"a log that ends before what was committed":   writeLog(t, at, at+7, tail()...),
		"a log that begins behind the database":       writeLog(t, at+3, at+4, tail()...),
		"the state of another member half taken over": writeLog(t, at+3, at+3),
	} {
		if _, out, err := migrate(dir); err == nil || !strings.Contains(err.Error(), from) && !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", what, err)
		} else if left, err := os.ReadDir(filepath.Dir(out)); err != nil || len(left) > 0 {
			t.Errorf("%s: left is %v, %v", what, left, err)
		}
	}
}
