package compat

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	mvccpb "go.etcd.io/etcd/api/v3/mvccpb"
)

// watchStream is one Watch stream with its watchers. Its answers are gathered by a goroutine of its own, which close ends.
type watchStream struct {
	target *target
	member int
	user   string
	stream watchConn
	body   bool // nothing more can be sent on stream
	cancel context.CancelFunc

	mu       sync.Mutex
	more     chan struct{} // closed and replaced at every answer
	err      error
	creates  int                 // create requests sent
	controls []*pb.WatchResponse // answers to create and cancel requests, in order
	created  int
	progress int64 // the newest revision of an answer that speaks for all watchers
	watchers map[int64]*watcher
	ended    []*watcher // cancelled ones, in order
	odd      []error
	requests []*watcher // of create requests that are not yet answered
}

// watcher is one of a stream's watchers and what it was told.
type watcher struct {
	id      int64
	create  *pb.WatchCreateRequest
	floor   int64 // what was compacted when it was created
	since   int64 // first revision it is to get
	events  []*mvccpb.Event
	partial bool // the last answer was a fragment
	ended   *pb.WatchResponse
}

// openWatch opens a stream as the op that is its first one says.
func openWatch(t *target, o op) (*watchStream, error) {
	ctx, cancel := context.WithCancel(t.named(context.Background(), o.user))
	var s watchConn
	var err error
	switch {
	case o.json:
		s, err = t.openSocketWatch(ctx, o.member, t.token(o.user))
	case o.body:
		s = t.openBodyWatch(ctx, o.member, t.token(o.user))
	default:
		s, err = pb.NewWatchClient(t.conns[o.member]).Watch(ctx)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	w := &watchStream{
		target: t, member: o.member, user: o.user, body: o.body, stream: s, cancel: cancel, more: make(chan struct{}), watchers: make(map[int64]*watcher),
	}
	go w.receive()
	return w, nil
}

func (w *watchStream) close() { w.cancel() }

// send sends one request; requests that want an answer are followed by answered.
func (w *watchStream) send(r *pb.WatchRequest) {
	w.mu.Lock()
	if c := r.GetCreateRequest(); c != nil {
		w.creates++
		w.requests = append(w.requests, &watcher{create: c, floor: w.target.compacted, since: c.StartRevision})
	}
	w.mu.Unlock()
	if err := w.stream.Send(r); err != nil {
		w.mu.Lock()
		w.err = err
		w.mu.Unlock()
	}
}

func (w *watchStream) receive() {
	for {
		r, err := w.stream.Recv()
		w.mu.Lock()
		if err != nil {
			w.err = err
		} else {
			w.take(r)
		}
		close(w.more)
		w.more = make(chan struct{})
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (w *watchStream) take(r *pb.WatchResponse) {
	oddly := func(format string, args ...any) { w.odd = append(w.odd, fmt.Errorf(format, args...)) }
	revision := r.Header.GetRevision()
	w.target.header(w.member, r.Header, oddly)
	one := w.watchers[r.WatchId]
	switch {
	case r.Created:
		w.created++
		w.controls = append(w.controls, r)
		created := w.requests[0]
		w.requests = w.requests[1:]
		if r.Canceled {
			return
		}
		if one != nil {
			oddly("watch id %d was given twice", r.WatchId)
		}
		created.id = r.WatchId
		if created.since == 0 {
			created.since = revision + 1
		}
		w.watchers[r.WatchId] = created
	case r.WatchId == -1 && len(r.Events) == 0 && !r.Canceled:
		w.progress = max(w.progress, revision)
	case r.Canceled && one == nil:
		w.controls = append(w.controls, r)
	case one == nil:
		oddly("answer for watch id %d, which is none: %s", r.WatchId, oneLine(r))
	case r.Canceled:
		if r.CompactRevision == 0 {
			w.controls = append(w.controls, r) // asked for; a compaction cancels whenever the server finds out
		} else {
			r.Header.Revision = 0 // what the store had come to by then
		}
		one.ended = r
		w.ended = append(w.ended, one)
		delete(w.watchers, r.WatchId)
	case len(r.Events) == 0: // progress of one watcher
	default:
		if last := r.Events[len(r.Events)-1].Kv.ModRevision; revision < last {
			oddly("watcher %d: header of revision %d with an event of %d", r.WatchId, revision, last)
		}
		one.events = append(one.events, r.Events...)
		one.partial = r.Fragment
	}
}

// until waits until done, which is called with mu held, says so.
func (w *watchStream) until(what string, within time.Duration, done func() bool) error {
	deadline := time.After(within)
	for {
		w.mu.Lock()
		if done() {
			w.mu.Unlock()
			return nil
		}
		err, more := w.err, w.more
		w.mu.Unlock()
		if err != nil {
			return fmt.Errorf("%s: watch stream: %w", w.target.name, err)
		}
		select {
		case <-more:
		case <-deadline:
			return fmt.Errorf("%s: %s did not come within %v", w.target.name, what, within)
		}
	}
}

// answered waits until every create request is answered.
func (w *watchStream) answered() error {
	return w.until("the answer to a create request", patience, func() bool { return w.created == w.creates })
}

// wanted is how many of all events that there were the watcher is to get.
func (o *watcher) wanted(all []*mvccpb.Event) int {
	n := 0
	for i, e := range all {
		if e.Kv.ModRevision >= o.since && o.covers(e.Kv.Key) && !o.filtered(e) && !o.optional(all, i) {
			n++
		}
	}
	return n
}

// told are the events that the watcher got, without those that it may have got or not.
func (o *watcher) told(all []*mvccpb.Event) []*mvccpb.Event {
	optional := make(map[string]bool)
	name := func(e *mvccpb.Event) string {
		return fmt.Sprint(e.Type, string(e.Kv.Key), e.Kv.ModRevision, e.Kv.Version, string(e.Kv.Value))
	}
	for i, e := range all {
		if o.optional(all, i) {
			optional[name(e)] = true
		}
	}
	if len(optional) == 0 {
		return o.events
	}
	var told []*mvccpb.Event
	for _, e := range o.events {
		if !optional[name(e)] {
			told = append(told, e)
		}
	}
	return told
}

// optional says whether all[i] is a change of the very revision that was compacted when the watcher began there, and the
// same transaction changed the key again: such a version is garbage, and gone sooner or later (docs/compat.md).
func (o *watcher) optional(all []*mvccpb.Event, i int) bool {
	revision := all[i].Kv.ModRevision
	if o.create.StartRevision != o.floor || revision != o.floor {
		return false
	}
	for _, later := range all[i+1:] {
		if later.Kv.ModRevision != revision {
			return false
		}
		if bytes.Equal(later.Kv.Key, all[i].Kv.Key) {
			return true
		}
	}
	return false
}

func (o *watcher) covers(key []byte) bool {
	from, end := o.create.Key, o.create.RangeEnd
	if len(from) == 0 {
		from = []byte{0}
	}
	switch {
	case len(end) == 0:
		return bytes.Equal(key, from)
	case len(end) == 1 && end[0] == 0:
		return bytes.Compare(key, from) >= 0
	}
	return bytes.Compare(key, from) >= 0 && bytes.Compare(key, end) < 0
}

func (o *watcher) filtered(e *mvccpb.Event) bool {
	for _, f := range o.create.Filters {
		if f == pb.WatchCreateRequest_NOPUT && e.Type == mvccpb.Event_PUT ||
			f == pb.WatchCreateRequest_NODELETE && e.Type == mvccpb.Event_DELETE {
			return true
		}
	}
	return false
}

// settle waits until every watcher of the system has all that it is to get.
func (t *target) settle(revision int64) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := t.catchUp(ctx); err != nil {
		return err
	}
	// The witness has a watcher that is always in step, so its progress says that it has everything.
	if err := t.witness.reach(revision); err != nil {
		return err
	}
	all := t.witness.first()
	for name, w := range t.streams {
		err := w.until("all events of stream "+name, patience, func() bool {
			for _, one := range w.watchers {
				if one.lost() || one.partial || len(one.told(all)) < one.wanted(all) {
					return false // a lost one's cancellation is still to come
				}
			}
			return true
		})
		if err != nil {
			return fmt.Errorf("%w; it has %s", err, w.state(all))
		}
	}
	return nil
}

// first is what the first watcher of the stream has got so far.
func (w *watchStream) first() []*mvccpb.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.watchers[0].events
}

// lost says whether a watcher began before what was compacted when it was created.
func (o *watcher) lost() bool { return o.create.StartRevision > 0 && o.create.StartRevision < o.floor }

func (w *watchStream) state(all []*mvccpb.Event) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var s string
	for id, one := range w.watchers {
		s += fmt.Sprintf("[watch id %d: %d events of %d; %s] ", id, len(one.events), one.wanted(all), oneLine(one.create))
		got := make(map[string]int)
		for _, e := range one.events {
			got[fmt.Sprintf("%v %q at %d", e.Type, e.Kv.Key, e.Kv.ModRevision)]++
		}
		for _, e := range all {
			name := fmt.Sprintf("%v %q at %d", e.Type, e.Kv.Key, e.Kv.ModRevision)
			if one.wanted([]*mvccpb.Event{e}) == 1 {
				if got[name]--; got[name] < 0 {
					s += "without " + name + "; "
				}
			}
		}
	}
	return s
}

