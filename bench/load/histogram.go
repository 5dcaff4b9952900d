package load

import (
	"math/bits"
	"time"
)

// fine is how many buckets there are between a duration and its double; a power of two.
const fine = 64

// Histogram counts durations in buckets that are at most 1/64 wide, from 1 µs up.
type Histogram struct {
	buckets [64 * fine]uint32
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
	if us < fine {
		return int(us)
	}
	shift := bits.Len64(us) - bits.Len64(fine)
	return (shift+1)*fine + int(us>>shift) - fine
}

func middle(bucket int) uint64 {
	if bucket < fine {
		return uint64(bucket)
	}
	shift := bucket/fine - 1
	return uint64(fine+bucket%fine)<<shift + uint64(1)<<shift/2
}
