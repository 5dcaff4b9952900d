// Package load drives a closed loop of clients and measures what they see: each client sends its next request when the
// answer to the last one is there.
package load

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/trivet-kv/trivet/bench/cluster"
)

// Op is one request. Client counts the clients from 0, n the requests of this client.
type Op func(ctx context.Context, conn *grpc.ClientConn, client, n int) error

// Load is so many clients that send Op to the members, spread evenly over them.
type Load struct {
	To      []*cluster.Member
	Clients int
	Op      Op
}

// Result is what a run measured.
type Result struct {
	Ops, Errors int64
	First       error // the first error, if there was one
	Took        time.Duration
	CPU         time.Duration // of all members, while the run took
	Latency     Histogram     // of the requests that had no error
}

// PerSecond is the throughput.
func (r *Result) PerSecond() float64 { return float64(r.Ops) / r.Took.Seconds() }

// CPUPerOp is the CPU time of all members for one request.
func (r *Result) CPUPerOp() time.Duration { return r.CPU / time.Duration(max(r.Ops, 1)) }

// clientsPerConn is how many clients share a connection.
const clientsPerConn = 32

// For runs the load for the given time, or until the context ends.
func (l Load) For(ctx context.Context, c *cluster.Cluster, d time.Duration) (Result, error) {
	var stop atomic.Bool
	timer := time.AfterFunc(d, func() { stop.Store(true) })
	defer timer.Stop()
	return l.run(ctx, c, func(int) bool { return !stop.Load() })
}

// Each runs the load until every client has sent n requests. Any error ends it.
func (l Load) Each(ctx context.Context, c *cluster.Cluster, n int) (Result, error) {
	var failed atomic.Bool
	op := l.Op
	l.Op = func(ctx context.Context, conn *grpc.ClientConn, client, n int) error {
		err := op(ctx, conn, client, n)
		if err != nil {
			failed.Store(true)
		}
		return err
	}
	r, err := l.run(ctx, c, func(sent int) bool { return !failed.Load() && sent < n })
	if err == nil && r.First != nil {
		err = fmt.Errorf("after %d of %d requests: %w", r.Ops, n*l.Clients, r.First)
	}
	return r, err
}

// run lets every client send as long as more says so.
func (l Load) run(ctx context.Context, c *cluster.Cluster, more func(sent int) bool) (Result, error) {
	conns, hangUp, err := Dial(l.To, max(len(l.To), (l.Clients+clientsPerConn-1)/clientsPerConn))
	if err != nil {
		return Result{}, err
	}
	defer hangUp()
	var wg sync.WaitGroup
	results := make([]Result, l.Clients)
	before, err := c.CPU()
	if err != nil {
		return Result{}, err
	}
	start := time.Now()
	for i := range l.Clients {
		wg.Go(func() {
			r, conn := &results[i], conns[i%len(conns)]
			for n := 0; ctx.Err() == nil && more(n); n++ {
				begin := time.Now()
				if err := l.Op(ctx, conn, i, n); err != nil {
					r.Errors++
					if r.First == nil {
						r.First = err
					}
					continue
				}
				r.Ops++
				r.Latency.Add(time.Since(begin))
			}
		})
	}
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
		if total.First == nil {
			total.First = results[i].First
		}
		total.Latency.Merge(&results[i].Latency)
	}
	return total, ctx.Err()
}

// Dial opens n connections, spread evenly over the members; hangUp closes them.
func Dial(to []*cluster.Member, n int) (conns []*grpc.ClientConn, hangUp func(), err error) {
	hangUp = func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}
	for i := range n {
		conn, err := to[i%len(to)].Dial()
		if err != nil {
			hangUp()
			return nil, nil, err
		}
		conns = append(conns, conn)
	}
	return conns, hangUp, nil
}
