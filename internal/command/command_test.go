package command

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/trivet-kv/trivet/internal/kv"
)

func randomBytes(r *rand.Rand) []byte {
	n := r.IntN(6)
	if n == 0 {
		return nil
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.UintN(256))
	}
	return b
}

func randomRange(r *rand.Rand) kv.Range { return kv.Range{Key: randomBytes(r), End: randomBytes(r)} }

func randomPut(r *rand.Rand) *Put {
	return &Put{
		Key: randomBytes(r), Value: randomBytes(r), Lease: kv.LeaseID(r.Int64() - r.Int64()),
		PrevKV: r.IntN(2) == 0, IgnoreValue: r.IntN(2) == 0, IgnoreLease: r.IntN(2) == 0,
	}
}

func randomTxn(r *rand.Rand, depth int) *Txn {
	t := &Txn{}
	for range r.IntN(3) {
		c := Compare{Range: randomRange(r), Target: CompareTarget(r.IntN(5)), Result: CompareResult(r.IntN(4))}
		if c.Target == CompareValue {
			c.Value = randomBytes(r)
		} else {
			c.Int = r.Int64() - r.Int64()
		}
		t.Compare = append(t.Compare, c)
	}
	for range r.IntN(4) {
		t.Success = append(t.Success, randomOp(r, depth))
	}
	for range r.IntN(4) {
		t.Failure = append(t.Failure, randomOp(r, depth))
	}
	return t
}

func randomOp(r *rand.Rand, depth int) Op {
	switch n := r.IntN(4); {
	case n == 0:
		return Op{Put: randomPut(r)}
	case n == 1:
		return Op{DeleteRange: &DeleteRange{Range: randomRange(r), PrevKV: r.IntN(2) == 0}}
	case n == 2 && depth < 3:
		return Op{Txn: randomTxn(r, depth+1)}
	}
	o := &kv.RangeOptions{
		Range: randomRange(r), Revision: r.Int64(), Limit: r.Int64(), KeysOnly: r.IntN(2) == 0, CountOnly: r.IntN(2) == 0,
		Target: kv.SortTarget(r.IntN(5)), Order: kv.SortOrder(r.IntN(3)),
	}
	if r.IntN(2) == 0 {
		o.MinMod, o.MaxMod, o.MinCreate, o.MaxCreate = r.Int64(), r.Int64(), r.Int64(), r.Int64()
	}
	return Op{Range: o}
}

func randomCommand(r *rand.Rand) *Command {
	c := &Command{ID: r.Uint64(), Time: r.Int64() - r.Int64(), User: string(randomBytes(r)), AuthRevision: r.Uint64()}
	switch r.IntN(18) {
	case 0:
		c.Put = randomPut(r)
	case 1:
		c.DeleteRange = &DeleteRange{Range: randomRange(r), PrevKV: r.IntN(2) == 0}
	case 2:
		c.Txn = randomTxn(r, 1)
	case 3:
		c.Compact = &Compact{Revision: r.Int64()}
	case 4:
		c.LeaseGrant = &LeaseGrant{ID: kv.LeaseID(r.Int64()), TTL: r.Int64() - r.Int64()}
	case 5:
		c.LeaseRevoke = &LeaseRevoke{ID: kv.LeaseID(r.Int64()), Term: r.Uint64(), Granted: r.Uint64()}
	case 6:
		c.LeaseCheckpoint = &LeaseCheckpoint{Term: r.Uint64()}
		for range r.IntN(4) {
			c.LeaseCheckpoint.Leases = append(c.LeaseCheckpoint.Leases, kv.Lease{ID: kv.LeaseID(r.Int64()), Remaining: r.Int64(), Granted: r.Uint64()})
		}
	case 8:
		c.Auth = &Auth{
			Op: firstAuth + AuthOp(r.IntN(int(lastAuth-firstAuth)+1)), Name: string(randomBytes(r)), Role: string(randomBytes(r)),
			Hash: randomBytes(r), NoPassword: r.IntN(2) == 0, BadHash: r.IntN(2) == 0, Nonce: string(randomBytes(r)),
			Permission: kv.Permission{Range: randomRange(r), Access: kv.Access(r.Int32N(4) - 1)},
		}
	case 15:
		c.Alarm = &Alarm{Raise: r.IntN(2) == 0, Found: r.IntN(2) == 0, Alarm: kv.Alarm{Type: kv.AlarmType(r.Int32() - r.Int32()), MemberID: r.Uint64(), Own: r.IntN(2) == 0}}
	case 16:
		c.Mark = &Mark{Restart: r.IntN(2) == 0, Agreed: Note{Index: r.Uint64(), Since: r.Uint64(), Hash: r.Uint64()}}
	case 17:
		c.Fence = &Fence{Member: r.Uint64()}
	case 7:
		c.MemberPublish = &MemberPublish{ID: r.Uint64(), Name: string(randomBytes(r))}
		for range r.IntN(3) {
			c.MemberPublish.ClientURLs = append(c.MemberPublish.ClientURLs, string(randomBytes(r)))
		}
	case 14:
		c.MemberAdd = &MemberAdd{ID: r.Uint64(), Learner: r.IntN(2) == 0, MaxLearners: r.Uint64(), PeerURLs: []string{string(randomBytes(r)), "u"}}
	case 9:
		c.MemberRemove = &MemberRemove{ID: r.Uint64()}
	case 10:
		c.MemberPromote = &MemberPromote{ID: r.Uint64()}
	case 11:
		c.MemberUpdate = &MemberUpdate{ID: r.Uint64(), PeerURLs: []string{string(randomBytes(r)), "u"}}
	case 12:
		c.ClusterVersion = &ClusterVersion{Version: string(randomBytes(r))}
	case 13:
		c.Downgrade = &Downgrade{Enabled: r.IntN(2) == 0, Target: string(randomBytes(r))}
	}
	return c
}

