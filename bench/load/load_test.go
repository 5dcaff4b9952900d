package load

import (
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	var h Histogram
	for us := 1; us <= 100_000; us++ {
		h.Add(time.Duration(us) * time.Microsecond)
	}
	for _, q := range []float64{0.001, 0.1, 0.5, 0.99} {
		want := q * 100_000
		got := float64(h.Quantile(q).Microseconds())
		if got < want*0.98 || got > want*1.02 {
			t.Errorf("quantile %v is %v µs, want about %v", q, got, want)
		}
	}
}
