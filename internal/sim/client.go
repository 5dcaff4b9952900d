package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// client sends one request after the other, each to a member of its choice, and records what became of it.
type client struct {
	run *run
	id  int
	rng *rand.Rand

	values int
	seen   map[string]int64 // newest mod revision it saw of each key, to compare with
}

// loop runs until the run tells clients to stop.
func (c *client) loop() {
	for !c.run.quiet() {
		time.Sleep(time.Duration(c.rng.Int64N(int64(c.run.o.Think) + 1)))
		n := c.run.nodes[c.rng.IntN(len(c.run.nodes))]
		l := n.current()
		if l == nil {
			continue
		}
		c.send(l, c.choose())
	}
}

// choose draws the next request.
func (c *client) choose() Op {
	o := Op{Client: c.id, Key: c.run.keys[c.rng.IntN(len(c.run.keys))]}
	switch n := c.rng.IntN(100); {
	case n < 30:
		o.Kind = Get
	case n < 40:
		o.Kind, o.Serializable = Get, true
	case n < 70:
		o.Kind = Put
	case n < 85:
		o.Kind, o.Expect = Swap, c.seen[o.Key]
	case n < 90:
		o.Kind = Delete
	case n < 94 && len(c.run.keys) > 1:
		o.Kind = Both
		for o.Key2 = o.Key; o.Key2 == o.Key; {
			o.Key2 = c.run.keys[c.rng.IntN(len(c.run.keys))]
		}
		o.Value2 = c.value()
	default:
		o.Kind, o.Key, o.Serializable = List, "", c.rng.IntN(2) == 0
	}
	if o.Kind == Put || o.Kind == Swap || o.Kind == Both {
		o.Value = c.value()
	}
	return o
}

// value is one that no other request writes.
func (c *client) value() string {
	c.values++
	return fmt.Sprintf("%d.%d.%0*d", c.id, c.values, c.run.o.ValueBytes, 0)
}

// send sends the request through a member and records it. A client waits five seconds at most.
func (c *client) send(l *life, op Op) *Op {
	op.Member, op.At = l.id, time.Since(c.run.began)
	ctx, cancel := context.WithTimeout(l.ctx, 5*time.Second)
	defer cancel()
	o := c.run.history.Begin(op)
	var fill func(*Op)
	var err error
	switch o.Kind {
	case Get, List:
		fill, err = rangeOf(ctx, l, o)
	case Put:
		fill, err = put(ctx, l, o)
	case Swap:
		fill, err = swap(ctx, l, o)
	case Delete:
		fill, err = remove(ctx, l, o)
	case Both:
		fill, err = both(ctx, l, o)
	}
	c.run.history.End(o, l.alive, func(o *Op) {
		if err != nil {
			o.Err = err.Error()
			return
		}
		o.Known = true
		fill(o)
	})
	switch {
	case !o.Known:
	case o.Kind == Get, o.Kind == Swap && !o.Succeeded:
		c.seen[o.Key] = o.Pair.Mod
	case o.Kind == Both:
		c.seen[o.Key], c.seen[o.Key2] = o.Revision, o.Revision
	case o.Kind == Put, o.Kind == Swap:
		c.seen[o.Key] = o.Revision
	case o.Kind == Delete:
		c.seen[o.Key] = 0
	}
	return o
}

func rangeOf(ctx context.Context, l *life, o *Op) (func(*Op), error) {
	r := &pb.RangeRequest{Key: []byte(o.Key), Serializable: o.Serializable}
	if o.Kind == List {
		r.Key, r.RangeEnd = []byte{0}, []byte{0}
	}
	answer, err := l.services.Range(ctx, r)
	if err != nil {
		return nil, err
	}
	defer answer.Free()
	var m pb.RangeResponse
	if err := proto.Unmarshal(answer.Bytes(), &m); err != nil {
		panic(fmt.Sprintf("sim: a range answer that is none: %v", err))
	}
	return func(o *Op) {
		o.Revision = m.Header.Revision
		if o.Kind == List {
			o.Pairs = map[string]Pair{}
			for _, kv := range m.Kvs {
				o.Pairs[string(kv.Key)] = pairOf(kv)
			}
			return
		}
		if len(m.Kvs) > 0 {
			o.Pair = pairOf(m.Kvs[0])
		}
	}, nil
}

func pairOf(kv *mvccpb.KeyValue) Pair {
	return Pair{Value: string(kv.Value), Create: kv.CreateRevision, Mod: kv.ModRevision, Version: kv.Version}
}

func put(ctx context.Context, l *life, o *Op) (func(*Op), error) {
	answer, err := l.services.Put(ctx, &pb.PutRequest{Key: []byte(o.Key), Value: []byte(o.Value), Lease: o.Lease})
	if err != nil {
		return nil, err
	}
	defer answer.Free()
	var m pb.PutResponse
	if err := proto.Unmarshal(answer.Bytes(), &m); err != nil {
		panic(fmt.Sprintf("sim: a put answer that is none: %v", err))
	}
	return func(o *Op) { o.Revision = m.Header.Revision }, nil
}

func swap(ctx context.Context, l *life, o *Op) (func(*Op), error) {
	key := []byte(o.Key)
	m, err := l.services.Txn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{{
			Key: key, Target: pb.Compare_MOD, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_ModRevision{ModRevision: o.Expect},
		}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: []byte(o.Value)}}}},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}},
	})
	if err != nil {
		return nil, err
	}
	return func(o *Op) {
		o.Revision, o.Succeeded = m.Header.Revision, m.Succeeded
		if !m.Succeeded {
			if kvs := m.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
				o.Pair = pairOf(kvs[0])
			}
		}
	}, nil
}

func remove(ctx context.Context, l *life, o *Op) (func(*Op), error) {
	m, err := l.services.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte(o.Key)})
	if err != nil {
		return nil, err
	}
	return func(o *Op) { o.Revision, o.Deleted = m.Header.Revision, m.Deleted }, nil
}

func both(ctx context.Context, l *life, o *Op) (func(*Op), error) {
	put := func(key, value string) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}}
	}
	m, err := l.services.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{put(o.Key, o.Value), put(o.Key2, o.Value2)}})
	if err != nil {
		return nil, err
	}
	return func(o *Op) { o.Revision = m.Header.Revision }, nil
}
