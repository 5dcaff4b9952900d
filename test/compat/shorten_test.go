package compat

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// shortenFor is how long to look for a shorter script.
const shortenFor = 3 * time.Minute

// shorten takes lines out of a script, then operations out of its transactions, as long as the two systems still differ,
// and returns what is left with its difference. If the script does not fail again, it is returned whole.
func shorten(t *testing.T, script []op, found error) ([]op, error) {
	deadline := time.Now().Add(shortenFor)
	fails := func(ops []op) error {
		// After a difference the two may hold different data: begin finds that out and starts new members.
		err := systems.run(ops, false)
		voided := systems.void(err)
		systems.bury()
		if voided {
			return nil
		}
		return err
	}
	systems.bury()
	if err := fails(script); err == nil {
		t.Log("the script does not fail again; this is all of it")
		return script, found
	} else {
		script, found = upToFailure(len(script)), err
	}
	for size := len(script) / 2; size > 0 && time.Now().Before(deadline); {
		removed := false
		for from := len(script) - size; from >= 0 && time.Now().Before(deadline); from -= size {
			try := append(append([]op{}, script[:from]...), script[from+size:]...)
			if err := fails(try); err != nil {
				// What comes behind the line that fails is not needed.
				script, found, removed = upToFailure(len(try)), err, true
				from = min(from, len(script))
			}
		}
		if !removed || size > 1 {
			size /= 2
		}
	}
	for i := 0; i < len(script) && time.Now().Before(deadline); i++ {
		for _, simpler := range simplify(script[i]) {
			try := append([]op{}, script...)
			try[i] = simpler
			if err := fails(try); err != nil {
				script, found = upToFailure(len(try)), err
				i--
				break
			}
		}
	}
	return script, found
}

// upToFailure is what was done of a script of n lines: the settling that ends every run is not part of it.
func upToFailure(n int) []op { return append([]op{}, systems.done[:min(n, len(systems.done))]...) }

// simplify returns forms of a transaction with one part less.
func simplify(o op) []op {
	txn, ok := o.req.(*pb.TxnRequest)
	if !ok {
		return nil
	}
	var all []op
	add := func(change func(*pb.TxnRequest)) {
		c := o
		c.req = proto.Clone(txn)
		change(c.req.(*pb.TxnRequest))
		all = append(all, c)
	}
	for i := range txn.Compare {
		add(func(r *pb.TxnRequest) { r.Compare = append(r.Compare[:i], r.Compare[i+1:]...) })
	}
	for i := range txn.Success {
		add(func(r *pb.TxnRequest) { r.Success = append(r.Success[:i], r.Success[i+1:]...) })
	}
	for i := range txn.Failure {
		add(func(r *pb.TxnRequest) { r.Failure = append(r.Failure[:i], r.Failure[i+1:]...) })
	}
	return all
}
