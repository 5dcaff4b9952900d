package engine

import (
	"bytes"
	"cmp"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/trivet-kv/trivet/internal/kv"
)

// randomKey makes user keys that attack the encoding: zero bytes, bytes that look like suffix lengths, common prefixes.
func randomKey(r *rand.Rand) []byte {
	key := make([]byte, 1+r.IntN(6))
	for i := range key {
		key[i] = []byte{0, 0, 1, 12, 13, 14, 'k', 0xfe, 0xff}[r.IntN(9)]
	}
	return key
}

func randomRevision(r *rand.Rand) kv.Revision {
	return kv.Revision{Main: r.Int64N(4) * (1 << (r.IntN(60))), Sub: r.Int64N(1 << r.IntN(31))}
}

// randomRow makes any row that the store may hold or use as a bound.
func randomRow(r *rand.Rand) []byte {
	switch r.IntN(10) {
	case 0:
		return AppendVersionPrefix(nil, randomKey(r))
	case 1:
		return AppendRevision(nil, randomRevision(r))
	case 2:
		return AppendFence(nil, randomKey(r))
	case 3:
		return AppendAttachment(nil, kv.LeaseID(r.Int64()), randomKey(r))
	case 4:
		return []byte{"acklmnru"[r.IntN(8)]}
	case 5:
		return bytes.Clone([][]byte{metaApplied, metaCompact, metaRevision}[r.IntN(3)])
	}
	return AppendVersion(nil, randomKey(r), randomRevision(r))
}

// order is what the order of rows means, without their bytes.
func order(a, b []byte) int {
	ka, ra, errA := DecodeVersion(a)
	kb, rb, errB := DecodeVersion(b)
	if errA != nil || errB != nil {
		return bytes.Compare(a[:split(a)], b[:split(b)])
	}
	return cmp.Or(bytes.Compare(ka, kb), -cmp.Compare(ra.Main, rb.Main), -cmp.Compare(ra.Sub, rb.Sub))
}

// Rows sort by user key, then newest first, and the functions that Pebble is given agree with that order in every way it
// relies on.
func TestComparer(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	c := newComparer()
	for range 200_000 {
		a, b := randomRow(r), randomRow(r)
		got := c.Compare(a, b)
		_, _, errA := DecodeVersion(a)
		_, _, errB := DecodeVersion(b)
		if errA == nil && errB == nil && got != order(a, b) {
			t.Fatalf("compare(%x, %x) = %d, want %d", a, b, got, order(a, b))
		}
		if got != -c.Compare(b, a) || (got == 0) != c.Equal(a, b) {
			t.Fatalf("compare(%x, %x) = %d and back %d, equal %t", a, b, got, c.Compare(b, a), c.Equal(a, b))
		}
		pa, pb := a[:split(a)], b[:split(b)]
		if split(pa) != len(pa) {
			t.Fatalf("prefix %x of %x has prefix of length %d", pa, a, split(pa))
		}
		if got <= 0 && c.Compare(pa, pb) > 0 || c.Compare(pa, pb) < 0 && got >= 0 || len(pa) < len(a) && c.Compare(pa, a) >= 0 {
			t.Fatalf("prefixes of %x and %x are out of order", a, b)
		}
		if x, y := c.AbbreviatedKey(a), c.AbbreviatedKey(b); x < y && got >= 0 || x > y && got <= 0 {
			t.Fatalf("abbreviations of %x and %x are out of order", a, b)
		}
		if got < 0 {
			s := c.Separator([]byte("before"), a, b)
			if !bytes.HasPrefix(s, []byte("before")) {
				t.Fatalf("separator lost what was there: %q", s)
			}
			if s = s[6:]; c.Compare(a, s) > 0 || c.Compare(s, b) >= 0 || len(s) > len(a) {
				t.Fatalf("separator of %x and %x is %x", a, b, s)
			}
		}
		if s := c.Successor(nil, a); c.Compare(a, s) > 0 {
			t.Fatalf("successor of %x is %x", a, s)
		}
		if s := c.ImmediateSuccessor(nil, pa); split(s) != len(s) || c.Compare(a, s) >= 0 {
			t.Fatalf("immediate successor of %x is %x", pa, s)
		}
	}
}

// Comparison is transitive over what a store holds.
func TestComparerSorts(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for range 200 {
		rows := make([][]byte, 60)
		for i := range rows {
			rows[i] = randomRow(r)
		}
		slices.SortFunc(rows, compare)
		for i := range rows {
			for j := range i {
				if compare(rows[j], rows[i]) > 0 {
					t.Fatalf("%x sorted before %x", rows[j], rows[i])
				}
			}
		}
	}
}

// The bounds of a range hold the versions of its keys and no others.
func TestVersionBounds(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for range 50_000 {
		rg := kv.Range{Key: randomKey(r)}
		switch r.IntN(3) {
		case 0:
			rg.End = []byte{0}
		case 1:
			rg.End = randomKey(r)
		}
		key := randomKey(r)
		if r.IntN(4) == 0 {
			key = rg.Key
		}
		row := AppendVersion(nil, key, randomRevision(r))
		lower, upper := VersionBounds(rg)
		in := compare(lower, row) <= 0 && compare(row, upper) < 0
		if in != rg.Contains(key) {
			t.Fatalf("key %x in range %x: %t by bounds", key, rg, in)
		}
	}
}

