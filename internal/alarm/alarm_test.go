package alarm

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

func open(t *testing.T, fs vfs.FS) (*engine.Engine, *Alarms) {
	t.Helper()
	e, err := engine.Open(engine.Options{FS: fs, Dir: "state"})
	if err != nil {
		t.Fatal(err)
	}
	a, err := Open(e)
	if err != nil {
		t.Fatal(err)
	}
	return e, a
}

// Against a map: batches that are committed or given up, and reopening now and then.
func TestModel(t *testing.T) {
	type name struct {
		t  kv.AlarmType
		id uint64
	}
	r := rand.New(rand.NewPCG(3, 1))
	fs := vfs.NewMem()
	e, a := open(t, fs)
	model := map[name]bool{} // to whether it is the member's own
	for step := range 400 {
		b := e.NewBatch()
		next := map[name]bool{}
		for n, own := range model {
			next[n] = own
		}
		for range r.IntN(4) {
			want := kv.Alarm{Type: kv.AlarmType(r.IntN(4) - 1), MemberID: uint64(r.IntN(3)), Own: r.IntN(2) == 0}
			n := name{want.Type, want.MemberID}
			own, raised := next[n]
			if r.IntN(2) == 0 {
				got, err := a.Raise(b, want)
				next[n] = want.Own && (own || !raised)
				if err != nil || got.Own != next[n] || got.Type != n.t || got.MemberID != n.id {
					t.Fatalf("step %d: raise %+v over %v %v: %+v, %v", step, want, own, raised, got, err)
				}
				continue
			}
			cleared, err := a.Clear(b, want)
			if err != nil || cleared != (raised && (own || !want.Own)) {
				t.Fatalf("step %d: clear %+v over %v %v: %v, %v", step, want, own, raised, cleared, err)
			}
			if cleared {
				delete(next, n)
			}
		}
		if r.IntN(4) == 0 {
			a.Discard()
		} else {
			if err := b.Commit(); err != nil {
				t.Fatal(err)
			}
			a.Publish()
			model = next
		}
		b.Close()
		if r.IntN(20) == 0 {
			if err := errors.Join(e.Flush(), e.Close()); err != nil {
				t.Fatal(err)
			}
			e, a = open(t, fs)
		}
		all := a.All()
		if len(all) != len(model) {
			t.Fatalf("step %d: %+v, want %v", step, all, model)
		}
		for _, got := range all {
			if own, ok := model[name{got.Type, got.MemberID}]; !ok || own != got.Own {
				t.Fatalf("step %d: %+v, want %v", step, all, model)
			}
		}
		if !slices.IsSortedFunc(all, compare) {
			t.Fatalf("step %d: not in order: %+v", step, all)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestBound(t *testing.T) {
	e, a := open(t, vfs.NewMem())
	defer e.Close()
	b := e.NewBatch()
	defer b.Close()
	for i := range MaxAlarms {
		if _, err := a.Raise(b, kv.Alarm{Type: 1, MemberID: uint64(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Raise(b, kv.Alarm{Type: 1, MemberID: MaxAlarms}); !errors.Is(err, kv.ErrTooManyRequests) {
		t.Fatal(err)
	}
	if _, err := a.Raise(b, kv.Alarm{Type: 1, MemberID: 3}); err != nil {
		t.Fatal(err)
	}
}
