package main

import (
	"context"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/bench/load"
)

// How the leader ends.
const (
	kill      = syscall.SIGKILL
	terminate = syscall.SIGTERM
)

// failovers is how often the leader is taken away.
const failovers = 10

// probeEvery is how often a write is begun, whether or not those before it were answered.
const probeEvery = 2 * time.Millisecond

// failover measures for how long no write is acknowledged when the leader goes away, by writes to the other members.
func failover(how syscall.Signal) func(context.Context, *bench) ([]figure, error) {
	return func(ctx context.Context, b *bench) ([]figure, error) {
		var gaps, slowest []float64
		var failed int
		for range failovers {
			p, err := b.loseLeader(ctx, how)
			if err != nil {
				return nil, err
			}
			gaps = append(gaps, p.gap().Seconds())
			slowest = append(slowest, p.slowest.Seconds())
			failed += p.failed
		}
		return []figure{
			{gap, seconds, median(gaps)},
			{"longest gap", seconds, slices.Max(gaps)},
			{"slowest write", seconds, median(slowest)},
			{"writes failed, of 500 a second", number, float64(failed)},
		}, nil
	}
}

// probes are the writes around one failover.
type probes struct {
	mu      sync.Mutex
	signal  time.Time
	acks    []time.Time
	slowest time.Duration
	failed  int
}

// gap is the longest time without an acknowledged write, from the signal on.
func (p *probes) gap() time.Duration {
	slices.SortFunc(p.acks, time.Time.Compare)
	last, longest := p.signal, time.Duration(0)
	for _, a := range p.acks {
		if a.After(p.signal) {
			longest, last = max(longest, a.Sub(last)), a
		}
	}
	return longest
}

func (b *bench) loseLeader(ctx context.Context, how syscall.Signal) (*probes, error) {
	leader, err := b.Leader(ctx)
	if err != nil {
		return nil, err
	}
	others := b.Others(leader)
	conns, hangUp, err := load.Dial(others, len(others))
	if err != nil {
		return nil, err
	}
	defer hangUp()
	var p probes
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(probeEvery)
		defer ticker.Stop()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-ticker.C:
				wg.Go(func() { p.write(ctx, conns[i%len(conns)], uint64(i)) })
			}
		}
	})
	time.Sleep(500 * time.Millisecond)
	p.mu.Lock()
	p.signal = time.Now()
	p.mu.Unlock()
	err = leader.Signal(how)
	if err == nil {
		leader.Wait()
		if _, err = b.Leader(ctx); err == nil {
			time.Sleep(500 * time.Millisecond) // what comes after is part of it: a leader that does not last, a stall
		}
	}
	close(stop)
	wg.Wait()
	if err != nil {
		return nil, err
	}
	if _, err := back(ctx, leader); err != nil {
		return nil, err
	}
	time.Sleep(time.Second) // the elections of one failover are over before the next begins
	return &p, nil
}

func (p *probes) write(ctx context.Context, conn *grpc.ClientConn, n uint64) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	begin := time.Now()
	_, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: key(n % space), Value: value(256)})
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.failed++
		return
	}
	p.acks = append(p.acks, now)
	p.slowest = max(p.slowest, now.Sub(begin))
}
