package compat

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// TestManyKeys asks for pages, counts and streams out of more keys than one piece of anything holds: counts' fences,
// chunks of a stream, pieces of a deletion, a watcher's way through the past.
func TestManyKeys(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(rand.Uint32())
	}
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	key := func(i int) []byte { return fmt.Appendf(nil, "k%05d", i) }
	const keys, each = 4000, 100
	var ops []op
	call := func(method string, req proto.Message) {
		ops = append(ops, op{verb: "call", method: method, member: r.IntN(memberCount), req: req})
	}
	order := r.Perm(keys)
	for i := 0; i < keys; i += each {
		txn := &pb.TxnRequest{}
		for _, k := range order[i : i+each] {
			put := &pb.PutRequest{Key: key(k), Value: []byte(strings.Repeat("v", 100+k%600))}
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
		}
		call("KV.Txn", txn)
	}
	read := func() {
		all := pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}
		for range 40 {
			from, to := key(r.IntN(keys)), key(r.IntN(keys+500))
			at := int64(0)
			if r.IntN(3) == 0 {
				at = 1 + keys/each - r.Int64N(5)
			}
			page := &pb.RangeRequest{Key: from, RangeEnd: to, Limit: r.Int64N(700), Revision: at, Serializable: r.IntN(2) == 0}
			call("KV.Range", page)
			call("KV.Range", &pb.RangeRequest{Key: from, RangeEnd: to, CountOnly: true, Revision: at})
			call("KV.Range", &pb.RangeRequest{
				Key: from, RangeEnd: to, KeysOnly: true, Revision: at, Limit: r.Int64N(50), SortOrder: pb.RangeRequest_SortOrder(r.IntN(3)),
				SortTarget: pb.RangeRequest_SortTarget(r.IntN(5)), MinModRevision: r.Int64N(40),
			})
		}
		call("KV.RangeStream", &pb.RangeRequest{Key: all.Key, RangeEnd: all.RangeEnd})
		call("KV.RangeStream", &pb.RangeRequest{Key: all.Key, RangeEnd: all.RangeEnd, Limit: 3000, KeysOnly: true})
		call("KV.RangeStream", &pb.RangeRequest{Key: all.Key, RangeEnd: []byte{0}, CountOnly: true})
		for m := range memberCount {
			ops = append(ops, op{verb: "call", method: "Maintenance.HashKV", member: m, req: &pb.HashKVRequest{}})
		}
	}
	read()
	for range 30 {
		from := r.IntN(keys)
		call("KV.DeleteRange", &pb.DeleteRangeRequest{Key: key(from), RangeEnd: key(from + r.IntN(60)), PrevKv: r.IntN(2) == 0})
	}
	create := &pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: 2, PrevKv: true, Fragment: true}
	ops = append(ops, op{verb: "watch", method: "Watch.Watch", stream: "past", member: 1,
		req: &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}})
	read()
	call("KV.Compact", &pb.CompactionRequest{Revision: 1 + keys/each - 5, Physical: true})
	read()
	call("KV.DeleteRange", &pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), PrevKv: true})
	read()
	if err := systems.run(ops, false); err != nil {
		t.Fatalf("after %d lines: %.4000s", len(systems.done), err)
	}
}
