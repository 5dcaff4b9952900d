package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/bbolt"

	"github.com/trivet-kv/trivet/internal/backup/bolt"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/member"
	"github.com/trivet-kv/trivet/internal/mvcc"
)

type nobody struct{}

func (nobody) Wants(_, _ uint64) bool { return false }

func newState(t *testing.T) *fsm.State {
	t.Helper()
	e, err := engine.Open(engine.Options{FS: vfs.NewMem(), Dir: "state"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	if err := fsm.Bootstrap(e, []member.Member{{ID: 0xab, Name: "a", PeerURLs: []string{"http://a:2380"}}}, []byte("conf")); err != nil {
		t.Fatal(err)
	}
	s, err := fsm.Open(e, mvcc.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func apply(t *testing.T, s *fsm.State, c *command.Command) {
	t.Helper()
	e := command.Entry{Index: s.Applied.Index + 1, Term: 3, Data: command.AppendBatch(nil, 1, [][]byte{c.Append(nil)})}
	if _, err := s.Apply([]command.Entry{e}, nobody{}); err != nil {
		t.Fatal(err)
	}
}

var exportOptions = Options{
	StorageVersion: func(string) string { return "3.7.0" }, Pause: func() error { return nil },
	Members: func(b []byte) ([]uint64, []uint64, error) { return []uint64{0xab}, nil, nil },
}

func exported(t *testing.T, s *fsm.State) string {
	t.Helper()
	rows, err := s.Engine.NewSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	path := filepath.Join(t.TempDir(), "db")
	if _, err := exportTo(t.Context(), rows, path, exportOptions); err != nil {
		t.Fatal(err)
	}
	return path
}

// exportTo writes a snapshot to a file, and sees that it is as long as was said.
func exportTo(ctx context.Context, rows *engine.Snapshot, path string, o Options) (mvcc.Dumped, error) {
	x, err := NewExport(ctx, rows, o)
	if err != nil {
		return mvcc.Dumped{}, err
	}
	f, err := os.Create(path)
	if err != nil {
		return mvcc.Dumped{}, err
	}
	d, err := x.Write(ctx, f)
	info, statErr := f.Stat()
	if err = errors.Join(err, statErr, f.Close()); err == nil && info.Size() != x.Bytes() {
		err = fmt.Errorf("%d bytes were written of %d", info.Size(), x.Bytes())
	}
	return d, err
}

// bucketRows reads a bucket of a file with our reader, and with the library, which must agree.
func bucketRows(t *testing.T, path, name string) [][2]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	all, err := db.Buckets()
	if err != nil {
		t.Fatal(err)
	}
	var ours, theirs [][2]string
	for _, b := range all {
		if b.Name == name {
			if err := b.Each(func(k, v []byte) error { ours = append(ours, [2]string{string(k), string(v)}); return nil }); err != nil {
				t.Fatal(err)
			}
		}
	}
	lib, err := bbolt.Open(path, 0o400, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer lib.Close()
	if err := lib.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			t.Error(err)
		}
		return tx.Bucket([]byte(name)).ForEach(func(k, v []byte) error { theirs = append(theirs, [2]string{string(k), string(v)}); return nil })
	}); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(ours) != fmt.Sprint(theirs) {
		t.Fatalf("bucket %s: the library reads %d rows, package bolt %d, or others", name, len(theirs), len(ours))
	}
	return ours
}

// TestExport changes a state at random and holds the file against a model that keeps every change that etcd would: it
// knows nothing of rows. Deletion of compacted history has come a random way.
func TestExport(t *testing.T) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := newState(t)
		type change struct {
			rev kv.Revision
			key string
			del bool
		}
		var history []change
		live := map[string]bool{}
		compact := int64(-1)
		for range 400 {
			key := fmt.Sprintf("k%02d", r.IntN(30))
			switch n := r.IntN(20); {
			case n == 0:
				rev := s.Store.Revision() - r.Int64N(5)
				if rev > compact && rev > 0 {
					apply(t, s, &command.Command{Compact: &command.Compact{Revision: rev}})
					compact = rev
				}
			case n == 1:
				if _, _, err := s.Store.CompactStep(context.Background(), 1+r.IntN(20)); err != nil {
					t.Fatal(err)
				}
			case n < 6:
				apply(t, s, &command.Command{DeleteRange: &command.DeleteRange{Range: kv.Range{Key: []byte(key)}}})
				if live[key] {
					history = append(history, change{kv.Revision{Main: s.Store.Revision()}, key, true})
					delete(live, key)
				}
			default:
				value := bytes.Repeat([]byte{byte(n)}, r.IntN(9000)/(1+r.IntN(100)))
				apply(t, s, &command.Command{Put: &command.Put{Key: []byte(key), Value: value}})
				history = append(history, change{kv.Revision{Main: s.Store.Revision()}, key, false})
				live[key] = true
			}
		}
		newest := map[string]int64{} // of each key, at the compact revision
		for _, c := range history {
			if c.rev.Main <= compact {
				newest[c.key] = c.rev.Main
			}
		}
		var want []string
		for _, c := range history {
			row := string(appendRevision(nil, c.rev))
			if c.del {
				row += string(rune(tombstoneMark))
			}
			if c.rev.Main > compact || newest[c.key] == c.rev.Main && (!c.del || c.rev.Main == compact) {
				want = append(want, row)
			}
		}
		path := exported(t, s)
		rows := bucketRows(t, path, bucketKey)
		var got []string
		for _, row := range rows {
			got = append(got, row[0])
		}
		if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
			t.Fatalf("seed %d: the file has\n%q\nwant\n%q", seed, got, want)
		}
		for _, name := range buckets {
			bucketRows(t, path, name)
		}
	}
}

