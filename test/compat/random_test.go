package compat

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// driver makes the calls of one episode. It looks at what the calls answered only to find good revisions to ask for.
type driver struct {
	*rand.Rand
	pair *pair

	compacted int64 // as scripts count
	named     int   // leases whose id the servers chose
	streams   []*randomStream
	opened    int
	guarded   bool // streams have users
	signed    bool // who hold signed tokens, which outlive the members that made them
	dead      int  // the member that is killed; memberCount: none
}

// randomStream is what the driver knows of a watch stream.
type randomStream struct {
	name   string
	user   string
	member int
	json   bool // a websocket of the gateway
	body   bool // one HTTP call of the gateway; it has its only watcher
	future bool // its watchers begin now or later; those of the others, now or earlier
	lost   bool // a watcher began before what is compacted: etcd gives no more progress, so it is closed soon
	ids    []int64
}

func newDriver(p *pair, seed, episode uint64) *driver {
	return &driver{Rand: rand.New(rand.NewPCG(seed, episode)), pair: p, compacted: 1, dead: memberCount}
}

// now is the newest revision, as scripts count.
func (d *driver) now() int64 { return d.pair.revision - d.pair.etcd.base + 1 }

func (d *driver) coin() bool { return d.IntN(2) == 0 }

func (d *driver) oneIn(n int) bool { return d.IntN(n) == 0 }

// member is one that lives.
func (d *driver) member() int {
	for {
		if m := d.IntN(memberCount); m != d.dead {
			return m
		}
	}
}

// alphabet is small, so that calls meet each other's keys.
var alphabet = []string{
	"a", "b", "c", "d", "e", "f", "aa", "ab", "abc", "b\x00", "ba", "bb", "ca", "cab", "\x00", "\x00\x00", "\xff", "\xff\xff", "zz",
	"a/1", "a/2", "a/3", "a/4", "b/1", "b/2", "é", "\x80",
}

func (d *driver) key() []byte {
	if d.oneIn(60) {
		return nil // refused
	}
	return []byte(alphabet[d.IntN(len(alphabet))])
}

func (d *driver) end() []byte {
	switch n := d.IntN(12); {
	case n == 0:
		return []byte{0}
	case n < 6:
		return []byte(alphabet[d.IntN(len(alphabet))])
	}
	return nil
}

// at is a revision to read at: the newest, an old one, one that is compacted, one that is still to come.
func (d *driver) at() int64 {
	switch n := d.IntN(20); {
	case n < 8:
		return 0
	case n == 8:
		return d.now() + 1 + d.Int64N(3)
	case n == 9:
		return -1 - d.Int64N(5)
	case n == 10:
		return verbatim + 1
	case n == 11:
		return max(1, d.compacted-d.Int64N(3))
	}
	return d.past()
}

// past is a revision that may be read at.
func (d *driver) past() int64 {
	if d.oneIn(3) {
		return d.compacted
	}
	span := min(d.now()-d.compacted, 60)
	if span <= 0 {
		return d.now()
	}
	return d.now() - d.Int64N(span+1)
}

// bound is a bound for create and mod revisions; mostly none.
func (d *driver) bound() int64 {
	switch d.IntN(12) {
	case 0:
		return max(1, d.now()-d.Int64N(80))
	case 1:
		return d.Int64N(5) - 1
	}
	return 0
}

func (d *driver) newRange() *pb.RangeRequest {
	r := &pb.RangeRequest{
		Key: d.key(), RangeEnd: d.end(), Revision: d.at(), Serializable: d.coin(), KeysOnly: d.oneIn(3), CountOnly: d.oneIn(6),
		SortOrder: pb.RangeRequest_SortOrder(d.IntN(3)), SortTarget: pb.RangeRequest_SortTarget(d.IntN(5)),
		MinModRevision: d.bound(), MaxModRevision: d.bound(), MinCreateRevision: d.bound(), MaxCreateRevision: d.bound(),
	}
	if d.coin() {
		r.Limit = d.Int64N(8) - 1
	}
	if d.oneIn(80) {
		r.SortOrder = 9
	}
	if d.oneIn(80) {
		r.SortTarget = 9
	}
	return r
}

func (d *driver) newPut() *pb.PutRequest {
	r := &pb.PutRequest{Key: d.key(), PrevKv: d.coin(), IgnoreValue: d.oneIn(6), IgnoreLease: d.oneIn(6)}
	if !r.IgnoreValue || d.oneIn(9) {
		r.Value = make([]byte, d.IntN(4))
		for i := range r.Value {
			r.Value[i] = byte('a' + d.IntN(3))
		}
		if d.oneIn(40) {
			r.Value = bytes.Repeat([]byte("x"), d.IntN(200))
		}
	}
	if d.oneIn(5) && (!r.IgnoreLease || d.oneIn(9)) {
		r.Lease = d.lease()
	}
	return r
}