// What is encoded is decoded.
func TestRowRoundTrips(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	for range 20_000 {
		key, rev := randomKey(r), randomRevision(r)
		if k, v, err := DecodeVersion(AppendVersion(nil, key, rev)); err != nil || !bytes.Equal(k, key) || v != rev {
			t.Fatal(k, v, err)
		}
		if v, err := DecodeRevision(AppendRevision(nil, rev)); err != nil || v != rev {
			t.Fatal(v, err)
		}
		c := Change{Type: kv.EventType(r.IntN(2)), Superseded: randomRevision(r), Frees: r.Uint32() >> r.IntN(40), Key: key}
		if got, err := DecodeChange(AppendChange(nil, c)); err != nil || got.Type != c.Type || got.Superseded != c.Superseded || got.Frees != c.Frees || !bytes.Equal(got.Key, key) {
			t.Fatal(got, err)
		}
		p := kv.KeyValue{CreateRevision: r.Int64(), Version: 1 + r.Int64N(300), Value: randomKey(r)[r.IntN(2):], Lease: kv.LeaseID(r.Int64N(2) * r.Int64())}
		tail, tombstone, err := DecodeVersionValue(AppendLiveValue(nil, p))
		if err != nil || tombstone {
			t.Fatal(tombstone, err)
		}
		got, err := DecodeTail(tail)
		if err != nil || got.Create != p.CreateRevision || got.Version != p.Version || !bytes.Equal(got.Value, p.Value) || got.Lease != p.Lease {
			t.Fatal(got, p, err)
		}
		id := kv.LeaseID(r.Int64())
		if l, k, err := DecodeAttachment(AppendAttachment(nil, id, key)); err != nil || l != id || !bytes.Equal(k, key) {
			t.Fatal(l, k, err)
		}
		g := Progress{Done: r.Int64(), Target: r.Int64(), Next: rev}
		if got, err := DecodeProgress(AppendProgress(nil, g)); err != nil || got != g {
			t.Fatal(got, err)
		}
	}
}

// No bytes make a decoder of keys panic, and what decodes encodes to the same bytes.
func FuzzKeys(f *testing.F) {
	r := rand.New(rand.NewPCG(5, 5))
	for range 50 {
		f.Add(randomRow(r))
	}
	f.Add(AppendLease(nil, 7))
	f.Add(AppendMember(nil, 7))
	f.Fuzz(func(t *testing.T, row []byte) {
		again := func(err error, encode func() []byte) {
			if err != nil {
				if !errors.Is(err, ErrMalformed) {
					t.Fatal(err)
				}
				return
			}
			if got := encode(); !bytes.Equal(got, row) {
				t.Fatalf("%x decodes and encodes to %x", row, got)
			}
		}
		if n := split(row); n < 0 || n > len(row) {
			t.Fatalf("split of %x is %d", row, n)
		}
		key, rev, err := DecodeVersion(row)
		again(err, func() []byte { return AppendVersion(nil, key, rev) })
		rev, err = DecodeRevision(row)
		again(err, func() []byte { return AppendRevision(nil, rev) })
		key, err = DecodeFence(row)
		again(err, func() []byte { return AppendFence(nil, key) })
		id, err := DecodeLease(row)
		again(err, func() []byte { return AppendLease(nil, id) })
		id, key, err = DecodeAttachment(row)
		again(err, func() []byte { return AppendAttachment(nil, id, key) })
		member, err := DecodeMember(row)
		again(err, func() []byte { return AppendMember(nil, member) })
	})
}

// No bytes make a decoder of values panic, and what decodes encodes to the same bytes.
func FuzzValues(f *testing.F) {
	f.Add(AppendLiveValue(nil, kv.KeyValue{CreateRevision: 300, Version: 2, Value: []byte("value"), Lease: 1 << 40}))
	f.Add(AppendTombstoneValue(nil))
	f.Add(AppendChange(nil, Change{Type: kv.Delete, Superseded: kv.Revision{Main: 1 << 40, Sub: 3}, Key: []byte("key")}))
	f.Add(AppendChange(nil, Change{Superseded: kv.Revision{Main: 5}, Frees: 300, Key: []byte("key")}))
	f.Add(AppendApplied(nil, 5, 6))
	f.Add(AppendProgress(nil, Progress{Done: 1, Target: 2}))
	f.Fuzz(func(t *testing.T, value []byte) {
		again := func(err error, encode func() []byte) {
			if err != nil {
				if !errors.Is(err, ErrMalformed) {
					t.Fatal(err)
				}
				return
			}
			if got := encode(); !bytes.Equal(got, value) {
				t.Fatalf("%x decodes and encodes to %x", value, got)
			}
		}
		if tail, tombstone, err := DecodeVersionValue(value); err == nil && !tombstone {
			x, err := DecodeTail(tail)
			if err == nil && x.Create >= 0 && x.Version >= 0 {
				again(nil, func() []byte {
					return AppendLiveValue(nil, kv.KeyValue{CreateRevision: x.Create, Version: x.Version, Value: x.Value, Lease: x.Lease})
				})
			}
			if err == nil && (x.Head > x.ValueEnd || x.ValueEnd > len(tail)) {
				t.Fatalf("tail %x: %+v", tail, x)
			}
		} else if err == nil {
			again(nil, func() []byte { return AppendTombstoneValue(nil) })
		}
		c, err := DecodeChange(value)
		again(err, func() []byte { return AppendChange(nil, c) })
		n, err := DecodeNumber(value)
		again(err, func() []byte { return AppendNumber(nil, n) })
		index, term, err := DecodeApplied(value)
		again(err, func() []byte { return AppendApplied(nil, index, term) })
		p, err := DecodeProgress(value)
		again(err, func() []byte { return AppendProgress(nil, p) })
	})
}
