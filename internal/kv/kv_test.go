package kv

import (
	"bytes"
	"testing"
)

func TestRangeContains(t *testing.T) {
	all := Range{Key: []byte{0}, End: []byte{0}}
	for _, c := range []struct {
		r    Range
		key  string
		want bool
	}{
		{Range{Key: []byte("a")}, "a", true},
		{Range{Key: []byte("a")}, "a\x00", false},
		{Range{Key: []byte("a"), End: []byte("c")}, "a", true},
		{Range{Key: []byte("a"), End: []byte("c")}, "b\xff", true},
		{Range{Key: []byte("a"), End: []byte("c")}, "c", false},
		{Range{Key: []byte("a"), End: []byte("c")}, "A", false},
		{Range{Key: []byte("b"), End: []byte{0}}, "b", true},
		{Range{Key: []byte("b"), End: []byte{0}}, "\xff", true},
		{Range{Key: []byte("b"), End: []byte{0}}, "a", false},
		{Range{Key: []byte("b"), End: []byte("a")}, "b", false},
		{all, "\x00", true},
		{all, "anything", true},
	} {
		if got := c.r.Contains([]byte(c.key)); got != c.want {
			t.Errorf("%q..%q contains %q: %v", c.r.Key, c.r.End, c.key, got)
		}
	}
}

// Order of revisions is by Main, then by Sub.
func TestRevisionLess(t *testing.T) {
	ordered := []Revision{{}, {1, 0}, {1, 1}, {2, 0}, {2, 7}, {10, 1}}
	for i, a := range ordered {
		for j, b := range ordered {
			if a.Less(b) != (i < j) {
				t.Errorf("%v before %v: %v", a, b, a.Less(b))
			}
		}
	}
}

// What a range contains is what lies between its ends, for every pair of ends.
func FuzzRange(f *testing.F) {
	f.Add([]byte("a"), []byte("c"), []byte("b"))
	f.Fuzz(func(t *testing.T, key, end, probe []byte) {
		r := Range{Key: key, End: end}
		want := bytes.Compare(probe, key) >= 0 && bytes.Compare(probe, end) < 0
		if r.Single() {
			want = bytes.Equal(probe, key)
		} else if r.FromKey() {
			want = bytes.Compare(probe, key) >= 0
		}
		if r.Contains(probe) != want {
			t.Fatalf("%q..%q contains %q: %v", key, end, probe, !want)
		}
	})
}
