package compat

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	mvccpb "go.etcd.io/etcd/api/v3/mvccpb"
)

// pair is the two systems in one script.
type pair struct {
	etcd, trivet *target
	revision     int64 // newest that an answer told
	compactions  map[int64]bool
	done         []op // the script so far
	calls        int
}

// difference is what makes a script fail. A void one says that the machine, and neither of the systems, is at fault.
type difference struct {
	text string
	void bool
}

func (d *difference) Error() string { return d.text }

func differs(format string, args ...any) error {
	return &difference{text: fmt.Sprintf(format, args...)}
}

// blameless makes err a difference that says nothing of the systems, unless it is a difference already.
func blameless(err error) error {
	var d *difference
	if err == nil || errors.As(err, &d) {
		return err
	}
	return &difference{text: err.Error(), void: true}
}

// void says whether err is the machine's fault. A member whose process has ended by itself is not.
func (p *pair) void(err error) bool {
	var d *difference
	if !errors.As(err, &d) || !d.void {
		return false
	}
	for range 60 { // its connections end some time before the process does
		if p.crashed() != nil {
			return false
		}
		time.Sleep(50 * time.Millisecond)
	}
	return true
}

func (p *pair) crashed() error { return errors.Join(p.etcd.crashed(), p.trivet.crashed()) }

// bury stops both systems if a process of theirs has ended, so that the next script begins with new members.
func (p *pair) bury() {
	if p.crashed() != nil {
		p.etcd.stop()
		p.trivet.stop()
	}
}

// both runs f for the two systems at once.
func (p *pair) both(f func(t *target) error) error {
	other := make(chan error, 1)
	go func() { other <- f(p.trivet) }()
	return errors.Join(f(p.etcd), <-other)
}

// begin empties the stores, and starts new members where that does not do.
func (p *pair) begin(fresh bool) error {
	p.done, p.calls, p.compactions = nil, 0, map[int64]bool{1: true}
	if err := p.crashed(); err != nil { // since the last answer
		p.bury()
		return differs("%v", err)
	}
	if fresh || p.etcd.cluster == nil || p.trivet.cluster == nil || p.both((*target).reset) != nil || p.etcd.base != p.trivet.base {
		if err := p.both((*target).start); err != nil {
			return blameless(err)
		}
		if err := p.both((*target).reset); err != nil {
			return blameless(err)
		}
		if p.etcd.base != p.trivet.base {
			return differs("fresh members are at revision %d with etcd, at %d with Trivet", p.etcd.base, p.trivet.base)
		}
	}
	p.revision = p.etcd.base
	return nil
}

// run does a script from its beginning to its end.
func (p *pair) run(ops []op, fresh bool) error {
	if err := p.begin(fresh); err != nil {
		return err
	}
	if err := p.all(ops); err != nil {
		return err
	}
	return p.do([]op{{verb: "settle"}})
}

// all does ops in order, as many at once as can be.
func (p *pair) all(ops []op) error {
	for len(ops) > 0 {
		n := batch(ops)
		if err := p.do(ops[:n]); err != nil {
			return err
		}
		ops = ops[n:]
	}
	return nil
}

// batch is how many of the first ops can be done at once.
func batch(ops []op) int {
	n := 0
	for n < min(len(ops), 16) && ops[n].reads() {
		n++
	}
	return max(n, 1)
}

// reads says whether an op changes nothing, and so has the same answer in any order with others such.
func (o op) reads() bool {
	switch o.method {
	case "KV.Range", "KV.RangeStream", "Maintenance.HashKV", "Maintenance.Status", "Lease.LeaseTimeToLive", "Lease.LeaseLeases",
		"Cluster.MemberList":
		return true
	}
	return false
}

// do does one op, or several that only read, with both systems, and compares.
func (p *pair) do(ops []op) error {
	first := ops[0]
	p.done = append(p.done, ops...)
	for _, o := range ops {
		p.skipHash(o)
	}
	switch first.verb {
	case "settle":
		return p.settle()
	case "close":
		return p.both(func(t *target) error {
			if w := t.streams[first.stream]; w != nil {
				w.close()
				delete(t.streams, first.stream)
			}
			return nil
		})
	case "kill", "start":
		return p.killOrStart(first)
	case "watch":
		if first.req.(*pb.WatchRequest).GetCancelRequest() != nil {
			if err := p.settle(); err != nil {
				return err
			}
		}
		p.calls++
		return p.streamFailed(p.both(func(t *target) error { return t.watch(first) }))
	}
	if first.method == "KV.Compact" {
		if err := p.settle(); err != nil {
			return err
		}
		if err := blameless(p.both(func(t *target) error { return t.inStep(p.revision) })); err != nil {
			return err
		}
	}
	return p.compareCalls(ops)
}

