package rpc

import (
	"context"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/internal/auth"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/watch"
)

// guard keeps the watchers of one stream to what their user may read: each when it is made, and all of them again whenever
// users and roles change, so that a watcher whose permission was taken back ends, and gets no event that was written after
// that. What is written becomes visible after the permissions under which it is, so a look before each answer is enough.
type guard struct {
	s      *Services
	ctx    context.Context // of the stream: its metadata and certificate
	stream *watch.Stream
	spans  watcherSpans

	mu    sync.Mutex
	who   auth.Who // of the last watcher that was made while authentication was on
	named bool
}

// mark names a state of users and roles, to see whether it is still the same.
type mark struct {
	of    *auth.Auth
	stamp uint64
}

func (s *Services) authMark() mark {
	a := s.b.Auth()
	return mark{a, a.Published().Stamp()}
}

func (s *Services) newGuard(ctx context.Context, w *watch.Stream) *guard {
	g := &guard{s: s, ctx: ctx, stream: w}
	s.mu.Lock()
	s.guards[g] = struct{}{}
	s.mu.Unlock()
	return g
}

func (g *guard) close() {
	g.s.mu.Lock()
	delete(g.s.guards, g)
	g.s.mu.Unlock()
	g.spans.endAll()
}

// create makes a watcher, or lets the client be told why not.
func (g *guard) create(ctx context.Context, r *pb.WatchCreateRequest) error {
	o := createOptions(r)
	if len(o.Key) == 0 {
		o.Key = []byte{0} // the smallest key, before permissions are looked up
	}
	at := g.s.authMark()
	v := at.of.Published()
	if o.StartRevision >= 0 && v.Enabled() { // others are refused in any case
		who, named, err := g.s.identify(g.ctx, true)
		if err == nil {
			p := v.Permissions(who)
			err = p.Read(o.Range)
		}
		if err != nil {
			return g.stream.Refuse(ctx, refusedWatch(err))
		}
		g.mu.Lock()
		g.who, g.named = who, named
		g.mu.Unlock()
	}
	_, span := g.s.span(g.ctx, r)
	id, err := g.stream.Create(ctx, o)
	if err != nil {
		return err
	}
	if g.s.o.Tracer != nil {
		g.spans.add(id, span, g.stream)
	}
	if g.s.authMark() != at {
		g.recheck()
	}
	return nil
}

// recheck ends the watchers that are not permitted any more.
func (g *guard) recheck() {
	v := g.s.b.Auth().Published()
	if !v.Enabled() {
		return
	}
	g.mu.Lock()
	who, named := g.who, g.named
	g.mu.Unlock()
	if !named {
		// The stream began while authentication was off. It may say who it is nevertheless.
		who, _, _ = g.s.identify(g.ctx, false) // nobody may do nothing
	}
	p := v.Permissions(who)
	g.stream.Revoke(func(r kv.Range) error {
		if err := p.Read(r); err != nil {
			return refusedWatch(err)
		}
		return nil
	})
}

// refusedWatch is the reason that a client is given, in the words in which etcd gives it: those of gRPC's error, its code
// included.
func refusedWatch(err error) error { return watchRefusal{toStatus(err)} }

type watchRefusal struct{ error }

// watchAuth rechecks all watch streams at every change of users and roles, so that a watcher which gets no events ends too.
func (s *Services) watchAuth() {
	defer s.done.Done()
	for {
		changed := s.b.AuthChanged()
		var guards []*guard
		if s.b.Auth().Published().Enabled() {
			s.mu.Lock()
			for g := range s.guards {
				guards = append(guards, g)
			}
			s.mu.Unlock()
		}
		for _, g := range guards {
			g.recheck()
		}
		select {
		case <-s.stop:
			return
		case <-changed:
		}
	}
}
