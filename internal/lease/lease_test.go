package lease

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

func openEngine(t testing.TB, dir string) *engine.Engine {
	t.Helper()
	e, err := engine.Open(engine.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func openLeases(t testing.TB, e *engine.Engine) *Leases {
	t.Helper()
	l, err := Open(e)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// model is leases as a child would write them.
type model struct {
	leases map[kv.LeaseID]kv.Lease
	keys   map[kv.LeaseID]map[string]bool
}

func (m *model) clone() *model {
	c := &model{leases: maps.Clone(m.leases), keys: map[kv.LeaseID]map[string]bool{}}
	for id, keys := range m.keys {
		c.keys[id] = maps.Clone(keys)
	}
	return c
}

// step does one random thing to both and compares the answers.
func (m *model) step(t *testing.T, r *rand.Rand, l *Leases, b *engine.Batch, index uint64) {
	id := kv.LeaseID(r.Int64N(12))
	if r.IntN(8) == 0 {
		id = -id // clients may choose any number
	}
	key := fmt.Sprintf("key%d", r.IntN(9))
	_, exists := m.leases[id]
	var want, got error
	switch r.IntN(6) {
	case 0, 1:
		ttl := []int64{-5, 0, 1, 60, MaxTTL, MaxTTL + 1}[r.IntN(6)]
		got = l.Grant(b, kv.Lease{ID: id, TTL: ttl, Granted: index})
		switch {
		case id == 0:
			want = kv.ErrLeaseNotFound
		case ttl > MaxTTL:
			want = kv.ErrLeaseTTLTooLong
		case exists:
			want = kv.ErrLeaseExists
		default:
			m.leases[id] = kv.Lease{ID: id, TTL: max(1, ttl), Granted: index}
			m.keys[id] = map[string]bool{}
		}
	case 2:
		got = l.Revoke(b, id)
		if want = kv.ErrLeaseNotFound; exists {
			want = nil
			delete(m.leases, id)
			delete(m.keys, id)
		}
	case 3:
		remaining := r.Int64N(100) - 20
		got = l.Checkpoint(b, id, remaining)
		if want = kv.ErrLeaseNotFound; exists {
			want = nil
			c := m.leases[id]
			c.Remaining = min(max(0, remaining), c.TTL)
			m.leases[id] = c
		}
	case 4:
		got = l.Attach(b, []byte(key), id)
		if want = kv.ErrLeaseNotFound; exists {
			want = nil
			m.keys[id][key] = true
		}
	case 5:
		got = l.Detach(b, []byte(key), id)
		delete(m.keys[id], key)
	}
	if !errors.Is(got, want) {
		t.Fatalf("lease %d: error %v, want %v", id, got, want)
	}
	lease, ok := l.Get(id)
	if wanted, exists := m.leases[id]; ok != exists || lease != wanted {
		t.Fatalf("in the batch, lease %d is %+v %v, want %+v %v", id, lease, ok, wanted, exists)
	}
	m.compareKeys(t, l, b, id)
}

func (m *model) compareKeys(t *testing.T, l *Leases, r engine.Reader, id kv.LeaseID) {
	t.Helper()
	keys, err := l.Keys(r, id)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, k := range keys {
		got = append(got, string(k))
	}
	if want := slices.Sorted(maps.Keys(m.keys[id])); !slices.Equal(got, want) {
		t.Fatalf("lease %d has keys %q, want %q", id, got, want)
	}
}

// compare looks at what readers see.
func (m *model) compare(t *testing.T, l *Leases, e *engine.Engine) {
	t.Helper()
	if got, want := l.IDs(), slices.Sorted(maps.Keys(m.leases)); !slices.Equal(got, want) {
		t.Fatalf("leases %v, want %v", got, want)
	}
	if l.Len() != len(m.leases) {
		t.Fatalf("%d leases, want %d", l.Len(), len(m.leases))
	}
	seen := map[kv.LeaseID]kv.Lease{}
	l.Each(func(lease kv.Lease) { seen[lease.ID] = lease })
	if !maps.Equal(seen, m.leases) {
		t.Fatalf("leases %+v, want %+v", seen, m.leases)
	}
	for id, want := range m.leases {
		if got, ok := l.Lookup(id); !ok || got != want {
			t.Fatalf("lease %d is %+v %v, want %+v", id, got, ok, want)
		}
		m.compareKeys(t, l, e, id)
	}
}

// TestModel makes random batches, some of which are not committed, and opens the leases anew now and then.
func TestModel(t *testing.T) {
	seeds := uint64(4)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			dir := t.TempDir()
			e := openEngine(t, dir)
			defer func() { e.Close() }()
			l := openLeases(t, e)
			m := &model{leases: map[kv.LeaseID]kv.Lease{}, keys: map[kv.LeaseID]map[string]bool{}}
			for batch := range 300 {
				b, before := e.NewBatch(), m.clone()
				for range r.IntN(20) {
					m.step(t, r, l, b, uint64(batch))
				}
				before.compare(t, l, e) // nothing is seen before it is published
				if r.IntN(10) == 0 {
					l.Discard()
					m = before
				} else {
					if err := b.Commit(); err != nil {
						t.Fatal(err)
					}
					l.Publish()
				}
				b.Close()
				m.compare(t, l, e)
				switch r.IntN(40) {
				case 0:
					if err := errors.Join(e.Flush(), e.Close()); err != nil {
						t.Fatal(err)
					}
					e = openEngine(t, dir)
					fallthrough
				case 1:
					l = openLeases(t, e)
					m.compare(t, l, e)
				}
			}
		})
	}
}

