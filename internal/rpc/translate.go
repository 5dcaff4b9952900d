package rpc

import (
	"fmt"
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

func rangeOptions(r *pb.RangeRequest) kv.RangeOptions {
	return kv.RangeOptions{
		Range:     kv.Range{Key: r.Key, End: r.RangeEnd},
		Revision:  r.Revision,
		Limit:     r.Limit,
		Target:    kv.SortTarget(r.SortTarget),
		Order:     kv.SortOrder(r.SortOrder),
		KeysOnly:  r.KeysOnly,
		CountOnly: r.CountOnly,
		MinMod:    r.MinModRevision,
		MaxMod:    r.MaxModRevision,
		MinCreate: r.MinCreateRevision,
		MaxCreate: r.MaxCreateRevision,
	}
}

func putCommand(r *pb.PutRequest) *command.Put {
	return &command.Put{
		Key: r.Key, Value: r.Value, Lease: kv.LeaseID(r.Lease),
		PrevKV: r.PrevKv, IgnoreValue: r.IgnoreValue, IgnoreLease: r.IgnoreLease,
	}
}

func deleteCommand(r *pb.DeleteRangeRequest) *command.DeleteRange {
	return &command.DeleteRange{Range: kv.Range{Key: r.Key, End: r.RangeEnd}, PrevKV: r.PrevKv}
}

// txnCommand translates a transaction that checkTxn has passed.
func txnCommand(r *pb.TxnRequest) *command.Txn {
	return &command.Txn{
		Compare: compares(r.Compare),
		Success: ops(r.Success),
		Failure: ops(r.Failure),
	}
}

func ops(in []*pb.RequestOp) []command.Op {
	out := make([]command.Op, len(in))
	for i, op := range in {
		switch v := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
			o := rangeOptions(v.RequestRange)
			out[i].Range = &o
		case *pb.RequestOp_RequestPut:
			out[i].Put = putCommand(v.RequestPut)
		case *pb.RequestOp_RequestDeleteRange:
			out[i].DeleteRange = deleteCommand(v.RequestDeleteRange)
		case *pb.RequestOp_RequestTxn:
			out[i].Txn = txnCommand(v.RequestTxn)
		}
	}
	return out
}

func compares(in []*pb.Compare) []command.Compare {
	out := make([]command.Compare, len(in))
	for i, c := range in {
		out[i] = compare(c)
	}
	return out
}

// compare translates one condition. Numbers that name no target or no relation are let through by etcd: an unknown target
// compares as equal, an unknown relation holds. They are expressed by conditions that mean the same, so that the state
// machine need not know. One that always holds is kept: its keys must be readable for who asks.
func compare(c *pb.Compare) command.Compare {
	out := command.Compare{
		Range:  kv.Range{Key: c.Key, End: c.RangeEnd},
		Target: command.CompareTarget(c.Target),
		Result: command.CompareResult(c.Result),
	}
	_, knownTarget := pb.Compare_CompareTarget_name[int32(c.Target)]
	_, knownResult := pb.Compare_CompareResult_name[int32(c.Result)]
	switch {
	case !knownResult && c.Target == pb.Compare_VALUE:
		// Holds if there is a value to compare with.
		out.Target, out.Result, out.Int = command.CompareVersion, command.Greater, 0
		return out
	case !knownResult, !knownTarget && c.Result == pb.Compare_EQUAL:
		out.Target, out.Result, out.Int = command.CompareVersion, command.Greater, math.MinInt64 // always
		return out
	case !knownTarget:
		out.Target, out.Result, out.Int = command.CompareVersion, command.Less, math.MinInt64 // never
		return out
	}
	switch c.Target {
	case pb.Compare_VERSION:
		out.Int = c.GetVersion()
	case pb.Compare_CREATE:
		out.Int = c.GetCreateRevision()
	case pb.Compare_MOD:
		out.Int = c.GetModRevision()
	case pb.Compare_LEASE:
		out.Int = c.GetLease()
	case pb.Compare_VALUE:
		out.Value = c.GetValue()
	}
	return out
}

func keyValue(p *kv.KeyValue) *mvccpb.KeyValue {
	if p == nil {
		return nil
	}
	return &mvccpb.KeyValue{
		Key: p.Key, Value: p.Value, CreateRevision: p.CreateRevision, ModRevision: p.ModRevision,
		Version: p.Version, Lease: int64(p.Lease),
	}
}

func keyValues(ps []kv.KeyValue) []*mvccpb.KeyValue {
	out := make([]*mvccpb.KeyValue, len(ps))
	for i := range ps {
		out[i] = keyValue(&ps[i])
	}
	return out
}

func headerPB(h Header, revision int64) *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: h.ClusterID, MemberId: h.MemberID, Revision: revision, RaftTerm: h.Term}
}

// txnResponse makes the answer of the transaction r. The headers inside carry a revision alone, that of their operation;
// an inner transaction's header is empty.
func txnResponse(res *command.TxnResult, r *pb.TxnRequest) *pb.TxnResponse {
	asked := r.Success
	if !res.Succeeded {
		asked = r.Failure
	}
	if len(asked) != len(res.Ops) {
		panic(fmt.Sprintf("rpc: the state machine answered %d of %d operations", len(res.Ops), len(asked)))
	}
	out := &pb.TxnResponse{
		Header: &pb.ResponseHeader{}, Succeeded: res.Succeeded, Responses: make([]*pb.ResponseOp, len(res.Ops)),
	}
	for i := range res.Ops {
		out.Responses[i] = opResponse(&res.Ops[i], asked[i])
	}
	return out
}

func opResponse(op *command.OpResult, asked *pb.RequestOp) *pb.ResponseOp {
	head := &pb.ResponseHeader{Revision: op.Revision}
	switch {
	case op.Range != nil:
		kvs := keyValues(op.Range.KVs)
		if q := asked.GetRequestRange(); q.GetKeysOnly() {
			for _, p := range kvs {
				p.Value = nil
				if q.SortTarget != pb.RangeRequest_VALUE {
					p.Lease = 0 // etcd answers these from its index, which knows no leases
				}
			}
		}
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{
			Header: head, Kvs: kvs, More: op.Range.More, Count: op.Range.Count,
		}}}
	case op.Put != nil:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{
			Header: head, PrevKv: keyValue(op.Put.Prev),
		}}}
	case op.DeleteRange != nil:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{
			Header: head, Deleted: op.DeleteRange.Deleted, PrevKvs: keyValues(op.DeleteRange.Prev),
		}}}
	case op.Txn != nil:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: txnResponse(op.Txn, asked.GetRequestTxn())}}
	}
	panic("rpc: the state machine answered an operation without a result")
}
