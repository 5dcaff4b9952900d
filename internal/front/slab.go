package front

import (
	"slices"
	"sync"
)

// slabBytes are the lengths of the memory that messages are assembled in, up to streamWindow. The pools of grpc-go go from 32 KiB
// to 1 MiB in one step, and clear all of what they give, whatever of it is wanted.
var slabBytes = [...]int{1 << 10, 4 << 10, 16 << 10, 32 << 10, 72 << 10, streamWindow}

// slabs is such memory that is not in use, by its length.
type slabs [len(slabBytes)]sync.Pool

// get gives memory of at least n bytes, at most streamWindow, with anything in it.
func (s *slabs) get(n int) *[]byte {
	i, _ := slices.BinarySearch(slabBytes[:], n)
	if b, ok := s[i].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, slabBytes[i])
	return &b
}

// put takes back what get gave.
func (s *slabs) put(b *[]byte) {
	i, _ := slices.BinarySearch(slabBytes[:], len(*b))
	s[i].Put(b)
}