// TestMalformedRow: a row of another format is refused with its bytes, not taken for a lease.
func TestMalformedRow(t *testing.T) {
	good := encode(nil, kv.Lease{TTL: 60, Remaining: 7, Granted: 9})
	if got, err := decode(good); err != nil || got != (terms{60, 7, 9}) {
		t.Fatalf("decoded %+v, %v", got, err)
	}
	bad := [][]byte{nil, {2, 60, 0, 0}, {1}, {1, 60}, {1, 60, 61, 0}, {1, 0, 0, 0}, append(slices.Clone(good), 0)}
	for _, b := range bad {
		if _, err := decode(b); !errors.Is(err, engine.ErrMalformed) {
			t.Errorf("row %x: error %v", b, err)
		}
	}
	e := openEngine(t, t.TempDir())
	defer e.Close()
	b := e.NewBatch()
	if err := errors.Join(b.Set(engine.AppendLease(nil, 5), []byte{9}), b.Commit(), b.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(e); !errors.Is(err, engine.ErrMalformed) {
		t.Fatalf("opened with error %v", err)
	}
}

const million = 1_000_000

func grantMany(b *testing.B, e *engine.Engine, l *Leases, n int) {
	for i := 0; i < n; {
		batch := e.NewBatch()
		for range min(1000, n-i) {
			i++
			if err := l.Grant(batch, kv.Lease{ID: kv.LeaseID(i), TTL: 60, Granted: uint64(i)}); err != nil {
				b.Fatal(err)
			}
		}
		if err := batch.Commit(); err != nil {
			b.Fatal(err)
		}
		l.Publish()
		batch.Close()
	}
}

// BenchmarkMillion measures granting, opening and listing a million leases.
func BenchmarkMillion(b *testing.B) {
	e := openEngine(b, b.TempDir())
	defer e.Close()
	l := openLeases(b, e)
	b.Run("grant", func(b *testing.B) {
		for range b.N {
			if l.Len() > 0 {
				b.Skip("once is enough")
			}
			grantMany(b, e, l, million)
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/million, "ns/lease")
		}
	})
	b.Run("open", func(b *testing.B) {
		for range b.N {
			if l := openLeases(b, e); l.Len() != million {
				b.Fatalf("%d leases", l.Len())
			}
		}
	})
	b.Run("list", func(b *testing.B) {
		for range b.N {
			l.IDs()
		}
	})
	b.Run("lookup", func(b *testing.B) {
		for i := range b.N {
			l.Lookup(kv.LeaseID(i%million + 1))
		}
	})
}
