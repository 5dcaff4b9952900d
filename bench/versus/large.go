package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/bench/cluster"
	"github.com/trivet-kv/trivet/bench/load"
)

// large loads many keys, and measures what a store that holds them costs, and what is done to such a store.
func large(ctx context.Context, b *bench) ([]figure, error) {
	var all []figure
	for _, step := range []func(context.Context, *bench) ([]figure, error){
		loadKeys, countKeys, restart, compact, defragment, farBehind,
	} {
		f, err := step(ctx, b)
		if err != nil {
			return nil, err
		}
		all = append(all, f...)
		if err := b.quiet(ctx); err != nil {
			return nil, err
		}
	}
	return all, nil
}

const loaders = 250

// loadKeys writes every key once, each in a request of its own. The CPU time is counted until the members are at rest.
func loadKeys(ctx context.Context, b *bench) ([]figure, error) {
	each := b.keys / loaders
	half := func(first, n int) (load.Result, error) {
		return load.Load{To: toLeader(b), Clients: loaders, Op: func(ctx context.Context, conn *grpc.ClientConn, client, n int) error {
			_, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: key(uint64((first+n)*loaders + client)), Value: value(256)})
			return err
		}}.Each(ctx, b.Cluster, n)
	}
	before, err := b.CPU()
	if err != nil {
		return nil, err
	}
	one, err := half(0, each/2)
	if err != nil {
		return nil, err
	}
	b.measuring(ctx)
	two, err := half(each/2, each-each/2)
	if err != nil {
		return nil, err
	}
	if err := b.quiet(ctx); err != nil {
		return nil, err
	}
	after, err := b.CPU()
	if err != nil {
		return nil, err
	}
	b.keys = each * loaders
	var anonymous, peak, disk int64
	for _, m := range b.Members {
		a, p, err := m.Memory()
		if err != nil {
			return nil, err
		}
		d, err := m.Disk()
		if err != nil {
			return nil, err
		}
		anonymous, peak, disk = max(anonymous, a), max(peak, p), max(disk, d)
	}
	return []figure{
		{"load: keys per second", perSecond, float64(b.keys) / (one.Took + two.Took).Seconds()},
		took(loadCPU, (after-before)/time.Duration(b.keys)),
		{memoryAnonymous, size, float64(anonymous)},
		{"peak resident memory", size, float64(peak)},
		{diskPerMember, size, float64(disk)},
	}, nil
}

// quiet waits until the members do next to nothing, up to a minute.
func (b *bench) quiet(ctx context.Context) error {
	const window = time.Second
	for deadline := time.Now().Add(time.Minute); ; {
		before, err := b.CPU()
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(window):
		}
		after, err := b.CPU()
		if err != nil {
			return err
		}
		if after-before < window/10 || time.Now().After(deadline) {
			return nil
		}
	}
}

// countKeys asks the leader how many keys there are, several times.
func countKeys(ctx context.Context, b *bench) ([]figure, error) {
	r, err := load.Load{To: toLeader(b), Clients: 1, Op: count(int64(b.keys))}.Each(ctx, b.Cluster, 9)
	return []figure{took(countTime, r.Latency.Quantile(0.5))}, err
}

// restart kills a follower and starts it again, several times.
func restart(ctx context.Context, b *bench) ([]figure, error) {
	m := b.Others(b.leader)[0]
	var all []float64
	for range 3 {
		if err := m.Kill(); err != nil {
			return nil, err
		}
		d, err := back(ctx, m)
		if err != nil {
			return nil, err
		}
		all = append(all, d.Seconds())
	}
	return []figure{{restartTime, seconds, median(all)}}, nil
}

// back starts a member and waits until it answers a linearizable read.
func back(ctx context.Context, m *cluster.Member) (time.Duration, error) {
	begin := time.Now()
	if err := m.Start(); err != nil {
		return 0, err
	}
	err := m.Ready(ctx)
	return time.Since(begin), err
}

