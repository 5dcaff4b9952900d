package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trivet-kv/trivet/bench/cluster"
	"github.com/trivet-kv/trivet/bench/load"
)

// workload is one thing that is measured. Each begins with a new cluster of each system.
type workload struct {
	name    string
	once    bool // too long for rounds: measured once on each system
	prepare func(ctx context.Context, b *bench) error
	measure func(ctx context.Context, b *bench) ([]figure, error)
}

// workloads are all, in the order in which they are measured.
func workloads() []workload {
	return []workload{
		{name: "put 256 B, 1 client", measure: closed(toLeader, 1, put(256))},
		{name: "put 256 B, 64 clients", measure: closed(toLeader, 64, put(256))},
		{name: "put 256 B, 512 clients", measure: closed(toLeader, 512, put(256))},
		{name: "put 256 B, 512 clients, all members", measure: closed(toAll, 512, put(256))},
		{name: "put 64 KiB, 32 clients", measure: closed(toLeader, 32, put(64<<10))},
		{name: "linearizable get, 1 client", prepare: fill(space, 256), measure: closed(toLeader, 1, get(false))},
		{name: "linearizable get, 64 clients", prepare: fill(space, 256), measure: closed(toAll, 64, get(false))},
		{name: "linearizable get, 512 clients", prepare: fill(space, 256), measure: closed(toAll, 512, get(false))},
		{name: "serializable get, 64 clients", prepare: fill(space, 256), measure: closed(toAll, 64, get(true))},
		{name: "range of 5,000 keys of 1 KiB", prepare: fill(5000, 1024), measure: closed(toLeader, 4, scan(5000, 0, 5000))},
		{name: "page of 500 out of 100,000 keys", prepare: fill(space, 256), measure: closed(toLeader, 8, scan(space, 500, 500))},
		{name: "count of 100,000 keys", prepare: fill(space, 256), measure: closed(toLeader, 8, count(space))},
		{name: "get and compare-and-put 1 KiB", measure: closed(toAll, 64, compareAndPut(1024))},
		{name: "linearizable get while 64 clients put", prepare: fill(space, 256), measure: getWhilePut},
		{name: "put while 4 watchers replay history", prepare: history, measure: putWhileReplay},
		{name: "1,000 watchers of one prefix", measure: watched(crowd)},
		{name: "10,000 watchers of one key each", measure: watched(loners)},
		{name: "lease grant, 64 clients", measure: closed(toAll, 64, grant)},
		{name: "lease keepalive, 64 clients", measure: keepAlive},
		{name: "large store", once: true, measure: large},
		{name: "put while a snapshot of a large store is saved", once: true, prepare: manyKeys, measure: putWhileSaved},
		{name: "leader killed", once: true, measure: failover(kill)},
		{name: "leader told to stop", once: true, measure: failover(terminate)},
	}
}

// Where a load goes.
func toLeader(b *bench) []*cluster.Member { return []*cluster.Member{b.leader} }
func toAll(b *bench) []*cluster.Member    { return b.Members }

// closed measures a closed loop of clients.
func closed(to func(*bench) []*cluster.Member, clients int, op load.Op) func(context.Context, *bench) ([]figure, error) {
	return func(ctx context.Context, b *bench) ([]figure, error) {
		r, err := b.run(ctx, load.Load{To: to(b), Clients: clients, Op: op})
		return figures(r), err
	}
}

// run warms up and then measures. An error of any request is an error of the run: what is compared must work.
func (b *bench) run(ctx context.Context, l load.Load) (load.Result, error) {
	if err := b.warmUp(ctx, l); err != nil {
		return load.Result{}, err
	}
	b.measuring(ctx)
	return checked(l.For(ctx, b.Cluster, b.duration))
}

func (b *bench) warmUp(ctx context.Context, l load.Load) error {
	_, err := checked(l.For(ctx, b.Cluster, max(b.duration/5, 300*time.Millisecond)))
	return err
}

func checked(r load.Result, err error) (load.Result, error) {
	switch {
	case err != nil:
	case r.First != nil:
		err = fmt.Errorf("%d of %d requests failed: %w", r.Errors, r.Errors+r.Ops, r.First)
	case r.Ops == 0:
		err = errors.New("not one request was answered")
	}
	return r, err
}

func figures(r load.Result) []figure {
	return []figure{
		{ops, perSecond, r.PerSecond()},
		took(p50, r.Latency.Quantile(0.5)),
		took(p99, r.Latency.Quantile(0.99)),
		took(cpuPerOp, r.CPUPerOp()),
	}
}
