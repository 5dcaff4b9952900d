package load

import (
	"math/bits"
	"time"
)

// Histogram counts durations in buckets that are at most 1/16 wide, from 1 µs up.
type Histogram struct {
	buckets [64 * 16]uint32
	count   int64
	longest time.Duration
}

// Add counts one duration.
func (h *Histogram) Add(d time.Duration) {
	h.buckets[bucket(uint64(max(d.Microseconds(), 1)))]++
	h.count++
	h.longest = max(h.longest, d)
}

// Merge adds the counts of o.
func (h *Histogram) Merge(o *Histogram) {
	for i, n := range o.buckets {
		h.buckets[i] += n
	}
	h.count += o.count
	h.longest = max(h.longest, o.longest)
}

// Longest is the longest duration that was counted.
func (h *Histogram) Longest() time.Duration { return h.longest }

// Quantile returns the duration below which the share q of all lies, 0 ≤ q ≤ 1; zero if nothing was counted.
func (h *Histogram) Quantile(q float64) time.Duration {
	left := int64(q * float64(h.count))
	for i, n := range h.buckets {
		if left -= int64(n); left < 0 {
			return time.Duration(middle(i)) * time.Microsecond
		}
	}
	return h.longest
}

func bucket(us uint64) int {
	if us < 16 {
		return int(us)
	}
	shift := bits.Len64(us) - 5
	return (shift+1)*16 + int(us>>shift) - 16
}

func middle(bucket int) uint64 {
	if bucket < 16 {
		return uint64(bucket)
	}
	shift := bucket/16 - 1
	return uint64(16+bucket%16)<<shift + uint64(1)<<shift/2
}