// TestExportIsOneMoment writes while a snapshot is made: nothing of it is in the file.
func TestExportIsOneMoment(t *testing.T) {
	s := newState(t)
	for i := range 3000 {
		apply(t, s, &command.Command{Put: &command.Put{Key: fmt.Appendf(nil, "key%d", i), Value: make([]byte, 3000)}})
	}
	rows, err := s.Engine.NewSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	path := filepath.Join(t.TempDir(), "db")
	o, pauses := exportOptions, 0
	o.Pause = func() error {
		pauses++
		apply(t, s, &command.Command{Put: &command.Put{Key: []byte("later"), Value: []byte("x")}})
		apply(t, s, &command.Command{LeaseGrant: &command.LeaseGrant{ID: kv.LeaseID(pauses), TTL: 100}})
		apply(t, s, &command.Command{Compact: &command.Compact{Revision: s.Store.Revision()}})
		_, _, err := s.Store.CompactStep(context.Background(), 1000)
		return err
	}
	d, err := exportTo(t.Context(), rows, path, o)
	if err != nil {
		t.Fatal(err)
	}
	if got := bucketRows(t, path, bucketKey); len(got) != 3000 || d.Revision != 3001 || d.Compact != -1 || pauses < 2 {
		t.Errorf("%d changes at revision %d, compacted %d, with %d pauses", len(got), d.Revision, d.Compact, pauses)
	}
	if got := bucketRows(t, path, bucketLease); len(got) != 0 {
		t.Errorf("%d leases that were granted later", len(got))
	}
}

// TestExportFails ends with the errors of pauses and of whoever takes the file.
func TestExportFails(t *testing.T) {
	s := newState(t)
	for i := range 300 {
		apply(t, s, &command.Command{Put: &command.Put{Key: fmt.Appendf(nil, "key%d", i), Value: make([]byte, 1000)}})
	}
	rows, err := s.Engine.NewSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	x, err := NewExport(t.Context(), rows, exportOptions)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Write(t.Context(), writeFails{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("nobody took the file, and the error is %v", err)
	}
	o := exportOptions
	o.Pause = func() error { return os.ErrDeadlineExceeded }
	if _, err := NewExport(t.Context(), rows, o); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a pause failed, and the error is %v", err)
	}
}

type writeFails struct{}

func (writeFails) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
