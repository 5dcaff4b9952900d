package rpc

import (
	"context"
	"errors"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.opentelemetry.io/otel/attribute"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

// leaseIDs makes lease ids as etcd makes them, so that what looks at them finds the member and the time in the same bits:
// 16 of the member's id, 40 of the clock in milliseconds at the start, 8 to count, which carry into the clock's.
type leaseIDs struct {
	prefix uint64
	suffix atomic.Uint64
}

func newLeaseIDs(member uint64, now time.Time) *leaseIDs {
	g := &leaseIDs{prefix: member << 48}
	g.suffix.Store(uint64(now.UnixMilli()) << 24 >> 16)
	return g
}

// next is positive.
func (g *leaseIDs) next() int64 {
	for {
		if id := int64((g.prefix | g.suffix.Add(1)&(1<<48-1)) & math.MaxInt64); id != 0 {
			return id
		}
	}
}

// grantAttempts is how many ids of our own choice may turn out to be in use.
const grantAttempts = 8

// LeaseGrant answers Lease.LeaseGrant. A lease without an id is given one.
func (s *Services) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if err := s.requireUser(ctx); err != nil { // here, as other services of this member grant leases for their callers
		return nil, err
	}
	ctx, span := s.span(ctx, r)
	defer span.End()
	var res command.Result
	var err error
	for range grantAttempts {
		id := r.ID
		if id == 0 {
			id = s.leases.next()
			span.SetAttributes(attribute.Int64("id", id))
		}
		res, err = s.propose(ctx, "LeaseGrant", &command.Command{LeaseGrant: &command.LeaseGrant{ID: kv.LeaseID(id), TTL: r.TTL}})
		if r.ID != 0 || !errors.Is(res.Err, kv.ErrLeaseExists) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	out := &pb.LeaseGrantResponse{Header: headerPB(s.b.Header(), res.Revision)}
	if res.Lease != nil {
		out.ID, out.TTL = int64(res.Lease.ID), res.Lease.TTL
	}
	return out, nil
}

// LeaseRevoke answers Lease.LeaseRevoke.
func (s *Services) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	ctx, span := s.span(ctx, r)
	defer span.End()
	res, err := s.propose(ctx, "LeaseRevoke", &command.Command{LeaseRevoke: &command.LeaseRevoke{ID: kv.LeaseID(r.ID)}})
	if err != nil {
		return nil, err
	}
	return &pb.LeaseRevokeResponse{Header: headerPB(s.b.Header(), res.Revision)}, nil
}

// LeaseTimeToLive answers Lease.LeaseTimeToLive; a lease that is gone has a time to live of -1 and is no error.
func (s *Services) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	out := &pb.LeaseTimeToLiveResponse{ID: r.ID, TTL: -1}
	lease, remaining, err := s.b.LeaseTimeToLive(ctx, kv.LeaseID(r.ID))
	if err == nil && r.Keys {
		out.Keys, err = s.leaseKeys(ctx, kv.LeaseID(r.ID))
	}
	switch {
	case errors.Is(err, kv.ErrLeaseNotFound):
		out.Keys = nil
	case err != nil:
		return nil, toStatus(err)
	default:
		out.TTL, out.GrantedTTL = remaining, lease.TTL
	}
	out.Header = headerPB(s.b.Header(), s.b.Store().Revision())
	return out, nil
}

