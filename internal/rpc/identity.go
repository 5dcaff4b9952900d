package rpc

import (
	"context"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/trivet-kv/trivet/internal/auth"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/token"
)

// Passwords hashes and compares passwords. Both take long, and must not take the processors from other requests.
type Passwords interface {
	Hash(ctx context.Context, password string) ([]byte, error)
	// Compare returns kv.ErrAuthFailed if the hash, which may be empty, is not that of the password.
	Compare(ctx context.Context, hash []byte, password string) error
}

// identify finds out who makes a request: by the token in its metadata or, with ClientCertAuth, by the certificate of its
// connection. named is false for who says nothing. While authentication is off nobody is asked. A token that this member
// does not know yet, though it should be in the log, is waited for if wait is set.
func (s *Services) identify(ctx context.Context, wait bool) (who auth.Who, named bool, err error) {
	v := s.b.Auth().Published()
	if !v.Enabled() {
		return auth.Who{}, false, nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	tokens := md[rpctypes.TokenFieldNameGRPC]
	if len(tokens) == 0 {
		tokens = md[rpctypes.TokenFieldNameSwagger]
	}
	if len(tokens) > 0 {
		who, err = s.ofToken(ctx, strings.TrimPrefix(tokens[0], "Bearer "), wait)
		return who, err == nil, err
	}
	if !s.o.ClientCertAuth {
		return auth.Who{}, false, nil
	}
	// A proxy that speaks JSON on behalf of others has a certificate of its own, which must not lend its name to them.
	if name, ok := commonName(ctx); ok && len(md["grpcgateway-accept"]) == 0 {
		return auth.Who{User: name, Revision: v.Settings().Revision}, true, nil
	}
	return auth.Who{}, false, nil
}

// commonName is that of the first certificate that was verified.
func commonName(ctx context.Context) (string, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return "", false
	}
	for _, chain := range info.State.VerifiedChains {
		if len(chain) > 0 {
			return chain[0].Subject.CommonName, true
		}
	}
	return "", false
}

func (s *Services) ofToken(ctx context.Context, text string, wait bool) (auth.Who, error) {
	t := s.o.Tokens
	switch t.Kind() {
	case token.Signed:
		if who, ok := t.Verify(text); ok {
			return who, nil
		}
		return auth.Who{}, kv.ErrInvalidAuthToken
	case token.None:
		return auth.Who{}, kv.ErrInvalidAuthToken
	}
	who, ok := t.Find(text)
	if !ok && wait {
		// Another member may have made it, and this one not yet applied that. What was committed by now is enough: who
		// has a token has it from an entry that was.
		if index, may := token.Index(text); may && index > s.b.Applied() {
			if err := s.b.ReadBarrier(ctx); err != nil {
				return auth.Who{}, err
			}
			who, ok = t.Find(text)
		}
	}
	if !ok {
		return auth.Who{}, kv.ErrInvalidAuthToken
	}
	if !s.b.Auth().Published().Valid(who) {
		t.Forget(text)
		return auth.Who{}, kv.ErrInvalidAuthToken
	}
	return who, nil
}

// requireUser returns nil if the request names a user, whatever that may do.
func (s *Services) requireUser(ctx context.Context) error {
	if !s.b.Auth().Published().Enabled() {
		return nil
	}
	_, named, err := s.identify(ctx, true)
	if err == nil && !named {
		err = kv.ErrUserEmpty
	}
	return toStatus(err)
}

// requireAdmin returns nil if the request's user has the role root.
func (s *Services) requireAdmin(ctx context.Context) error {
	if !s.b.Auth().Published().Enabled() {
		return nil
	}
	who, _, err := s.identify(ctx, true)
	if err == nil {
		err = s.b.Auth().Published().Admin(who)
	}
	return toStatus(err)
}

// reading is a permission to read, which must be asked for again when something was read: the permission may have been
// taken back, and what was read may have been written after that. Permissions become visible before what is written under
// them.
type reading struct {
	s     *Services
	keys  kv.Range
	txn   *command.Txn // if set: what its ranges and conditions are about
	from  *auth.Auth
	stamp uint64
}

// mayRead asks for the permission to read a range, or what a transaction that only reads is about.
func (s *Services) mayRead(ctx context.Context, keys kv.Range, txn *command.Txn) (reading, error) {
	r := reading{s: s, keys: keys, txn: txn}
	return r, r.ask(ctx)
}