// reach asks for progress until the stream has come to the revision.
func (w *watchStream) reach(revision int64) error {
	deadline := time.Now().Add(patience)
	for {
		w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
		err := w.until("progress", 50*time.Millisecond, func() bool { return w.progress >= revision })
		if err == nil {
			return nil
		}
		if w.failed() != nil || time.Now().After(deadline) {
			return fmt.Errorf("%s: no progress to revision %d within %v: %w", w.target.name, revision, patience, err)
		}
	}
}

func (w *watchStream) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// inStep makes sure that a compaction finds no watcher still on its way to where it already has everything, because what
// becomes of such a one is a matter of luck with etcd.
func (t *target) inStep(revision int64) error {
	for _, w := range t.streams {
		w.mu.Lock()
		answers, late := len(w.watchers) > 0, false
		for _, one := range w.watchers {
			answers = answers && one.create.StartRevision <= revision
			late = late || one.create.StartRevision > 0
		}
		for _, one := range w.ended {
			answers = answers && one.ended.CompactRevision == 0 // until it is cancelled too, etcd gives no progress
		}
		w.mu.Unlock()
		if answers && !w.body {
			if err := w.reach(revision); err != nil {
				return err
			}
		} else if late {
			time.Sleep(3 * syncInterval)
		}
	}
	return nil
}

// syncInterval is how often etcd looks after watchers that are not in step.
const syncInterval = 100 * time.Millisecond

// watch does a watch line of a script.
func (t *target) watch(o op) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := t.catchUp(ctx); err != nil {
		return err
	}
	w := t.streams[o.stream]
	if w == nil {
		var err error
		if w, err = openWatch(t, o); err != nil {
			return err
		}
		t.streams[o.stream] = w
	}
	req := t.request(o.req).(*pb.WatchRequest)
	w.mu.Lock()
	answers := len(w.controls)
	live := w.watchers[req.GetCancelRequest().GetWatchId()] != nil
	w.mu.Unlock()
	w.send(req)
	switch {
	case req.GetCreateRequest() != nil:
		return w.answered()
	case req.GetCancelRequest() != nil:
		within := patience
		if !live {
			within = syncInterval // there may be none
		}
		err := w.until("the answer to a cancel request", within, func() bool { return len(w.controls) > answers })
		if !live && w.failed() == nil {
			return nil
		}
		return err
	}
	return nil
}