// besideWriters measures the longest write of eight clients while something is done, and how long that took.
func (b *bench) besideWriters(ctx context.Context, do func(context.Context) error) (longest, lasted time.Duration, err error) {
	writing, stop := context.WithCancel(ctx)
	defer stop()
	type outcome struct {
		load.Result
		error
	}
	ended := make(chan outcome, 1)
	go func() {
		var over bool
		r, err := load.Load{To: toLeader(b), Clients: 8, Op: func(_ context.Context, conn *grpc.ClientConn, _, _ int) error {
			_, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: key(rand.Uint64N(uint64(b.keys))), Value: value(256)})
			return err
		}}.For(writing, b.Cluster, time.Hour)
		over = writing.Err() != nil
		if over && ctx.Err() == nil {
			err = nil
		}
		ended <- outcome{r, err}
	}()
	rest := func() {
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
	rest()
	begin := time.Now()
	err = do(ctx)
	lasted = time.Since(begin)
	rest()
	stop()
	r := <-ended
	if _, failed := checked(r.Result, r.error); err == nil {
		err = failed
	}
	return r.Latency.Longest(), lasted, err
}

// compact overwrites half of the keys and then compacts that away, beside writers.
func compact(ctx context.Context, b *bench) ([]figure, error) {
	if err := b.fill(ctx, b.keys/2, 256); err != nil {
		return nil, err
	}
	if err := b.quiet(ctx); err != nil {
		return nil, err
	}
	alone, _, err := b.besideWriters(ctx, func(ctx context.Context) error {
		select {
		case <-ctx.Done():
		case <-time.After(b.duration):
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, err
	}
	conn, err := b.leader.Dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	longest, lasted, err := b.besideWriters(ctx, func(ctx context.Context) error {
		now, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: key(0), CountOnly: true})
		if err != nil {
			return err
		}
		_, err = pb.NewKVClient(conn).Compact(ctx, &pb.CompactionRequest{Revision: now.Header.Revision, Physical: true})
		return err
	})
	return []figure{
		took("no compaction: longest put", alone),
		took(longestCompaction, longest),
		took("compaction: took", lasted),
	}, err
}

// defragment asks every member to, one after the other, beside writers.
func defragment(ctx context.Context, b *bench) ([]figure, error) {
	conns, hangUp, err := load.Dial(b.Members, len(b.Members))
	if err != nil {
		return nil, err
	}
	defer hangUp()
	longest, lasted, err := b.besideWriters(ctx, func(ctx context.Context) error {
		for _, conn := range conns {
			if _, err := pb.NewMaintenanceClient(conn).Defragment(ctx, &pb.DefragmentRequest{}); err != nil {
				return err
			}
		}
		return nil
	})
	return []figure{took("defragment: longest put", longest), took("defragment: took, all members", lasted)}, err
}

// farBehind kills a follower, writes more than the others keep in their logs for it, and measures how long it takes to
// be level again with a snapshot of the others' state.
func farBehind(ctx context.Context, b *bench) ([]figure, error) {
	leader, err := b.Leader(ctx)
	if err != nil {
		return nil, err
	}
	m := b.Others(leader)[0]
	if err := m.Kill(); err != nil {
		return nil, err
	}
	// More than either keeps: etcd keeps 5,000 entries behind a snapshot every 10,000; Trivet 5,000 entries up to 256 MiB.
	_, err = load.Load{To: b.Others(m), Clients: 64, Op: put(16 << 10)}.Each(ctx, b.Cluster, 25_000/64)
	if err != nil {
		return nil, err
	}
	d, err := back(ctx, m)
	if err != nil {
		return nil, err
	}
	if sent, err := snapshotsReceived(ctx, m); err != nil || !sent {
		return nil, fmt.Errorf("the member was brought up to date without a snapshot (%v)", err)
	}
	return []figure{took("far behind: level again", d)}, nil
}

// snapshotsReceived is whether the member says that it was sent a snapshot since it started.
func snapshotsReceived(ctx context.Context, m *cluster.Member) (bool, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.Client+"/metrics", nil)
	if err != nil {
		return false, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return false, err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	return slices.ContainsFunc(strings.Split(string(b), "\n"), func(line string) bool {
		return strings.HasPrefix(line, "etcd_network_snapshot_receive_success{") && !strings.HasSuffix(line, " 0")
	}), err
}
