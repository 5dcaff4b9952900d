// Package load drives a closed loop of clients and measures what they see: each client sends its next request when the
// answer to the last one is there.
package load

import (
	"context"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/trivet-kv/trivet/bench/cluster"
)

// Op is one request. Client counts the clients from 0, n the requests of this client.
type Op func(ctx context.Context, conn *grpc.ClientConn, client, n int) error

// Result is what a run measured.
type Result struct {
	Ops, Errors int64
	Took        time.Duration
	CPU         time.Duration // of all members, while the run took
	Latency     Histogram
}

// PerSecond is the throughput.
func (r *Result) PerSecond() float64 { return float64(r.Ops) / r.Took.Seconds() }

// CPUPerOp is the CPU time of all members for one request.
func (r *Result) CPUPerOp() time.Duration { return r.CPU / time.Duration(max(r.Ops, 1)) }

// clientsPerConn is how many clients share a connection.
const clientsPerConn = 32

// Run lets clients send op to the members, spread evenly, for the given time.
func Run(ctx context.Context, c *cluster.Cluster, to []*cluster.Member, clients int, d time.Duration, op Op) (Result, error) {
	conns := make([]*grpc.ClientConn, max(len(to), (clients+clientsPerConn-1)/clientsPerConn))
	for i := range conns {
		conn, err := to[i%len(to)].Dial()
		if err != nil {
			return Result{}, err
		}
		defer conn.Close()
		conns[i] = conn
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	results := make([]Result, clients)
	before, err := c.CPU()
	if err != nil {
		return Result{}, err
	}
	start := time.Now()
	for i := range clients {
		wg.Go(func() {
			r, conn := &results[i], conns[i%len(conns)]
			for n := 0; !stop.Load() && ctx.Err() == nil; n++ {
				begin := time.Now()
				if err := op(ctx, conn, i, n); err != nil {
					r.Errors++
					continue
				}
				r.Ops++
				r.Latency.Add(time.Since(begin))
			}
		})
	}
	timer := time.AfterFunc(d, func() { stop.Store(true) })
	defer timer.Stop()
	wg.Wait()
	total := Result{Took: time.Since(start)}
	after, err := c.CPU()
	if err != nil {
		return Result{}, err
	}
	total.CPU = after - before
	for i := range results {
		total.Ops += results[i].Ops
		total.Errors += results[i].Errors
		total.Latency.Merge(&results[i].Latency)
	}
	return total, ctx.Err()
}

// Histogram counts durations in buckets that are at most 1/16 wide, from 1 µs up.
type Histogram struct {
	buckets [64 * 16]uint32
	count   int64
}

// Add counts one duration.
func (h *Histogram) Add(d time.Duration) {
	h.buckets[bucket(uint64(max(d.Microseconds(), 1)))]++
	h.count++
}

// Merge adds the counts of o.
func (h *Histogram) Merge(o *Histogram) {
	for i, n := range o.buckets {
		h.buckets[i] += n
	}
	h.count += o.count
}

// Quantile returns the duration below which the share q of all lies, 0 ≤ q ≤ 1; zero if nothing was counted.
func (h *Histogram) Quantile(q float64) time.Duration {
	left := int64(q * float64(h.count))
	for i, n := range h.buckets {
		if left -= int64(n); left < 0 {
			return time.Duration(middle(i)) * time.Microsecond
		}
	}
	return 0
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