// lease is the id of a lease that may exist. Those that the server chose hold no keys, because HashKV is over their ids.
func (d *driver) lease() int64 { return 5 + d.Int64N(6) }

func (d *driver) newDelete() *pb.DeleteRangeRequest {
	return &pb.DeleteRangeRequest{Key: d.key(), RangeEnd: d.end(), PrevKv: d.coin()}
}

func (d *driver) newCompare() *pb.Compare {
	c := &pb.Compare{
		Key: d.key(), RangeEnd: d.end(), Result: pb.Compare_CompareResult(d.IntN(4)), Target: pb.Compare_CompareTarget(d.IntN(5)),
	}
	union := int(c.Target)
	if d.oneIn(30) {
		union = d.IntN(6) // one that the target does not go with, or none
	}
	switch union {
	case 0:
		c.TargetUnion = &pb.Compare_Version{Version: d.Int64N(4)}
	case 1:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: d.bound()}
	case 2:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: d.bound()}
	case 3:
		c.TargetUnion = &pb.Compare_Value{Value: []byte("ab")[:d.IntN(3)]}
	case 4:
		c.TargetUnion = &pb.Compare_Lease{Lease: d.lease() * d.Int64N(2)}
	}
	if d.oneIn(60) {
		c.Result = 7
	}
	if d.oneIn(60) {
		c.Target = 7
	}
	return c
}

func (d *driver) newTxn(depth int) *pb.TxnRequest {
	r := &pb.TxnRequest{Success: d.newOps(depth), Failure: d.newOps(depth)}
	for range d.IntN(3) {
		r.Compare = append(r.Compare, d.newCompare())
	}
	return r
}

func (d *driver) newOps(depth int) []*pb.RequestOp {
	var ops []*pb.RequestOp
	for range d.IntN(5 - depth) {
		switch n := d.IntN(40); {
		case n == 0:
			ops = append(ops, &pb.RequestOp{})
		case n < 12:
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: d.newRange()}})
		case n < 24:
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: d.newPut()}})
		case n < 32:
			r := d.newDelete()
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: r}})
		case depth < 3:
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: d.newTxn(depth + 1)}})
		}
	}
	return ops
}

// putNothingBack takes out of a transaction what deletes a key that it puts later. Some such transactions slip through
// etcd's check for them, and then it panics, or loses the key at a compaction (docs/compat.md).
func putNothingBack(txn *pb.TxnRequest) {
	var deletes []*pb.DeleteRangeRequest
	eachOp(txn, func(o *pb.RequestOp) {
		if d := o.GetRequestDeleteRange(); d != nil {
			deletes = append(deletes, d)
		}
		if p := o.GetRequestPut(); p != nil {
			for _, d := range deletes {
				as := watcher{create: &pb.WatchCreateRequest{Key: d.Key, RangeEnd: d.RangeEnd}}
				if as.covers(p.Key) {
					d.Key, d.RangeEnd = []byte("never put"), nil
				}
			}
		}
	})
}

func eachOp(txn *pb.TxnRequest, f func(*pb.RequestOp)) {
	for _, ops := range [][]*pb.RequestOp{txn.Success, txn.Failure} {
		for _, o := range ops {
			f(o)
			if inner := o.GetRequestTxn(); inner != nil {
				eachOp(inner, f)
			}
		}
	}
}

// next are the next ops: one that writes, or several that read.
func (d *driver) next() []op {
	d.forget()
	switch n := d.IntN(100); {
	case n < 18:
		return d.one("KV.Put", d.newPut())
	case n < 23:
		return d.one("KV.DeleteRange", d.newDelete())
	case n < 43:
		txn := d.newTxn(0)
		putNothingBack(txn)
		return d.one("KV.Txn", txn)
	case n < 44:
		return d.compact()
	case n < 48:
		return d.leaseWrite()
	case n < 56:
		return d.watch()
	case n < 57:
		return []op{{verb: "settle"}}
	}
	var ops []op
	for range 1 + d.IntN(8) {
		ops = append(ops, d.read())
	}
	return ops
}

func (d *driver) one(method string, req proto.Message) []op {
	inJSON := jsonPaths[method] != "" && d.oneIn(*jsonFlag)
	if pairs != nil && strings.HasPrefix(method, "Auth.") {
		inJSON = false // the gateway would refuse them because of the certificate's name, and nobody would have a token
	}
	return []op{{verb: "call", method: method, member: d.member(), req: req, json: inJSON}}
}

