package engine

import (
	"bytes"
	"encoding/binary"

	"github.com/cockroachdb/pebble/v2"
)

// comparerName is written into every state directory. A change of order needs a new name.
const comparerName = "trivet.v1"

// split returns how many bytes of a row's key are its prefix. Only version rows have a suffix (the revision), and their
// last byte says how long it is. A row that merely begins like one (a bound made of the prefix byte alone) has none.
func split(row []byte) int {
	if len(row) == 0 || row[0] != PrefixVersion {
		return len(row)
	}
	if n := int(row[len(row)-1]); n < len(row) {
		return len(row) - n
	}
	return len(row)
}

// compare orders by prefix first, then by suffix. Version suffixes hold complemented numbers, so that plain byte order
// puts the newest first.
func compare(a, b []byte) int {
	an, bn := split(a), split(b)
	if c := bytes.Compare(a[:an], b[:bn]); c != 0 {
		return c
	}
	return bytes.Compare(a[an:], b[bn:])
}

// abbreviate returns the first eight bytes of the prefix. The suffix must not take part: rows of the user key that
// continues with a zero byte sort after every version of the shorter one.
func abbreviate(row []byte) uint64 {
	row = row[:split(row)]
	if len(row) >= 8 {
		return binary.BigEndian.Uint64(row)
	}
	var v uint64
	for _, b := range row {
		v = v<<8 | uint64(b)
	}
	return v << (8 * uint(8-len(row)))
}

// separator appends a short row s with a ≤ s < b. A shortened version row gets the zero byte that ends a bare prefix, so
// that split understands it; where that would break the order, a itself is the answer.
func separator(dst, a, b []byte) []byte {
	an, bn := split(a), split(b)
	if an == len(a) && bn == len(b) && (len(a) == 0 || a[0] != PrefixVersion) {
		return pebble.DefaultComparer.Separator(dst, a, b)
	}
	if bytes.Equal(a[:an], b[:bn]) {
		return append(dst, a...)
	}
	n := len(dst)
	dst = pebble.DefaultComparer.Separator(dst, a[:an], b[:bn])
	if s := dst[n:]; len(s) < an {
		if s[0] == PrefixVersion {
			dst = append(dst, 0)
		}
		if s = dst[n:]; compare(a, s) <= 0 && compare(s, b) < 0 {
			return dst
		}
	}
	return append(dst[:n], a...)
}

// successor appends a short row ≥ a.
func successor(dst, a []byte) []byte {
	if len(a) == 0 || a[0] == 0xff {
		return append(dst, a...)
	}
	return append(dst, a[0]+1)
}

func newComparer() *pebble.Comparer {
	return &pebble.Comparer{
		Name:                 comparerName,
		Split:                split,
		Compare:              compare,
		Equal:                bytes.Equal,
		ComparePointSuffixes: bytes.Compare,
		CompareRangeSuffixes: bytes.Compare,
		AbbreviatedKey:       abbreviate,
		Separator:            separator,
		Successor:            successor,
		ImmediateSuccessor:   func(dst, a []byte) []byte { return append(append(dst, a...), 0) },
		FormatKey:            pebble.DefaultComparer.FormatKey,
	}
}