// What is encoded, alone or in a batch, is what is decoded, and every proper prefix of it is refused.
func TestRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var wants []*Command
		var encoded [][]byte
		for range r.IntN(4) {
			c := randomCommand(r)
			wants, encoded = append(wants, c), append(encoded, c.Append(nil))
		}
		var got []*Command
		err := Batch(AppendBatch(nil, 77, encoded), func(origin uint64, b []byte) error {
			if origin != 77 {
				t.Fatalf("origin %d", origin)
			}
			c := new(Command)
			got = append(got, c)
			return c.Decode(b)
		})
		if err != nil || !reflect.DeepEqual(got, wants) {
			t.Fatalf("decoded %+v, %v; want %+v", got, err, wants)
		}
		for _, b := range encoded {
			cut := r.IntN(len(b))
			if err := new(Command).Decode(b[:cut]); !errors.Is(err, ErrMalformed) {
				t.Fatalf("%d of %d bytes decoded: %v", cut, len(b), err)
			}
		}
	}
}

func TestBatchRefusesOtherVersions(t *testing.T) {
	err := Batch([]byte{Version + 1, 0}, func(uint64, []byte) error { return nil })
	if !errors.Is(err, ErrMalformed) {
		t.Fatalf("got %v", err)
	}
}

// A transaction as deep as MaxTxnDepth is decoded, a deeper one is refused and does not exhaust the stack.
func TestTxnDepth(t *testing.T) {
	nest := func(depth int) *Command {
		txn := &Txn{}
		for range depth - 1 {
			txn = &Txn{Failure: []Op{{Txn: txn}}}
		}
		if txn.Depth() != depth {
			t.Fatalf("depth %d counted as %d", depth, txn.Depth())
		}
		return &Command{Txn: txn}
	}
	if err := new(Command).Decode(nest(MaxTxnDepth).Append(nil)); err != nil {
		t.Fatalf("depth %d: %v", MaxTxnDepth, err)
	}
	if err := new(Command).Decode(nest(MaxTxnDepth + 1).Append(nil)); !errors.Is(err, ErrMalformed) {
		t.Fatalf("depth %d: %v", MaxTxnDepth+1, err)
	}
}

// checkPutKeys compares what PutKeys shows of b with the puts of c, which b decodes to.
func checkPutKeys(t *testing.T, b []byte, c *Command) {
	t.Helper()
	var got, want [][]byte
	PutKeys(b, func(key []byte) { got = append(got, key) })
	var collect func(*Txn)
	collect = func(txn *Txn) {
		for _, op := range slices.Concat(txn.Success, txn.Failure) {
			switch {
			case op.Put != nil:
				want = append(want, op.Put.Key)
			case op.Txn != nil:
				collect(op.Txn)
			}
		}
	}
	switch {
	case c.Put != nil:
		want = append(want, c.Put.Key)
	case c.Txn != nil:
		collect(c.Txn)
	}
	if !slices.EqualFunc(got, want, bytes.Equal) {
		t.Fatalf("%x puts %q, and PutKeys shows %q", b, want, got)
	}
}

func TestPutKeys(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 500 {
		c := randomCommand(r)
		checkPutKeys(t, c.Append(nil), c)
	}
}

// Whatever decodes also encodes, to something that decodes to the same.
func FuzzDecode(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		f.Add(randomCommand(r).Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var c, again Command
		if c.Decode(b) != nil {
			return
		}
		checkPutKeys(t, b, &c)
		encoded := c.Append(nil)
		if err := again.Decode(encoded); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again.Append(nil), encoded) {
			t.Fatalf("%x encodes as %x, then otherwise", b, encoded)
		}
	})
}

func BenchmarkPutAppendDecode(b *testing.B) {
	c := &Command{ID: 1 << 60, Time: 1 << 60, Put: &Put{Key: make([]byte, 32), Value: make([]byte, 256)}}
	var buf []byte
	var out Command
	b.ReportAllocs()
	for b.Loop() {
		buf = c.Append(buf[:0])
		if err := out.Decode(buf); err != nil {
			b.Fatal(err)
		}
	}
}
