package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/bench/load"
)

// space is how many different keys the small loads touch.
const space = 100_000

// The keys of the loads lie between "bench/" and "bench0".
const (
	prefix    = "bench/"
	prefixEnd = "bench0"
)

func key(n uint64) []byte { return binary.BigEndian.AppendUint64([]byte(prefix), n) }

// noise is what values are cut from: bytes that do not compress, so that nobody's disk looks smaller than it is.
var noise = func() []byte {
	b := make([]byte, 4<<20)
	chacha := rand.NewChaCha8([32]byte{})
	_, _ = chacha.Read(b)
	return b
}()

func value(n int) []byte {
	at := rand.IntN(len(noise) - n)
	return noise[at : at+n]
}

func put(bytes int) load.Op {
	return func(ctx context.Context, conn *grpc.ClientConn, _, _ int) error {
		_, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: key(rand.Uint64N(space)), Value: value(bytes)})
		return err
	}
}

func get(serializable bool) load.Op {
	return func(ctx context.Context, conn *grpc.ClientConn, _, _ int) error {
		r, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: key(rand.Uint64N(space)), Serializable: serializable})
		if err == nil && len(r.Kvs) != 1 {
			err = fmt.Errorf("%d keys for one that exists", len(r.Kvs))
		}
		return err
	}
}

// scan reads with a limit, from the beginning or, if not all is wanted, from anywhere up to one page before the end.
func scan(keys, limit, want int) load.Op {
	return func(ctx context.Context, conn *grpc.ClientConn, _, _ int) error {
		from := uint64(0)
		if limit > 0 {
			from = rand.Uint64N(uint64(keys - limit))
		}
		r, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: key(from), RangeEnd: []byte(prefixEnd), Limit: int64(limit)})
		if err == nil && (len(r.Kvs) != want || r.Count != int64(keys)-int64(from)) {
			err = fmt.Errorf("%d keys and a count of %d from %d on, of %d", len(r.Kvs), r.Count, from, keys)
		}
		return err
	}
}

func count(keys int64) load.Op {
	return func(ctx context.Context, conn *grpc.ClientConn, _, _ int) error {
		r, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte(prefix), RangeEnd: []byte(prefixEnd), CountOnly: true})
		if err == nil && r.Count != keys {
			err = fmt.Errorf("a count of %d, for %d keys", r.Count, keys)
		}
		return err
	}
}

// compareAndPut is what Kubernetes does to an object: read it, and write it if it is still what was read. Each client has
// keys of its own, so every attempt succeeds.
func compareAndPut(bytes int) load.Op {
	const own = 100
	return func(ctx context.Context, conn *grpc.ClientConn, client, n int) error {
		k := key(uint64(client*own + n%own))
		kv := pb.NewKVClient(conn)
		old, err := kv.Range(ctx, &pb.RangeRequest{Key: k})
		if err != nil {
			return err
		}
		var modified int64 // 0: it does not exist
		if len(old.Kvs) > 0 {
			modified = old.Kvs[0].ModRevision
		}
		t, err := kv.Txn(ctx, &pb.TxnRequest{
			Compare: []*pb.Compare{{
				Key: k, Target: pb.Compare_MOD, Result: pb.Compare_EQUAL,
				TargetUnion: &pb.Compare_ModRevision{ModRevision: modified},
			}},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: k, Value: value(bytes)}}}},
			Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: k}}}},
		})
		if err == nil && !t.Succeeded {
			err = fmt.Errorf("nobody else writes %x, and yet it has changed since revision %d", k, modified)
		}
		return err
	}
}

// fill writes the keys from 0 up, many in a transaction.
func fill(keys, bytes int) func(context.Context, *bench) error {
	return func(ctx context.Context, b *bench) error { return b.fill(ctx, keys, bytes) }
}

func (b *bench) fill(ctx context.Context, keys, bytes int) error {
	const each = 100
	_, err := load.Load{To: b.Members, Clients: 16, Op: func(ctx context.Context, conn *grpc.ClientConn, client, n int) error {
		var t pb.TxnRequest
		for i := (n*16 + client) * each; i < min((n*16+client+1)*each, keys); i++ {
			p := &pb.PutRequest{Key: key(uint64(i)), Value: value(bytes)}
			t.Success = append(t.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: p}})
		}
		if len(t.Success) == 0 {
			return nil
		}
		_, err := pb.NewKVClient(conn).Txn(ctx, &t)
		return err
	}}.Each(ctx, b.Cluster, (keys+16*each-1)/(16*each))
	return err
}

// getWhilePut measures reads of all members while 64 clients write to the leader.
func getWhilePut(ctx context.Context, b *bench) ([]figure, error) {
	puts := load.Load{To: toLeader(b), Clients: 64, Op: put(256)}
	gets := load.Load{To: b.Members, Clients: 16, Op: get(false)}
	var wrote load.Result
	done := make(chan error, 1)
	go func() {
		var err error
		wrote, err = checked(puts.For(ctx, b.Cluster, b.duration+max(b.duration/5, 300*time.Millisecond)))
		done <- err
	}()
	read, err := b.run(ctx, gets)
	if failed := <-done; err == nil {
		err = failed
	}
	return []figure{
		{ops, perSecond, read.PerSecond()},
		took(p50, read.Latency.Quantile(0.5)),
		took(p99, read.Latency.Quantile(0.99)),
		{"puts per second", perSecond, wrote.PerSecond()},
		took("CPU per get or put", read.CPU/time.Duration(max(1, read.Ops+int64(wrote.PerSecond()*read.Took.Seconds())))),
	}, err
}
