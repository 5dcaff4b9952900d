package rpc

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/mem"

	"github.com/trivet-kv/trivet/internal/metrics"
	"github.com/trivet-kv/trivet/internal/token"
)

// Options says how the services of one member behave. Zero values mean etcd's defaults.
type Options struct {
	Backend Backend          // required
	Logger  *slog.Logger     // required
	Metrics *metrics.Metrics // required

	// MaxRequestBytes bounds a request as the log takes it (--max-request-bytes); a message on the wire may be half a
	// MiB longer, as with etcd. Watch answers that ask for fragments are cut at that longer bound.
	MaxRequestBytes int
	MaxTxnOps       int // --max-txn-ops
	// Tokens and Passwords are how clients say who they are. nil: simple tokens, and bcrypt at etcd's default cost.
	Tokens    *token.Tokens
	Passwords Passwords
	// ClientCertAuth takes the user's name from the common name of the client's certificate (--client-cert-auth).
	ClientCertAuth bool
	// ElectionTimeout paces the look at the leader: a stream that requires one ends when there was none at three
	// looks in a row.
	ElectionTimeout time.Duration
	// RangeBudgetBytes bounds the memory of all large range answers that are not yet on the wire.
	RangeBudgetBytes int64
	// Tracer makes a span of each request. nil: none.
	Tracer trace.Tracer
	// WarnApply: a read that takes longer is logged (--warning-apply-duration). 0: 100 ms.
	WarnApply time.Duration
	// WarnSlow: a unary call that takes longer is logged (--warning-unary-request-duration). 0: 300 ms.
	WarnSlow time.Duration
}

// grpcOverheadBytes is what etcd lets a message on the wire be longer than the request in it.
const grpcOverheadBytes = 512 << 10

// A member looks for its leader once in an election timeout. What requires a leader is refused after graceLooks in a row that
// found none, and what streams it has end after noLeaderLooks. The first is about when a follower of etcd gives up a leader
// that is gone. Here a loss is known, and over, in a fraction of that; but etcd's client gives up a watch for good when it is
// refused for want of a leader, and those that were on the leader come to the others just then.
const (
	graceLooks    = 2
	noLeaderLooks = 3
)

func (o *Options) defaults() {
	if o.MaxRequestBytes == 0 {
		o.MaxRequestBytes = 1536 << 10
	}
	if o.MaxTxnOps == 0 {
		o.MaxTxnOps = 128
	}
	if o.Tokens == nil {
		o.Tokens, _ = token.New(token.Options{Spec: "simple"}) // it fails for other specs only
	}
	if o.Passwords == nil {
		o.Passwords = token.NewPasswords(0)
	}
	if o.ElectionTimeout == 0 {
		o.ElectionTimeout = time.Second
	}
	if o.WarnApply == 0 {
		o.WarnApply = 100 * time.Millisecond
	}
	if o.WarnSlow == 0 {
		o.WarnSlow = 300 * time.Millisecond
	}
	if o.RangeBudgetBytes == 0 {
		o.RangeBudgetBytes = 256 << 20
	}
}

// Services is all of a member's services. Its methods may be called from any goroutine until Stop.
type Services struct {
	o      Options
	b      Backend
	log    *slog.Logger
	debug  bool // every unary call is logged
	m      *metrics.Metrics
	pool   mem.BufferPool
	budget *budget
	leases *leaseIDs
	traces traceLimit

	drain     chan struct{} // closed when the member is about to stop
	drainOnce sync.Once
	stop      chan struct{}
	stopOnce  sync.Once
	done      sync.WaitGroup

	leaderless atomic.Int32 // looks in a row that found no leader; noLeaderLooks before there ever was one

	mu      sync.Mutex
	stopped bool
	streams map[*openStream]struct{} // bounded by --max-concurrent-streams for each connection
	guards  map[*guard]struct{}      // of watch streams: as many at most
}

type openStream struct {
	cancel        context.CancelCauseFunc
	requireLeader bool
	endless       bool
}

// New starts the services: a goroutine that watches for the loss of the leader and one that watches for changes of users
// and roles, which Stop ends.
func New(o Options) *Services {
	o.defaults()
	s := &Services{
		o: o, b: o.Backend, log: o.Logger, debug: o.Logger.Enabled(context.Background(), slog.LevelDebug), m: o.Metrics,
		pool: &segments{}, budget: newBudget(o.RangeBudgetBytes),
		leases: newLeaseIDs(o.Backend.Header().MemberID, time.Now()),
		drain:  make(chan struct{}), stop: make(chan struct{}), streams: make(map[*openStream]struct{}), guards: make(map[*guard]struct{}),
	}
	s.leaderless.Store(noLeaderLooks)
	s.done.Add(2)
	go s.watchLeader()
	go s.watchAuth()
	return s
}

