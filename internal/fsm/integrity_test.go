package fsm

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/mvcc"
)

func ran(t *testing.T, s *State, commands ...*command.Command) Outcome {
	t.Helper()
	out, err := s.Apply([]command.Entry{entry(s, commands...)}, nobody{})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func putOf(key, value string) *command.Command {
	return &command.Command{Put: &command.Put{Key: []byte(key), Value: []byte(value)}}
}

func lastNote(t *testing.T, s *State) command.Note {
	t.Helper()
	notes := s.Notes()
	if len(notes) == 0 {
		t.Fatal("nothing is noted")
	}
	return notes[len(notes)-1]
}

// Each of these makes two states that hold the same, but for what it did to the second one, differ at the next mark; and the
// one that is told what the other noted finds that it diverged.
func TestDivergence(t *testing.T) {
	again := func(_ int, s *State) { ran(t, s, putOf("k", "again")) }
	for name, do := range map[string]func(i int, s *State){
		"nothing":       again,
		"another value": func(i int, s *State) { ran(t, s, putOf("k", fmt.Sprint("v", i))) },
		"another key":   func(i int, s *State) { ran(t, s, putOf(fmt.Sprint("k", i), "v")) },
		"a key that was not there": func(i int, s *State) {
			if i == 1 {
				lose(t, s, "k")
			}
			again(i, s)
		},
		"a transaction that decides otherwise": func(i int, s *State) {
			ran(t, s, putOf("n", "1"))
			if i == 1 {
				lose(t, s, "n")
			}
			ran(t, s, &command.Command{Txn: &command.Txn{
				Compare: []command.Compare{{Range: kv.Range{Key: []byte("n")}, Target: command.CompareVersion, Result: command.Equal, Int: 1}},
				Success: []command.Op{{Put: &command.Put{Key: []byte("x")}}},
			}})
		},
		"a lease": func(i int, s *State) {
			ran(t, s, &command.Command{LeaseGrant: &command.LeaseGrant{ID: 7, TTL: int64(10 + i)}})
		},
		"a refusal": func(i int, s *State) {
			ran(t, s, &command.Command{LeaseRevoke: &command.LeaseRevoke{ID: kv.LeaseID(i)}}, putOf("k", "v"))
			ran(t, s, &command.Command{Put: &command.Put{Key: []byte("k"), Lease: kv.LeaseID(i)}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			var states []*State
			for i := range 2 {
				s := openState(t, vfs.NewMem())
				ran(t, s, putOf("k", "v"))
				do(i, s)
				ran(t, s, &command.Command{Mark: &command.Mark{}})
				states = append(states, s)
			}
			agreed := lastNote(t, states[0])
			want := name != "nothing"
			if own := lastNote(t, states[1]); own.Index != agreed.Index || (own.Hash != agreed.Hash) != want {
				t.Fatalf("%+v and %+v", agreed, own)
			}
			for i, s := range states {
				out := ran(t, s, &command.Command{Mark: &command.Mark{Agreed: agreed}})
				if found := out.Diverged != nil; found != (want && i == 1) {
					t.Errorf("state %d: diverged %t", i, found)
				}
			}
		})
	}
}

// lose takes a key out of a state behind its back, and reopens the state so that nothing in memory remembers it.
func lose(t *testing.T, s *State, key string) {
	t.Helper()
	b := s.Engine.NewBatch()
	it, err := s.Engine.NewIter(engine.VersionBounds(kv.Range{Key: []byte(key)}))
	if err != nil {
		t.Fatal(err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		if err := b.Delete(append([]byte(nil), it.Key()...)); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{it.Err(), it.Close(), b.Commit(), b.Close(), s.Engine.Flush()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	next, err := Open(s.Engine, mvcc.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.Store, s.Leases, s.Auth, s.Members, s.Alarms = next.Store, next.Leases, next.Auth, next.Members, next.Alarms
}

// A state that is older than hashes has none until a mark begins one, and goes on with that after it was opened again.
func TestOldStateBegins(t *testing.T) {
	s := openState(t, vfs.NewMem())
	b := s.Engine.NewBatch()
	for _, row := range [][]byte{rowSum, rowNotes} {
		if err := b.Delete(row); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	b.Close()
	old, err := Open(s.Engine, mvcc.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ran(t, old, putOf("k", "v"))
	ran(t, old, &command.Command{Mark: &command.Mark{}})
	if len(old.Notes()) != 0 || old.sum.hash != 0 {
		t.Fatalf("a hash of nothing: %+v", old.sum)
	}
	ran(t, old, &command.Command{Mark: &command.Mark{Restart: true}})
	begin := lastNote(t, old)
	if begin.Since != begin.Index || begin.Hash != 0 {
		t.Fatalf("it begins with %+v", begin)
	}
	ran(t, old, putOf("k", "w"))
	for range maxNotes + 1 {
		ran(t, old, &command.Command{Mark: &command.Mark{}})
	}
	opened, err := Open(s.Engine, mvcc.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if a, b := fmt.Sprint(old.sum), fmt.Sprint(opened.sum); a != b || len(opened.Notes()) != maxNotes {
		t.Fatalf("%s, and opened again %s", a, b)
	}
}

// BenchmarkMix is what the hash costs a put of 256 bytes.
func BenchmarkMix(b *testing.B) {
	e, err := engine.Open(engine.Options{FS: vfs.NewMem(), Dir: "state"})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	if err := Bootstrap(e, nil, []byte("conf")); err != nil {
		b.Fatal(err)
	}
	s, err := Open(e, mvcc.Options{})
	if err != nil {
		b.Fatal(err)
	}
	batch := e.NewBatch()
	defer batch.Close()
	a := s.newApplier(batch, nobody{})
	defer a.writer.Discard()
	a.entry = &command.Entry{Index: 2}
	txn := a.writer.Begin()
	if _, err := txn.Put([]byte("registry/some/key/of/usual/length"), make([]byte, 256), 0); err != nil {
		b.Fatal(err)
	}
	txn.End()
	for b.Loop() {
		a.mixer.events = 0
		a.mix(1, &command.Result{Revision: 1000})
	}
}