// leaseKeys returns the keys of a lease if the request's user may read all of them (E#15815).
func (s *Services) leaseKeys(ctx context.Context, id kv.LeaseID) ([][]byte, error) {
	keys, err := s.b.LeaseKeys(id)
	if err != nil {
		return nil, err
	}
	// Asked for after the keys were read: permissions are never older than what is attached under them.
	p, err := s.leasePermissions(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if err := p.Read(kv.Range{Key: k}); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// LeaseLeases answers Lease.LeaseLeases, with what this member has applied, to who may read all keys of all leases.
func (s *Services) LeaseLeases(ctx context.Context, _ *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	ids := s.b.Leases()
	p, err := s.leasePermissions(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if p.All() {
			break
		}
		if err := s.mayAccess(&p, kv.Read, id); err != nil {
			return nil, err
		}
	}
	out := &pb.LeaseLeasesResponse{
		Header: headerPB(s.b.Header(), s.b.Store().Revision()), Leases: make([]*pb.LeaseStatus, len(ids)),
	}
	for i, id := range ids {
		out.Leases[i] = &pb.LeaseStatus{ID: int64(id)}
	}
	return out, nil
}

// KeepAliveStream is the stream of Lease.LeaseKeepAlive as its front door hands it over. Recv returns io.EOF when the
// client has closed its side, and another error when the stream is broken.
type KeepAliveStream interface {
	Recv() (*pb.LeaseKeepAliveRequest, error)
	Send(*pb.LeaseKeepAliveResponse) error
}

// LeaseKeepAlive answers each request of the stream in turn until the client closes it or ctx, which must come from
// StreamContext, ends. Recv and Send are called from another goroutine; Send not after this call has returned, while Recv may
// outlive it until the front door ends the stream, which it does when this call returns.
//
// When the services drain, a stream that was answered ends: its client comes again elsewhere. One that was not may be that of
// a client that asks once and does not try again; it is waited for until firstRequestWait.
func (s *Services) LeaseKeepAlive(ctx context.Context, stream KeepAliveStream) error {
	k := keepAlive{s: s, stream: stream, ended: make(chan error, 1)}
	go k.serve(ctx)
	drain := s.drain
	var late <-chan time.Time
	for {
		select {
		case err := <-k.ended:
			return err
		case <-ctx.Done():
			k.end(true)
			return streamError(ctx)
		case <-drain:
			if k.end(false) {
				return rpctypes.ErrGRPCStopped
			}
			drain, late = nil, time.After(firstRequestWait)
		case <-late:
			k.end(true)
			return rpctypes.ErrGRPCStopped
		}
	}
}

// keepAlive is one stream of renewals. Requests are answered by the goroutine that receives them.
type keepAlive struct {
	s      *Services
	stream KeepAliveStream
	ended  chan error // what the stream ends with; room for one

	mu       sync.Mutex // held while a request is answered
	answered bool       // one was
	over     bool       // none will be
}

func (k *keepAlive) serve(ctx context.Context) {
	for {
		r, err := k.stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			err = nil
		case err != nil:
			k.s.m.StreamFailures.WithLabelValues("receive", "lease-keepalive").Inc()
			err = toStatus(err)
		default:
			if err = k.answer(ctx, r); err == nil {
				continue
			}
		}
		k.ended <- err
		return
	}
}

// answer answers one request. Its error ends the stream.
func (k *keepAlive) answer(ctx context.Context, r *pb.LeaseKeepAliveRequest) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.over {
		return rpctypes.ErrGRPCStopped // which nobody waits for
	}
	out, err := k.s.renew(ctx, r)
	if err != nil {
		return err
	}
	if err := k.stream.Send(out); err != nil {
		k.s.m.StreamFailures.WithLabelValues("send", "lease-keepalive").Inc()
		return toStatus(err)
	}
	k.answered = true
	if k.s.draining() {
		return rpctypes.ErrGRPCStopped
	}
	return nil
}

// end lets no further request be answered, always or only if one was. It waits for one that is being answered, and reports
// whether it did so.
func (k *keepAlive) end(always bool) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.over = always || k.answered
	return k.over
}

// firstRequestWait is how long a stream of keepalives that has asked nothing yet holds up a stop: etcd's client asks within
// half of it.
const firstRequestWait = time.Second

// renew answers one keepalive; a lease that is gone has a time to live of 0 and is no error.
func (s *Services) renew(ctx context.Context, r *pb.LeaseKeepAliveRequest) (*pb.LeaseKeepAliveResponse, error) {
	ctx, span := s.span(ctx, r)
	defer span.End()
	// The revision is taken before the renewal: a client that sees a lease alive at a revision must never find it
	// revoked at an older one.
	out := &pb.LeaseKeepAliveResponse{Header: headerPB(s.b.Header(), s.b.Store().Revision()), ID: r.ID}
	p, err := s.leasePermissions(ctx)
	if err == nil {
		err = s.mayAccess(&p, kv.Write, kv.LeaseID(r.ID))
	}
	if err != nil {
		return nil, err
	}
	ttl, err := s.b.LeaseRenew(ctx, kv.LeaseID(r.ID))
	if err != nil && !errors.Is(err, kv.ErrLeaseNotFound) {
		if ctx.Err() != nil {
			return nil, streamError(ctx)
		}
		return nil, toStatus(err)
	}
	if err == nil {
		out.TTL = ttl
	}
	return out, nil
}