// Drain ends the calls that would go on for ever, because the member is about to stop: watches, observers of elections, waits
// for a lock, and streams of keepalives on which nothing is without an answer. Calls that end by themselves go on.
func (s *Services) Drain() {
	s.drainOnce.Do(func() { close(s.drain) }) // before those who come now look at it
	s.endStreams(rpctypes.ErrGRPCStopped, func(st *openStream) bool { return st.endless })
}

// Stop ends all streams and the services' own goroutines.
func (s *Services) Stop() {
	s.Drain()
	s.stopOnce.Do(func() { close(s.stop) })
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.endStreams(rpctypes.ErrGRPCStopped, func(*openStream) bool { return true })
	s.done.Wait()
}

func (s *Services) draining() bool {
	select {
	case <-s.drain:
		return true
	default:
		return false
	}
}

// Caller is what a request says about itself beside its message, whatever front door it came through.
type Caller struct {
	// RequireLeader: answer only while this member knows a leader, or has just lost one (metadata hasleader: true).
	RequireLeader bool
	// APIVersion is the client's, empty if it did not say.
	APIVersion string
}

// took records how long a request of a kind took, as etcd_server_request_duration_seconds names it.
func (s *Services) took(kind string, err error, begin time.Time) time.Duration {
	d := time.Since(begin)
	s.m.RequestTook(kind, err == nil, d)
	return d
}

// Kind tells how a call is carried.
type Kind string

// The kinds, named as etcd_server_client_requests_total labels them.
const (
	Unary  Kind = "unary"
	Stream Kind = "stream"
)

// Admit decides whether a call may begin. A learner answers all of them: it asks the leader as any follower does.
func (s *Services) Admit(kind Kind, c Caller) error {
	if c.APIVersion == "" {
		c.APIVersion = "unknown"
	} else if !utf8.ValidString(c.APIVersion) {
		return rpctypes.ErrGRPCInvalidClientAPIVersion
	}
	s.m.ClientRequest(string(kind), c.APIVersion)
	if c.RequireLeader && s.Leaderless() {
		return rpctypes.ErrGRPCNoLeader
	}
	return nil
}

// Leaderless reports whether this member has been without a leader for so long that what requires one is refused.
func (s *Services) Leaderless() bool { return s.looks(0) >= graceLooks }

// looks looks for the leader, and returns how many looks in a row have found none, with this one counting for so many.
func (s *Services) looks(count int32) int32 {
	if s.b.Leader() == 0 {
		return s.leaderless.Add(count)
	}
	if s.leaderless.Load() != 0 {
		s.leaderless.Store(0)
	}
	return 0
}

// StreamContext is the context of a stream: it ends with its parent, with the services, and, if the caller requires a
// leader, when the member has been without one for three election timeouts. context.Cause then holds the error to
// answer. The caller must call the returned function when the stream is over.
func (s *Services) StreamContext(parent context.Context, c Caller) (context.Context, context.CancelFunc) {
	return s.open(parent, openStream{requireLeader: c.RequireLeader})
}

// untilDrain is the context of what would go on for ever. It ends with its parent, which is of StreamContext, and with Drain.
func (s *Services) untilDrain(parent context.Context) (context.Context, context.CancelFunc) {
	return s.open(parent, openStream{endless: true})
}

func (s *Services) open(parent context.Context, o openStream) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	st := &o
	st.cancel = cancel
	s.mu.Lock()
	s.streams[st] = struct{}{}
	ended := s.stopped || o.endless && s.draining()
	s.mu.Unlock()
	if ended {
		cancel(rpctypes.ErrGRPCStopped)
	}
	return ctx, func() {
		s.mu.Lock()
		delete(s.streams, st)
		s.mu.Unlock()
		cancel(context.Canceled)
	}
}

func (s *Services) endStreams(cause error, which func(*openStream) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.streams {
		if which(st) {
			st.cancel(cause)
		}
	}
}

// streamError is what a stream that ended because of its context answers.
func streamError(ctx context.Context) error { return toStatus(context.Cause(ctx)) }

func (s *Services) watchLeader() {
	defer s.done.Done()
	tick := time.NewTicker(s.o.ElectionTimeout)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		if s.looks(1) >= noLeaderLooks {
			s.endStreams(rpctypes.ErrGRPCNoLeader, func(st *openStream) bool { return st.requireLeader })
		}
	}
}
