package front

import "testing"

// Memory for a message is as long as asked for at least, and comes from where memory of its length was put.
func TestSlabs(t *testing.T) {
	var s slabs
	for _, n := range []int{inlineBytes + 1, 1 << 10, 1<<10 + 1, 32 << 10, 64 << 10, 64<<10 + 100, streamWindow - 1, streamWindow} {
		for range 3 {
			b := s.get(n)
			if len(*b) < n || len(*b) > streamWindow || n > 4<<10 && len(*b) > 4*n {
				t.Errorf("%d bytes for %d", len(*b), n)
			}
			s.put(b)
		}
	}
}