func (r *reading) ask(ctx context.Context) error {
	r.from = r.s.b.Auth()
	v := r.from.Published()
	r.stamp = v.Stamp()
	if !v.Enabled() {
		return nil
	}
	who, _, err := r.s.identify(ctx, true)
	if err != nil {
		return toStatus(err)
	}
	p := v.Permissions(who)
	if r.txn != nil {
		return toStatus(fsm.AllowReadTxn(&p, r.txn))
	}
	return toStatus(p.Read(r.keys))
}

// still returns nil if the permission is what it was, or is given again.
func (r *reading) still(ctx context.Context) error {
	for r.from != r.s.b.Auth() || r.stamp != r.from.Published().Stamp() {
		if err := r.ask(ctx); err != nil {
			return err
		}
	}
	return nil
}

// leasePermissions is what a request's user may do with the keys of leases.
func (s *Services) leasePermissions(ctx context.Context) (auth.Permissions, error) {
	who, named, err := s.identify(ctx, true)
	v := s.b.Auth().Published()
	if err == nil && !named && v.Enabled() {
		err = kv.ErrUserEmpty
	}
	return v.Permissions(who), toStatus(err)
}

// mayAccess returns nil if all keys of a lease may be accessed so.
func (s *Services) mayAccess(p *auth.Permissions, access kv.Access, id kv.LeaseID) error {
	if p.All() {
		return nil
	}
	return toStatus(s.b.SkimLease(id, func(key []byte) ([]byte, error) { return p.Reach(access, key) }))
}

// A gate is what must be known of who makes a call before anything is done for it.
type gate uint8

const (
	open  gate = iota // the method asks itself, or the state machine does, about just what is touched
	known             // a user
	admin             // a user with the role root
)

// gates has a line for every method of every service. One that is missing here is not served: see Services.add.
var gates = map[string]gate{
	"KV.Range": open, "KV.RangeStream": open, "KV.Put": open, "KV.DeleteRange": open, "KV.Txn": open, "KV.Compact": admin,
	"Watch.Watch":      open,
	"Lease.LeaseGrant": open, "Lease.LeaseRevoke": known, "Lease.LeaseTimeToLive": known,
	"Lease.LeaseKeepAlive": open, "Lease.LeaseLeases": open, // with keepalives for each request of the stream
	"Cluster.MemberList": known, "Cluster.MemberAdd": admin, "Cluster.MemberRemove": admin, "Cluster.MemberUpdate": admin,
	"Cluster.MemberPromote": admin,
	"Maintenance.Alarm":     open, // known to list, admin to change
	"Maintenance.Status":    known, "Maintenance.Defragment": admin, "Maintenance.Hash": admin, "Maintenance.HashKV": admin,
	"Maintenance.Snapshot": admin, "Maintenance.MoveLeader": admin, "Maintenance.Downgrade": admin,
	// The state machine asks for the role root where users and roles change.
	"Auth.AuthEnable": open, "Auth.AuthDisable": open, "Auth.AuthStatus": open, "Auth.Authenticate": open,
	"Auth.UserAdd": open, "Auth.UserGet": open, "Auth.UserList": open, "Auth.UserDelete": open, "Auth.UserChangePassword": open,
	"Auth.UserGrantRole": open, "Auth.UserRevokeRole": open,
	"Auth.RoleAdd": open, "Auth.RoleGet": open, "Auth.RoleList": open, "Auth.RoleDelete": open,
	"Auth.RoleGrantPermission": open, "Auth.RoleRevokePermission": open,
	"Health.Check": open, "Health.List": open, "Health.Watch": open, // they tell nothing of the store
	// They do what they do by the methods above, in the name of the caller.
	"Lock.Lock": open, "Lock.Unlock": open,
	"Election.Campaign": open, "Election.Proclaim": open, "Election.Leader": open, "Election.Observe": open, "Election.Resign": open,
}

// pass checks the gate of a method.
func (s *Services) pass(ctx context.Context, g gate) error {
	switch g {
	case known:
		return s.requireUser(ctx)
	case admin:
		return s.requireAdmin(ctx)
	}
	return nil
}

// alarmGate is that of one call of Maintenance.Alarm.
func alarmGate(r *pb.AlarmRequest) gate {
	if r.Action == pb.AlarmRequest_GET {
		return known
	}
	return admin
}
