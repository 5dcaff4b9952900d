package wire

import (
	"bytes"
	"encoding/binary"
	"math"
	"testing"
)

// What was appended comes back, in order; every cut of it fails, and reads as zeros from there on.
func TestReader(t *testing.T) {
	b := []byte{7}
	b = binary.AppendUvarint(b, math.MaxUint64)
	b = binary.AppendVarint(b, math.MinInt64)
	b = binary.BigEndian.AppendUint64(b, 42)
	b = append(binary.AppendUvarint(b, 3), "abc"...)
	b = binary.AppendUvarint(b, 0)
	b = append(binary.AppendUvarint(b, 2), 1, 2)
	read := func(b []byte) (r Reader, whole bool) {
		r = NewReader(b)
		if first := r.Byte(); first != 7 && first != 0 {
			t.Errorf("byte %d", first)
		}
		u, v, f, s, none, n := r.Uvarint(), r.Varint(), r.Uint64(), r.Bytes(), r.Bytes(), r.Count()
		if r.Failed() {
			return r, false
		}
		if u != math.MaxUint64 || v != math.MinInt64 || f != 42 || string(s) != "abc" || cap(s) != 3 || none != nil || n != 2 || r.Len() < 2 {
			t.Errorf("%d %d %d %q %q %d", u, v, f, s, none, n)
		}
		if r.Whole() {
			t.Error("whole, with two bytes left")
		}
		if r.Byte() != 1 || r.Byte() != 2 {
			t.Error("the elements of the list are wrong")
		}
		return r, r.Whole()
	}
	if _, whole := read(b); !whole {
		t.Error("all of it was refused")
	}
	for cut := range b {
		r, whole := read(b[:cut])
		if whole || !r.Failed() {
			t.Errorf("%d bytes of %d are whole", cut, len(b))
		}
		if r.Byte() != 0 || r.Uvarint() != 0 || r.Varint() != 0 || r.Uint64() != 0 || r.Bytes() != nil || r.Count() != 0 || r.Len() != 0 {
			t.Errorf("cut at %d: something was read after the failure", cut)
		}
	}
	if r, whole := read(append(bytes.Clone(b), 0)); whole || r.Failed() {
		t.Error("a byte too many went unnoticed")
	}
	if r := NewReader(binary.AppendUvarint(nil, 1<<40)); r.Count() != 0 || !r.Failed() {
		t.Error("a list longer than the input")
	}
}
