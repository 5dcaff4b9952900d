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

func TestCovers(t *testing.T) {
	keys := []string{"\x00", "a", "a\x00", "b", "c"}
	var ranges []Range
	for _, k := range keys {
		for _, end := range append(keys, "") {
			ranges = append(ranges, Range{Key: []byte(k), End: []byte(end)})
		}
	}
	probes := [][]byte{}
	for _, k := range keys {
		probes = append(probes, []byte(k), []byte(k+"\x00"), []byte(k+"x"))
	}
	for _, r := range ranges {
		for _, o := range ranges {
			if !r.Covers(o) {
				continue
			}
			for _, k := range probes {
				if o.Contains(k) && !r.Contains(k) {
					t.Errorf("%q does not cover %q: %q", r, o, k)
				}
			}
		}
	}
	for _, c := range []struct {
		r, o [2]string
		want bool
	}{
		{[2]string{"a", "c"}, [2]string{"a", "c"}, true},
		{[2]string{"a", "c"}, [2]string{"b", "c"}, true},
		{[2]string{"a", "c"}, [2]string{"b", ""}, true},
		{[2]string{"a", "c"}, [2]string{"c", ""}, false},
		{[2]string{"a", "c"}, [2]string{"b", "d"}, false},
		{[2]string{"a", "c"}, [2]string{"b", "\x00"}, false},
		{[2]string{"a", "\x00"}, [2]string{"b", "\x00"}, true},
		{[2]string{"a", "\x00"}, [2]string{"b", "d"}, true},
		{[2]string{"a", ""}, [2]string{"a", ""}, true},
		{[2]string{"a", ""}, [2]string{"a", "b"}, false},
	} {
		r, o := Range{[]byte(c.r[0]), []byte(c.r[1])}, Range{[]byte(c.o[0]), []byte(c.o[1])}
		if got := r.Covers(o); got != c.want {
			t.Errorf("%q covers %q: %v", r, o, got)
		}
	}
}