// skipHash keeps in mind where etcd remembers the hash that it made while compacting (docs/compat.md).
func (p *pair) skipHash(o op) {
	if c, ok := o.req.(*pb.CompactionRequest); ok {
		p.compactions[c.Revision] = true
	}
}

func (p *pair) compareCalls(ops []op) error {
	var theirs, ours []outcome
	if err := blameless(p.both(func(t *target) error {
		outs, err := t.calls(ops)
		if t == p.etcd {
			theirs = outs
		} else {
			ours = outs
		}
		return err
	})); err != nil {
		return err
	}
	p.calls += len(ops)
	for i, o := range ops {
		if h, ok := o.req.(*pb.HashKVRequest); ok && p.compactions[h.Revision] && theirs[i].err == nil {
			continue
		}
		if err := compareOutcomes(o, theirs[i], ours[i]); err != nil {
			return err
		}
		p.done[len(p.done)-len(ops)+i].fails = theirs[i].err != nil
		for _, a := range theirs[i].answers {
			if h, ok := a.(interface{ GetHeader() *pb.ResponseHeader }); ok {
				p.revision = max(p.revision, h.GetHeader().GetRevision())
			}
		}
	}
	return nil
}

// calls makes the calls of a batch.
func (t *target) calls(ops []op) ([]outcome, error) {
	outs := make([]outcome, len(ops))
	if len(ops) == 1 && !ops[0].reads() {
		txn, ok := ops[0].req.(*pb.TxnRequest)
		// A token that one member made is refused by another that has not applied the last change of users yet.
		users := t.users && ops[0].user != ""
		if ops[0].method == "Lease.LeaseKeepAlive" || ok && onlyReads(txn) || users {
			if err := t.caughtUp(); err != nil {
				return nil, err
			}
		}
		outs[0] = t.call(ops[0])
		t.behind, t.users = true, t.users || strings.HasPrefix(ops[0].method, "Auth.")
		if c, ok := ops[0].req.(*pb.CompactionRequest); ok && outs[0].err == nil {
			t.compacted = t.request(c).(*pb.CompactionRequest).Revision
		}
		return outs, nil
	}
	if err := t.caughtUp(); err != nil {
		return nil, err
	}
	finished := make(chan struct{})
	for i := range ops {
		go func() {
			outs[i] = t.call(ops[i])
			finished <- struct{}{}
		}()
	}
	for range ops {
		<-finished
	}
	return outs, nil
}

// onlyReads says whether a transaction puts and deletes nothing; one whose ranges are serializable besides is answered
// from what the member has.
func onlyReads(txn *pb.TxnRequest) bool {
	for _, ops := range [][]*pb.RequestOp{txn.Success, txn.Failure} {
		for _, o := range ops {
			if o.GetRequestPut() != nil || o.GetRequestDeleteRange() != nil || o.GetRequestTxn() != nil && !onlyReads(o.GetRequestTxn()) {
				return false
			}
		}
	}
	return true
}

func compareOutcomes(o op, theirs, ours outcome) error {
	for _, s := range []*status.Status{theirs.err, ours.err} {
		if s.Code() == codes.Unavailable { // a leader was lost, or a request timed out inside of the cluster
			return &difference{text: fmt.Sprintf("%s\n%v", o, s.Err()), void: true}
		}
	}
	if theirs.odd != nil || ours.odd != nil {
		return differs("%s\n%v", o, errors.Join(theirs.odd, ours.odd))
	}
	if !proto.Equal(theirs.err.Proto(), ours.err.Proto()) {
		return differs("%s\netcd:   %v %q\nTrivet: %v %q", o, theirs.err.Code(), theirs.err.Message(), ours.err.Code(), ours.err.Message())
	}
	if theirs.err.Code() == codes.DeadlineExceeded {
		return &difference{text: fmt.Sprintf("%s\nneither answers", o), void: true}
	}
	if len(theirs.answers) != len(ours.answers) {
		return differs("%s\netcd answers %d times, Trivet %d times", o, len(theirs.answers), len(ours.answers))
	}
	for i := range theirs.answers {
		if !proto.Equal(theirs.answers[i], ours.answers[i]) {
			return differs("%s\netcd:\n%s\nTrivet:\n%s", o, indent(theirs.answers[i]), indent(ours.answers[i]))
		}
	}
	return nil
}

