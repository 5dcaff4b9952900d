package rpc

import (
	"testing"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/trivet-kv/trivet/internal/command"
)

func opPut(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key)}}}
}

func opDelete(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
		RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)},
	}}
}

func opTxn(then, otherwise []*pb.RequestOp) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: then, Failure: otherwise}}}
}

func TestTexts(t *testing.T) {
	key := []byte("k")
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"range without key", checkRange(&pb.RangeRequest{}), "etcdserver: key is not provided"},
		{"range of nil", checkRange(nil), "etcdserver: key is not provided"},
		{"range order", checkRange(&pb.RangeRequest{Key: key, SortOrder: 3}), "etcdserver: invalid sort option"},
		{"range target", checkRange(&pb.RangeRequest{Key: key, SortTarget: 5}), "etcdserver: invalid sort option"},
		{"put without key", checkPut(&pb.PutRequest{}), "etcdserver: key is not provided"},
		{"put of nil", checkPut(nil), "etcdserver: key is not provided"},
		{"put value", checkPut(&pb.PutRequest{Key: key, Value: key, IgnoreValue: true}), "etcdserver: value is provided"},
		{"put lease", checkPut(&pb.PutRequest{Key: key, Lease: 1, IgnoreLease: true}), "etcdserver: lease is provided"},
		{"delete without key", checkDelete(nil), "etcdserver: key is not provided"},
		{"empty op", checkTxn(&pb.TxnRequest{Success: []*pb.RequestOp{{}}}, 9), "etcdserver: key not found"},
		{"nil op", checkTxn(&pb.TxnRequest{Failure: []*pb.RequestOp{nil}}, 9), "etcdserver: key not found"},
		{"compare without key", checkTxn(&pb.TxnRequest{Compare: []*pb.Compare{{}}}, 9), "etcdserver: key is not provided"},
		{"too many", checkTxn(&pb.TxnRequest{Success: []*pb.RequestOp{opPut("a"), opPut("b")}}, 1), "etcdserver: too many operations in txn request"},
		{"too many inside", checkTxn(&pb.TxnRequest{Success: []*pb.RequestOp{opTxn([]*pb.RequestOp{opPut("a"), opPut("b")}, nil)}}, 2), "etcdserver: too many operations in txn request"},
		{"twice", checkDuplicates(&pb.TxnRequest{Failure: []*pb.RequestOp{opPut("a"), opPut("a")}}), "etcdserver: duplicate key given in txn request"},
	} {
		if status.Convert(c.err).Message() != c.want {
			t.Errorf("%s: %v, want %s", c.name, c.err, c.want)
		}
	}
	if err := checkTxn(&pb.TxnRequest{Success: []*pb.RequestOp{opTxn([]*pb.RequestOp{opPut("a")}, nil)}}, 2); err != nil {
		t.Error(err)
	}
}

// The check must not cost the square of the operations: this transaction fits into one message.
func TestDuplicatesAreCheckedQuickly(t *testing.T) {
	var key [3]byte
	next := func() string {
		for i := range key {
			if key[i]++; key[i] != 0 {
				break
			}
		}
		return string(key[:])
	}
	outer := &pb.TxnRequest{}
	for range 42 {
		var middle []*pb.RequestOp
		for range 42 {
			var inner []*pb.RequestOp
			for i := range 42 {
				if i%2 == 0 {
					inner = append(inner, opPut(next()))
				} else {
					inner = append(inner, opDelete(next(), ""))
				}
			}
			middle = append(middle, opTxn(inner, nil))
		}
		outer.Success = append(outer.Success, opTxn(middle, nil))
	}
	if err := checkTxn(outer, 128); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := checkDuplicates(outer); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("%d operations took %v", 42*42*42, took)
	}
}

// slowDuplicates is the rule of checkDuplicates without its speed.
func slowDuplicates(ops []*pb.RequestOp) (map[string]bool, []span, error) {
	var dels []span
	contains := func(k string) bool {
		for _, d := range dels {
			if string(d.begin) <= k && k < string(d.end) {
				return true
			}
		}
		return false
	}
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			end := d.RangeEnd
			if len(end) == 0 {
				end = append([]byte(string(d.Key)), 0)
			}
			dels = append(dels, span{d.Key, end})
		}
	}
	puts := make(map[string]bool)
	for _, op := range ops {
		t := op.GetRequestTxn()
		if t == nil {
			continue
		}
		a, da, err := slowDuplicates(t.Success)
		if err != nil {
			return nil, nil, err
		}
		b, db, err := slowDuplicates(t.Failure)
		if err != nil {
			return nil, nil, err
		}
		all := make(map[string]bool)
		for _, m := range []map[string]bool{a, b} {
			for k := range m {
				all[k] = true
			}
		}
		for k := range all {
			if puts[k] || contains(k) {
				return nil, nil, rpctypes.ErrGRPCDuplicateKey
			}
		}
		for k := range all {
			puts[k] = true
		}
		dels = append(append(dels, da...), db...)
	}
	for _, op := range ops {
		if p := op.GetRequestPut(); p != nil {
			if puts[string(p.Key)] || contains(string(p.Key)) {
				return nil, nil, rpctypes.ErrGRPCDuplicateKey
			}
			puts[string(p.Key)] = true
		}
	}
	return puts, dels, nil
}

// FuzzTxnRequest takes any bytes for a transaction: nothing may panic, and the quick check for duplicates must say what
// the slow one says.
func FuzzTxnRequest(f *testing.F) {
	for _, r := range []*pb.TxnRequest{
		{}, {Success: []*pb.RequestOp{opPut("a"), opDelete("a", "c"), opTxn([]*pb.RequestOp{opPut("b")}, []*pb.RequestOp{opPut("b")})}},
		{Compare: []*pb.Compare{{Key: []byte("k"), Target: 9, Result: 9}}, Failure: []*pb.RequestOp{{}, opDelete("x", "\x00")}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := new(pb.TxnRequest)
		if proto.Unmarshal(b, r) != nil || checkTxn(r, 128) != nil {
			return
		}
		quick := checkDuplicates(r)
		_, _, slow := slowDuplicates(r.Success)
		if slow == nil {
			_, _, slow = slowDuplicates(r.Failure)
		}
		if (quick == nil) != (slow == nil) {
			t.Fatalf("quick: %v, slow: %v", quick, slow)
		}
		c := txnCommand(r)
		if len(c.Success) != len(r.Success) || len(c.Failure) != len(r.Failure) {
			t.Fatal("operations were lost")
		}
		if c.Depth() > command.MaxTxnDepth {
			return
		}
		var again command.Command
		if err := again.Decode((&command.Command{ID: 1, Txn: c}).Append(nil)); err != nil {
			t.Fatalf("the log cannot read it back: %v", err)
		}
	})
}

// FuzzWatchRequest takes any bytes for a request on a watch stream.
func FuzzWatchRequest(f *testing.F) {
	b, err := proto.Marshal(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte("k"), RangeEnd: []byte{0}, StartRevision: -1, Filters: []pb.WatchCreateRequest_FilterType{0, 1, 7}, WatchId: -1,
	}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(_ *testing.T, b []byte) {
		r := new(pb.WatchRequest)
		if proto.Unmarshal(b, r) == nil && r.GetCreateRequest() != nil {
			createOptions(r.GetCreateRequest())
		}
	})
}
