package rpc

import (
	"bytes"
	"slices"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func checkRange(r *pb.RangeRequest) error {
	if len(r.GetKey()) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	if _, ok := pb.RangeRequest_SortOrder_name[int32(r.SortOrder)]; !ok {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	if _, ok := pb.RangeRequest_SortTarget_name[int32(r.SortTarget)]; !ok {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	return nil
}

func checkRangeStream(r *pb.RangeRequest) error {
	if err := checkRange(r); err != nil {
		return err
	}
	if r.SortOrder != pb.RangeRequest_NONE &&
		(r.SortTarget != pb.RangeRequest_KEY || r.SortOrder != pb.RangeRequest_ASCEND) {
		return status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")
	}
	if r.MinModRevision|r.MaxModRevision|r.MinCreateRevision|r.MaxCreateRevision != 0 {
		return status.Error(codes.Unimplemented, "RangeStream does not support revision filters")
	}
	return nil
}

func checkPut(r *pb.PutRequest) error {
	switch {
	case len(r.GetKey()) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case r.IgnoreValue && len(r.Value) != 0:
		return rpctypes.ErrGRPCValueProvided
	case r.IgnoreLease && r.Lease != 0:
		return rpctypes.ErrGRPCLeaseProvided
	}
	return nil
}

func checkDelete(r *pb.DeleteRangeRequest) error {
	if len(r.GetKey()) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	return nil
}

// checkTxn bounds the operations: the longest of a transaction's three lists counts against maxOps, and what is left of
// it bounds the transactions inside.
func checkTxn(r *pb.TxnRequest, maxOps int) error {
	n := max(len(r.GetCompare()), len(r.GetSuccess()), len(r.GetFailure()))
	if n > maxOps {
		return rpctypes.ErrGRPCTooManyOps
	}
	for _, c := range r.GetCompare() {
		if len(c.GetKey()) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
	}
	for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range branch {
			if err := checkOp(op, maxOps-n); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkOp(op *pb.RequestOp, maxOps int) error {
	switch v := op.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		return checkRange(v.RequestRange)
	case *pb.RequestOp_RequestPut:
		return checkPut(v.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		return checkDelete(v.RequestDeleteRange)
	case *pb.RequestOp_RequestTxn:
		return checkTxn(v.RequestTxn, maxOps)
	}
	return rpctypes.ErrGRPCKeyNotFound // as etcd says of an operation that is none
}

// checkDuplicates refuses a transaction in which a key could be put twice, or deleted and put, on one path through it.
// What counts is etcd's rule to the letter, with its gaps, because clients were written against it: a put meets the
// deletes of its own list and those inside earlier lists, but not deletes inside later ones; the two branches of an
// inner transaction exclude one another; a delete from a key to the end of the key space meets nothing.
func checkDuplicates(r *pb.TxnRequest) error {
	for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		if _, _, err := touched(branch); err != nil {
			return err
		}
	}
	return nil
}

// touched returns the keys that a list of operations puts and the spans that it deletes, inner transactions included.
func touched(ops []*pb.RequestOp) (map[string]struct{}, spans, error) {
	var dels spans
	for _, op := range ops {
		d := op.GetRequestDeleteRange()
		if d == nil {
			continue
		}
		s := span{d.Key, d.RangeEnd}
		if len(s.end) == 0 {
			s.end = append(bytes.Clone(d.Key), 0)
		}
		if bytes.Compare(s.begin, s.end) < 0 {
			dels = append(dels, s)
		}
	}
	dels = dels.normalize()

	puts := make(map[string]struct{})
	for _, op := range ops {
		t := op.GetRequestTxn()
		if t == nil {
			continue
		}
		thenPuts, thenDels, err := touched(t.Success)
		if err != nil {
			return nil, nil, err
		}
		elsePuts, elseDels, err := touched(t.Failure)
		if err != nil {
			return nil, nil, err
		}
		for k := range thenPuts {
			if _, twice := puts[k]; twice || dels.contains(k) {
				return nil, nil, rpctypes.ErrGRPCDuplicateKey
			}
		}
		for k := range elsePuts {
			if _, twice := puts[k]; twice || dels.contains(k) {
				return nil, nil, rpctypes.ErrGRPCDuplicateKey
			}
		}
		for _, set := range []map[string]struct{}{thenPuts, elsePuts} {
			for k := range set {
				puts[k] = struct{}{}
			}
		}
		dels = merge(merge(dels, thenDels), elseDels)
	}

	for _, op := range ops {
		p := op.GetRequestPut()
		if p == nil {
			continue
		}
		k := string(p.Key)
		if _, twice := puts[k]; twice || dels.contains(k) {
			return nil, nil, rpctypes.ErrGRPCDuplicateKey
		}
		puts[k] = struct{}{}
	}
	return puts, dels, nil
}

type span struct{ begin, end []byte }

// spans are disjoint and in order once normalized, so that a lookup is a binary search: a transaction may hold many
// thousand operations and the check must not cost their square.
type spans []span

func (s spans) normalize() spans {
	slices.SortFunc(s, func(a, b span) int { return bytes.Compare(a.begin, b.begin) })
	return s.join()
}

// merge makes one normalized list of two.
func merge(a, b spans) spans {
	if len(b) == 0 {
		return a
	}
	out := make(spans, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if bytes.Compare(a[0].begin, b[0].begin) <= 0 {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...).join()
}

// join makes one span of neighbours that touch, in place.
func (s spans) join() spans {
	if len(s) < 2 {
		return s
	}
	out := s[:1]
	for _, n := range s[1:] {
		last := &out[len(out)-1]
		if bytes.Compare(n.begin, last.end) > 0 {
			out = append(out, n)
		} else if bytes.Compare(n.end, last.end) > 0 {
			last.end = n.end
		}
	}
	return out
}

func (s spans) contains(key string) bool {
	i := sort.Search(len(s), func(i int) bool { return string(s[i].end) > key })
	return i < len(s) && string(s[i].begin) <= key
}
