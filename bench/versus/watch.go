package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/bench/load"
)

// audience is watchers and the clients that write what they watch.
type audience struct {
	watchers, perStream int
	clients             int
	one                 bool // each watcher watches one key of its own; otherwise all watch all keys
}

var (
	crowd  = audience{watchers: 1000, perStream: 10, clients: 8}
	loners = audience{watchers: 10_000, perStream: 100, clients: 64, one: true}
)

// keys is how many keys are written.
func (a audience) keys() int {
	if a.one {
		return a.watchers
	}
	return a.clients
}

// each is how many watchers get an event.
func (a audience) each() int {
	if a.one {
		return 1
	}
	return a.watchers
}

// hall is an audience at work: for each key, how often it was seen, and a word to its writer when all have seen it.
type hall struct {
	audience
	seen   []atomic.Int64
	all    []chan struct{}
	failed chan error
}

// watched measures a closed loop in which a client writes and then waits until everybody who watches has been told.
func watched(a audience) func(context.Context, *bench) ([]figure, error) {
	return func(ctx context.Context, b *bench) ([]figure, error) {
		conns, hangUp, err := load.Dial(b.Members, 3*6)
		if err != nil {
			return nil, err
		}
		defer hangUp()
		watching, cancel := context.WithCancel(ctx)
		defer cancel()
		h := &hall{a, make([]atomic.Int64, a.keys()), make([]chan struct{}, a.keys()), make(chan error, a.watchers/a.perStream)}
		for i := range h.all {
			h.all[i] = make(chan struct{}, 1)
		}
		ready := make(chan error)
		for i := range a.watchers / a.perStream {
			go h.watch(watching, conns[i%len(conns)], i, ready)
		}
		for range a.watchers / a.perStream {
			if err := <-ready; err != nil {
				return nil, err
			}
		}
		r, err := b.run(ctx, load.Load{To: b.Members, Clients: a.clients, Op: h.tell})
		f := figures(r)
		if !a.one {
			f[3] = took(cpuPerEvent, r.CPUPerOp()/time.Duration(a.each()))
		}
		return f, err
	}
}

// tell writes a key of the client's own and waits until all have seen it.
func (h *hall) tell(ctx context.Context, conn *grpc.ClientConn, client, n int) error {
	k := (client + n*h.clients) % (h.keys() / h.clients * h.clients)
	if _, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: key(uint64(k)), Value: value(256)}); err != nil {
		return err
	}
	select {
	case <-h.all[k]:
		return nil
	case err := <-h.failed:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(30 * time.Second):
		return fmt.Errorf("%d events were missing 30 s after the write", int64(h.each())-h.seen[k].Load()%int64(h.each()))
	}
}

// watch is one stream with its watchers. It says so when they are all there.
func (h *hall) watch(ctx context.Context, conn *grpc.ClientConn, stream int, ready chan<- error) {
	w, err := pb.NewWatchClient(conn).Watch(ctx)
	for i := 0; i < h.perStream && err == nil; i++ {
		create := &pb.WatchCreateRequest{Key: []byte(prefix), RangeEnd: []byte(prefixEnd)}
		if h.one {
			create = &pb.WatchCreateRequest{Key: key(uint64(stream*h.perStream + i))}
		}
		err = w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
	}
	for i := 0; i < h.perStream && err == nil; i++ {
		var r *pb.WatchResponse
		if r, err = w.Recv(); err == nil && !r.Created {
			err = fmt.Errorf("not the answer to the creation of a watcher: %v", r)
		}
	}
	ready <- err
	for err == nil {
		var r *pb.WatchResponse
		if r, err = w.Recv(); err != nil {
			break
		}
		for _, e := range r.Events {
			k := binary.BigEndian.Uint64(e.Kv.Key[len(prefix):])
			if h.seen[k].Add(1)%int64(h.each()) == 0 {
				h.all[k] <- struct{}{}
			}
		}
	}
	h.failed <- err // has room for all streams
}

// The history that is replayed: so many events, one in each revision, of keys that the writers leave alone.
const (
	historyEvents = 200_000
	historyKeys   = 10_000
	historyPrefix = "history/"
	historyEnd    = "history0"
)

func history(ctx context.Context, b *bench) error {
	const clients = 200
	_, err := load.Load{To: b.Members, Clients: clients, Op: func(ctx context.Context, conn *grpc.ClientConn, client, n int) error {
		k := binary.BigEndian.AppendUint64([]byte(historyPrefix), uint64(n*clients+client)%historyKeys)
		_, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: k, Value: value(256)})
		return err
	}}.Each(ctx, b.Cluster, historyEvents/clients)
	return err
}

// putWhileReplay measures writes first alone, and then while four watchers at the leader read all of history again and
// again.
func putWhileReplay(ctx context.Context, b *bench) ([]figure, error) {
	puts := load.Load{To: toLeader(b), Clients: 64, Op: put(256)}
	if err := b.warmUp(ctx, puts); err != nil {
		return nil, err
	}
	alone, err := checked(puts.For(ctx, b.Cluster, b.duration))
	if err != nil {
		return nil, err
	}
	replaying, stop := context.WithCancel(ctx)
	defer stop()
	var events atomic.Int64
	const watchers = 4
	ended := make(chan error, watchers)
	for range watchers {
		go func() {
			conn, err := b.leader.Dial()
			for err == nil && replaying.Err() == nil {
				err = replay(replaying, conn, &events)
			}
			if conn != nil {
				_ = conn.Close()
			}
			ended <- err
		}()
	}
	if err := b.warmUp(ctx, puts); err != nil {
		return nil, err
	}
	b.measuring(ctx)
	before := events.Load()
	r, err := checked(puts.For(ctx, b.Cluster, b.duration))
	if err != nil {
		return nil, err
	}
	replayed := float64(events.Load()-before) / r.Took.Seconds()
	stop()
	for range watchers {
		if failed := <-ended; failed != nil && ctx.Err() == nil && replaying.Err() == nil {
			return nil, failed
		}
	}
	return []figure{
		{ops, perSecond, r.PerSecond()},
		took(p50, r.Latency.Quantile(0.5)),
		took(p99, r.Latency.Quantile(0.99)),
		{"per second alone", perSecond, alone.PerSecond()},
		took("p99 alone", alone.Latency.Quantile(0.99)),
		{p99OverAlone, times, r.Latency.Quantile(0.99).Seconds() / alone.Latency.Quantile(0.99).Seconds()},
		{"events replayed per second", perSecond, replayed},
	}, nil
}

// replay reads all of history once. It counts events without unpacking them: four such readers would otherwise take more
// of the machine than what they read from.
func replay(ctx context.Context, conn *grpc.ClientConn, events *atomic.Int64) error {
	const canceledField, eventsField = 4, 11 // of WatchResponse
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := conn.NewStream(ctx, &pb.Watch_ServiceDesc.Streams[0], pb.Watch_Watch_FullMethodName, grpc.ForceCodecV2(load.RawCodec))
	if err != nil {
		return err
	}
	err = w.SendMsg(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte(historyPrefix), RangeEnd: []byte(historyEnd), StartRevision: 1,
	}}})
	var answer load.Raw
	for got := 0; err == nil && got < historyEvents; {
		if err = w.RecvMsg(&answer); err != nil {
			break
		}
		var n, canceled int
		if n, err = answer.Count(eventsField); err == nil {
			canceled, err = answer.Count(canceledField)
		}
		if canceled > 0 {
			err = fmt.Errorf("the watcher was cancelled: %q", answer.Bytes)
		}
		got += n
		events.Add(int64(n))
	}
	return err
}