func indent(m proto.Message) string {
	return "  " + strings.TrimSpace(strings.ReplaceAll(prototext.Format(m), "\n", "\n  "))
}

// settle waits until both systems have told every watcher what it is to know, and compares it.
func (p *pair) settle() error {
	if err := p.streamFailed(p.both(func(t *target) error { return t.settle(p.revision) })); err != nil {
		return err
	}
	p.etcd.seen, p.trivet.seen = p.etcd.witness.first(), p.trivet.witness.first()
	if err := p.compareStream("witness", p.etcd.witness, p.trivet.witness); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(p.etcd.streams)) {
		if err := p.compareStream("stream "+name, p.etcd.streams[name], p.trivet.streams[name]); err != nil {
			return err
		}
	}
	return nil
}

// streamFailed makes a difference of what went wrong with watching: a watcher that does not get what it is to get is one.
func (p *pair) streamFailed(err error) error {
	if err == nil {
		return nil
	}
	return differs("%v", err)
}

func (p *pair) compareStream(what string, theirs, ours *watchStream) error {
	theirs.mu.Lock()
	defer theirs.mu.Unlock()
	ours.mu.Lock()
	defer ours.mu.Unlock()
	if odd := errors.Join(append(theirs.odd, ours.odd...)...); odd != nil {
		return differs("%s: %v", what, odd)
	}
	for i := range max(len(theirs.controls), len(ours.controls)) {
		if i >= len(theirs.controls) || i >= len(ours.controls) {
			return differs("%s: etcd has answered %d requests, Trivet %d", what, len(theirs.controls), len(ours.controls))
		}
		if !proto.Equal(theirs.controls[i], ours.controls[i]) {
			return differs("%s, answer %d to a request\netcd:\n%s\nTrivet:\n%s", what, i, indent(theirs.controls[i]), indent(ours.controls[i]))
		}
	}
	if len(theirs.ended) != len(ours.ended) || len(theirs.watchers) != len(ours.watchers) {
		return differs("%s: etcd has cancelled %d watchers and has %d, Trivet %d and %d", what,
			len(theirs.ended), len(theirs.watchers), len(ours.ended), len(ours.watchers))
	}
	byID := func(a, b *watcher) int { return int(a.id - b.id) }
	a := append(slices.SortedFunc(maps.Values(theirs.watchers), byID), slices.SortedStableFunc(slices.Values(theirs.ended), byID)...)
	b := append(slices.SortedFunc(maps.Values(ours.watchers), byID), slices.SortedStableFunc(slices.Values(ours.ended), byID)...)
	for i := range a {
		if err := p.compareWatchers(what, a[i], b[i]); err != nil {
			return err
		}
	}
	return nil
}

func (p *pair) compareWatchers(what string, theirs, ours *watcher) error {
	what = fmt.Sprintf("%s, watch id %d: %s", what, theirs.id, oneLine(theirs.create))
	if theirs.id != ours.id {
		return differs("%s has the id %d with Trivet", what, ours.id)
	}
	if !proto.Equal(theirs.ended, ours.ended) {
		return differs("%s\nended with etcd by:\n%s\nwith Trivet:\n%s", what, indent(theirs.ended), indent(ours.ended))
	}
	these, those := theirs.told(p.etcd.seen), ours.told(p.trivet.seen)
	for i := range max(len(these), len(those)) {
		if i >= len(these) || i >= len(those) {
			return differs("%s: %d events with etcd, %d with Trivet", what, len(these), len(those))
		}
		if a, b := p.etcd.event(these[i]), p.trivet.event(those[i]); !proto.Equal(a, b) {
			return differs("%s, event %d\netcd:\n%s\nTrivet:\n%s", what, i, indent(a), indent(b))
		}
	}
	return nil
}

// event is an event with the script's names for leases.
func (n *names) event(e *mvccpb.Event) *mvccpb.Event {
	if n.leases[e.Kv.GetLease()] == 0 && n.leases[e.PrevKv.GetLease()] == 0 {
		return e
	}
	e = proto.Clone(e).(*mvccpb.Event)
	for _, kv := range []*mvccpb.KeyValue{e.Kv, e.PrevKv} {
		if name := n.leases[kv.GetLease()]; name != 0 {
			kv.Lease = name
		}
	}
	return e
}