func (d *driver) read() op {
	switch n := d.IntN(100); {
	case n < 66:
		return d.one("KV.Range", d.newRange())[0]
	case n < 80:
		r := d.newRange()
		if d.coin() { // as RangeStream takes it
			r.SortOrder, r.SortTarget = 0, 0
			r.MinModRevision, r.MaxModRevision, r.MinCreateRevision, r.MaxCreateRevision = 0, 0, 0, 0
		}
		if r.SortOrder == pb.RangeRequest_NONE {
			r.SortTarget = pb.RangeRequest_KEY // of more than ten keys etcd sorts each chunk for itself, and counts wrong (docs/compat.md)
		}
		return d.one("KV.RangeStream", r)[0]
	case n < 88:
		return d.one("Maintenance.HashKV", &pb.HashKVRequest{Revision: d.at()})[0]
	case n < 94:
		id := d.lease()
		if d.named > 0 && d.oneIn(3) {
			id = firstNamed + int64(d.IntN(d.named))
		}
		return d.one("Lease.LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: id, Keys: d.coin()})[0]
	case n < 97:
		return d.one("Lease.LeaseLeases", &pb.LeaseLeasesRequest{})[0]
	case n < 99:
		return d.one("Maintenance.Status", &pb.StatusRequest{})[0]
	}
	return d.one("Cluster.MemberList", &pb.MemberListRequest{Linearizable: d.coin()})[0]
}

func (d *driver) compact() []op {
	at := d.past()
	if d.oneIn(5) {
		at = d.at()
	}
	return d.one("KV.Compact", &pb.CompactionRequest{Revision: at, Physical: d.coin()})
}

func (d *driver) leaseWrite() []op {
	id := d.lease()
	if d.named > 0 && d.oneIn(3) {
		id = firstNamed + int64(d.IntN(d.named))
	}
	switch n := d.IntN(10); {
	case n == 0:
		return d.one("Lease.LeaseGrant", &pb.LeaseGrantRequest{TTL: 5000 + d.Int64N(100)})
	case n == 1:
		return d.one("Lease.LeaseGrant", &pb.LeaseGrantRequest{ID: d.lease(), TTL: 9_000_000_000 + d.Int64N(3)})
	case n < 5:
		return d.one("Lease.LeaseGrant", &pb.LeaseGrantRequest{ID: d.lease(), TTL: 5000 + d.Int64N(1000)})
	case n < 7:
		return d.one("Lease.LeaseKeepAlive", &pb.LeaseKeepAliveRequest{ID: id})
	}
	return d.one("Lease.LeaseRevoke", &pb.LeaseRevokeRequest{ID: id})
}

// watch opens, uses or closes a watch stream.
func (d *driver) watch() []op {
	if len(d.streams) < 3 || len(d.streams) < 8 && d.oneIn(4) {
		d.opened++
		s := &randomStream{name: fmt.Sprintf("s%d", d.opened), member: d.member(), future: d.oneIn(4)}
		if d.oneIn(*jsonFlag) && (!d.guarded || pairs == nil) { // the gateway refuses a certificate that names a user
			s.json = d.oneIn(2)
			s.body = !s.json
		}
		if d.guarded {
			s.user = d.somebody()
		}
		d.streams = append(d.streams, s)
		return d.watchOn(s)
	}
	i := d.IntN(len(d.streams))
	s := d.streams[i]
	if s.lost || s.body && d.coin() || d.oneIn(8) {
		d.streams = append(d.streams[:i], d.streams[i+1:]...)
		return []op{{verb: "settle"}, {verb: "close", stream: s.name}}
	}
	if s.body {
		return []op{d.read()}
	}
	return d.watchOn(s)
}

func (d *driver) watchOn(s *randomStream) []op {
	send := func(r *pb.WatchRequest) []op {
		return []op{{verb: "watch", method: "Watch.Watch", stream: s.name, member: s.member, user: s.user, json: s.json, body: s.body, req: r}}
	}
	if len(s.ids) > 0 && d.oneIn(5) {
		id := s.ids[d.IntN(len(s.ids))]
		return send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
	}
	r := &pb.WatchCreateRequest{Key: d.key(), RangeEnd: d.end(), PrevKv: d.coin(), ProgressNotify: d.oneIn(5), Fragment: d.oneIn(5)}
	switch {
	case s.future:
		if d.coin() {
			r.StartRevision = d.now() + 1 + d.Int64N(20)
		}
	case d.oneIn(12) && d.compacted > 1:
		r.StartRevision, s.lost = 1+d.Int64N(d.compacted-1), true
	case d.oneIn(30):
		r.StartRevision = -1
	case d.oneIn(4):
	default:
		r.StartRevision = d.past()
	}
	if d.oneIn(4) {
		r.WatchId = 1 + d.Int64N(6)
	}
	s.ids = append(s.ids, r.WatchId, int64(len(s.ids)))
	for f := range 2 {
		if d.oneIn(6) {
			r.Filters = append(r.Filters, pb.WatchCreateRequest_FilterType(f))
		}
	}
	return send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}})
}

// forget brings the driver's words up to date with what the last calls did.
func (d *driver) forget() {
	d.compacted = d.pair.etcd.compacted - d.pair.etcd.base + 1
	d.named = len(d.pair.etcd.leases)
}
