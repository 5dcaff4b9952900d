// Package wire takes apart what Trivet encodes for itself: commands in the log, rows of the state, messages between members.
// They are all made of bytes, of numbers as encoding/binary's varints, and of strings and lists behind their length.
package wire

import "encoding/binary"

// Reader reads from the front of what NewReader was given. After the first failure it returns zeros, so that it is enough to
// ask Whole once, at the end. It is copied freely: a copy reads on by itself.
type Reader struct {
	left   []byte
	failed bool
}

// NewReader reads b, which it does not copy.
func NewReader(b []byte) Reader { return Reader{left: b} }

// Fail notes that what was read makes no sense.
func (r *Reader) Fail() { r.left, r.failed = nil, true }

// Failed tells whether anything has failed so far.
func (r *Reader) Failed() bool { return r.failed }

// Whole tells whether nothing has failed and nothing is left.
func (r *Reader) Whole() bool { return !r.failed && len(r.left) == 0 }

// Len is how many bytes are left.
func (r *Reader) Len() int { return len(r.left) }

// Byte reads one byte.
func (r *Reader) Byte() byte {
	if len(r.left) == 0 {
		r.Fail()
		return 0
	}
	v := r.left[0]
	r.left = r.left[1:]
	return v
}

// Uint64 reads a number of eight bytes, the highest first.
func (r *Reader) Uint64() uint64 {
	if len(r.left) < 8 {
		r.Fail()
		return 0
	}
	v := binary.BigEndian.Uint64(r.left)
	r.left = r.left[8:]
	return v
}

// Uvarint reads a number without a sign.
func (r *Reader) Uvarint() uint64 {
	v, n := binary.Uvarint(r.left)
	if n <= 0 {
		r.Fail()
		return 0
	}
	r.left = r.left[n:]
	return v
}

// Varint reads a number with a sign.
func (r *Reader) Varint() int64 {
	v, n := binary.Varint(r.left)
	if n <= 0 {
		r.Fail()
		return 0
	}
	r.left = r.left[n:]
	return v
}

// Bytes reads a string: a piece of the input. It is nil if it is empty, so that what was left out stays left out.
func (r *Reader) Bytes() []byte {
	n := r.Uvarint()
	if n > uint64(len(r.left)) {
		r.Fail()
		return nil
	}
	if n == 0 {
		return nil
	}
	v := r.left[:n:n]
	r.left = r.left[n:]
	return v
}

// Count reads the length of a list whose elements take a byte each at least, so that a short input cannot ask for a huge
// allocation.
func (r *Reader) Count() int {
	n := r.Uvarint()
	if n > uint64(len(r.left)) {
		r.Fail()
		return 0
	}
	return int(n)
}
