package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/bench/load"
)

// manyKeys writes every key once, each in a request of its own.
func manyKeys(ctx context.Context, b *bench) error {
	each := b.keys / loaders
	b.keys = each * loaders
	_, err := load.Load{To: b.Members, Clients: loaders, Op: func(ctx context.Context, conn *grpc.ClientConn, client, n int) error {
		_, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: key(uint64(n*loaders + client)), Value: value(256)})
		return err
	}}.Each(ctx, b.Cluster, each)
	if err != nil {
		return err
	}
	return b.quiet(ctx)
}

// putWhileSaved measures 64 writers, to all members, alone, and then for just as long as the leader takes to give one client
// a snapshot of the whole store, three times. The client writes it to a file, and checks the hash at its end.
func putWhileSaved(ctx context.Context, b *bench) ([]figure, error) {
	writers := load.Load{To: toAll(b), Clients: 64, Op: func(ctx context.Context, conn *grpc.ClientConn, _, _ int) error {
		_, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: key(rand.Uint64N(uint64(b.keys))), Value: value(256)})
		return err
	}}
	if err := b.warmUp(ctx, writers); err != nil {
		return nil, err
	}
	var alone, beside load.Result
	var lasted time.Duration
	var bytes int64
	for range 3 {
		r, err := checked(writers.For(ctx, b.Cluster, b.duration))
		if err != nil {
			return nil, err
		}
		add(&alone, r)
		b.measuring(ctx)
		saving, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		begin := time.Now()
		go func() {
			defer stop()
			n, err := b.save(ctx)
			bytes = n
			done <- err
		}()
		r, err = writers.For(saving, b.Cluster, time.Hour)
		lasted += time.Since(begin)
		if errors.Is(err, context.Canceled) && ctx.Err() == nil {
			err = nil
		}
		if err := errors.Join(<-done, err); err != nil {
			return nil, err
		}
		add(&beside, r)
	}
	return []figure{
		{"per second alone", perSecond, alone.PerSecond()},
		took("p99 alone", alone.Latency.Quantile(0.99)),
		{ops, perSecond, beside.PerSecond()},
		took(p99, beside.Latency.Quantile(0.99)),
		{"per second over that alone", times, beside.PerSecond() / alone.PerSecond()},
		{p99OverAlone, times, beside.Latency.Quantile(0.99).Seconds() / alone.Latency.Quantile(0.99).Seconds()},
		took("longest put", beside.Latency.Longest()),
		took("save: took", lasted/3),
		{"save: bytes", size, float64(bytes)},
	}, nil
}

// add puts one run to another that it comes after.
func add(to *load.Result, r load.Result) {
	to.Ops += r.Ops
	to.Errors += r.Errors
	to.Took += r.Took
	to.CPU += r.CPU
	to.Latency.Merge(&r.Latency)
}

// save takes a snapshot of the leader into a file that is removed again, and returns how long it is.
func (b *bench) save(ctx context.Context) (n int64, err error) {
	conn, err := b.leader.Dial()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	f, err := os.CreateTemp("", "versus-snapshot-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	s, err := pb.NewMaintenanceClient(conn).Snapshot(ctx, &pb.SnapshotRequest{})
	if err != nil {
		return 0, err
	}
	sum := sha256.New()
	var held []byte // the last bytes, which may be the hash
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return n, err
		}
		n += int64(len(r.Blob))
		if _, err := f.Write(r.Blob); err != nil {
			return n, err
		}
		held = hashAllBut(sum, append(held, r.Blob...), sha256.Size)
	}
	if got := sum.Sum(nil); !bytes.Equal(got, held) {
		return n, fmt.Errorf("a snapshot of %d bytes whose hash is %x, said to be %x", n, got, held)
	}
	return n, nil
}

func hashAllBut(sum hash.Hash, b []byte, keep int) []byte {
	cut := max(0, len(b)-keep)
	sum.Write(b[:cut])
	return append([]byte{}, b[cut:]...)
}
