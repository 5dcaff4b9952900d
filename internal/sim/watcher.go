package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/rpc"
)

// watcher watches one key or all, through one member after the other: it goes on behind what it saw last whenever its
// member dies, its stream ends, or it feels like it.
type watcher struct {
	run *run
	rng *rand.Rand
	// sleepy watchers stop taking events for seconds, so that their history may be compacted meanwhile. The others are
	// waited for by compactions, so that the whole history is known at the end.
	sleepy bool

	mu    sync.Mutex
	saw   Watched
	fault error // what a stream did that it must not, whatever the events
}

// next is the revision that the watcher asks for next.
func (w *watcher) next() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.saw.Next()
}

// loop runs until ctx ends, over the nodes given.
func (w *watcher) loop(ctx context.Context, nodes []*node) {
	for ctx.Err() == nil {
		l := nodes[w.rng.IntN(len(nodes))].current()
		if l == nil {
			pause(ctx, 10*time.Millisecond)
			continue
		}
		patience := time.Duration(w.rng.Int64N(int64(5 * time.Second)))
		session, cancel := context.WithTimeout(l.ctx, patience)
		stop := context.AfterFunc(ctx, cancel)
		err := w.follow(session, l)
		stop()
		cancel()
		if err != nil {
			w.mu.Lock()
			w.fault = err
			w.mu.Unlock()
			return
		}
		if w.sleepy {
			pause(ctx, time.Duration(w.rng.Int64N(int64(10*time.Second))))
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// follow watches through one member until ctx ends or the stream does. An error is a broken promise of the stream.
func (w *watcher) follow(ctx context.Context, l *life) error {
	ctx, cancel := l.services.StreamContext(ctx, rpc.Caller{})
	defer cancel()
	s := &watchStream{ctx: ctx, watcher: w, life: l, requests: make(chan *pb.WatchRequest, 1)}
	create := &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: w.next(), Fragment: w.rng.IntN(2) == 0}
	if w.saw.Key != "" {
		create.Key, create.RangeEnd = []byte(w.saw.Key), nil
	}
	s.requests <- &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}
	err := l.services.Watch(ctx, s)
	if s.fault == nil && !s.ended && ctx.Err() == nil && l.alive() && !l.leaving.Load() {
		return fmt.Errorf("watcher %s: its stream ended at revision %d, without a reason: %w", w.saw.Name, create.GetStartRevision(), err)
	}
	return s.fault
}

// watchStream is the client's side of one stream.
type watchStream struct {
	ctx      context.Context
	watcher  *watcher
	life     *life
	requests chan *pb.WatchRequest
	ended    bool // by the client
	fault    error
}

var errEnough = errors.New("sim: the watcher ends its stream")

// Recv gives the service the next request of the client.
func (s *watchStream) Recv() (*pb.WatchRequest, error) {
	select {
	case r := <-s.requests:
		return r, nil
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

// Send takes answers of the service.
func (s *watchStream) Send(answers []rpc.Answer) error {
	for i := range answers {
		if err := s.takeOne(&answers[i]); err != nil {
			return err
		}
	}
	return nil
}

func (s *watchStream) takeOne(a *rpc.Answer) error {
	var m pb.WatchResponse
	if err := proto.Unmarshal(a.Bytes(), &m); err != nil {
		panic(fmt.Sprintf("sim: a watch answer that is none: %v", err))
	}
	w := s.watcher
	goOn := false
	w.run.history.Locked(func() {
		if s.life.alive() { // what a dead member sent has not arrived
			goOn, s.fault = w.take(&m)
		}
	})
	if !goOn || s.fault != nil {
		s.ended = true
		return errEnough
	}
	if w.rng.IntN(20) == 0 {
		select {
		case s.requests <- &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}:
		default:
		}
	}
	return nil
}

// take records one answer and tells whether the stream goes on.
func (w *watcher) take(m *pb.WatchResponse) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := w.saw.Next()
	switch {
	case m.Created && !m.Canceled:
		return true, nil
	case m.Canceled && m.CompactRevision > 0:
		if m.CompactRevision <= next {
			return false, fmt.Errorf("watcher %s was told that revision %d is compacted, but the oldest left is %d", w.saw.Name, next, m.CompactRevision)
		}
		w.saw.Skipped = append(w.saw.Skipped, [2]int64{next, m.CompactRevision - 1})
		return false, nil
	case m.Canceled || m.Created:
		return false, fmt.Errorf("watcher %s was sent %v", w.saw.Name, m)
	case len(m.Events) == 0:
		if n := len(w.saw.Seen); n > 0 && m.Header.Revision < w.saw.Seen[n-1].Revision {
			return false, fmt.Errorf("watcher %s was told revision %d as its progress, behind events of revision %d", w.saw.Name, m.Header.Revision, next-1)
		}
	}
	for _, e := range m.Events {
		seen := eventOfWire(e)
		if seen.Delete {
			w.run.deaths.note(seen.Key, time.Since(w.run.began))
		}
		w.saw.Seen = append(w.saw.Seen, seen)
	}
	// Trivet promises more than etcd: an answer, whole, names a revision up to which nothing else is left for the watcher.
	if !m.Fragment {
		w.saw.Told = max(w.saw.Told, m.Header.Revision)
	}
	return true, nil
}

func eventOfWire(e *mvccpb.Event) Event {
	if e.Type == mvccpb.Event_DELETE {
		return Event{Revision: e.Kv.ModRevision, Key: string(e.Kv.Key), Delete: true}
	}
	return Event{Revision: e.Kv.ModRevision, Key: string(e.Kv.Key), Pair: pairOf(e.Kv)}
}

// eventOf is an event as the store's history holds it.
func eventOf(e kv.Event) Event {
	out := Event{Revision: e.Revision.Main, Key: string(e.KV.Key), Delete: e.Type == kv.Delete}
	if !out.Delete {
		out.Pair = Pair{Value: string(e.KV.Value), Create: e.KV.CreateRevision, Mod: e.KV.ModRevision, Version: e.KV.Version}
	}
	return out
}
