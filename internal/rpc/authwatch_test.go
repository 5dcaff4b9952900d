package rpc_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"os"
	"path/filepath"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/token"
)

// watched is a stream with one watcher.
type watched struct {
	t *testing.T
	pb.Watch_WatchClient
}

func (g *guarded) watch(t *testing.T, ctx context.Context, keys string) watched {
	t.Helper()
	s, err := pb.NewWatchClient(g.conn).Watch(ctx)
	must(t, err)
	k, end := keyRange(keys)
	must(t, s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: k, RangeEnd: end}}}))
	return watched{t, s}
}

func (w watched) created() {
	w.t.Helper()
	if r, err := w.Recv(); err != nil || !r.Created || r.Canceled {
		w.t.Fatal(r, err)
	}
}

func (w watched) event(key string) {
	w.t.Helper()
	if r, err := w.Recv(); err != nil || len(r.Events) != 1 || string(r.Events[0].Kv.Key) != key {
		w.t.Fatal(r, err)
	}
}

func (w watched) ended(want error) {
	w.t.Helper()
	r, err := w.Recv()
	if err != nil || !r.Canceled || r.Created || r.CancelReason != want.Error() || len(r.Events) > 0 {
		w.t.Fatalf("%v %v, want the end by %v", r, err, want)
	}
}

var (
	errDenied = status.Error(codes.PermissionDenied, denied)
	errEmpty  = status.Error(codes.InvalidArgument, empty)
	errOld    = status.Error(codes.InvalidArgument, "etcdserver: revision of auth store is old")
)

func (g *guarded) put(t *testing.T, ctx context.Context, key string) {
	t.Helper()
	_, err := pb.NewKVClient(g.conn).Put(ctx, &pb.PutRequest{Key: []byte(key)})
	must(t, err)
}

// A watcher ends when its permission is taken back, with a reason, at once, and gets nothing that was written after that;
// others on the same stream go on.
func TestRevokedWatchEnds(t *testing.T) {
	g := guard(t, rpc.Options{})
	tok := g.setUp(t, "alice a..c read", "alice x read", "bob a..c read")
	root := as(t, tok["root"])
	alice, bob := g.watch(t, as(t, tok["alice"]), "a..c"), g.watch(t, as(t, tok["bob"]), "a")
	alice.created()
	bob.created()
	must(t, alice.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("x")}}}))
	alice.created()
	g.put(t, root, "a")
	alice.event("a")
	bob.event("a")
	must(t, g.allow(root, "alice", "q", "both")) // no matter
	must(t, g.forbid(root, "alice", "a..c"))
	g.put(t, root, "b")
	g.put(t, root, "x")
	alice.ended(errDenied)
	alice.event("x")
	g.put(t, root, "a")
	bob.event("a")
	// With the password goes who watches by it, with the user too, and without any event.
	a := pb.NewAuthClient(g.conn)
	_, err := a.UserChangePassword(root, &pb.AuthUserChangePasswordRequest{Name: "alice", Password: "x"})
	must(t, err)
	alice.ended(errOld)
	_, err = a.UserDelete(root, &pb.AuthUserDeleteRequest{Name: "bob"})
	must(t, err)
	bob.ended(errOld)
}

// Nobody's watchers end when authentication is switched on.
func TestWatchFromBefore(t *testing.T) {
	g := guard(t, rpc.Options{})
	w := g.watch(t, within(t), "a..")
	w.created()
	g.setUp(t)
	w.ended(errEmpty)
}

// From-key watch: who may read some keys from there on may not watch all of them.
func TestFromKeyWatchNeedsAll(t *testing.T) {
	g := guard(t, rpc.Options{})
	tok := g.setUp(t, "some b..z read", "all b.. read")
	if r, err := g.watch(t, as(t, tok["some"]), "b..").Recv(); err != nil || !r.Canceled || r.CancelReason != errDenied.Error() || r.WatchId != -1 {
		t.Error(r, err)
	}
	g.watch(t, as(t, tok["all"]), "b..").created()
}

// E#22386: whatever is raised, requests are asked who they are from.
func TestAlarmsDropNoAuth(t *testing.T) {
	g := guard(t, rpc.Options{})
	tok := g.setUp(t, "alice a both")
	for _, kind := range []kv.AlarmType{kv.AlarmNoSpace, kv.AlarmCorrupt} {
		g.SetAlarms(kv.Alarm{MemberID: 1, Type: kind})
		kvc := pb.NewKVClient(g.conn)
		for name, ctx := range map[string]context.Context{denied: as(t, tok["alice"]), empty: within(t)} {
			_, err := kvc.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("b")})
			if status.Convert(err).Message() != name {
				t.Errorf("alarm %d: delete: %v, want %s", kind, err, name)
			}
			_, err = kvc.Range(ctx, &pb.RangeRequest{Key: []byte("b")})
			if status.Convert(err).Message() != name {
				t.Errorf("alarm %d: range: %v, want %s", kind, err, name)
			}
		}
	}
}

// A signed token lives through changes that are not about its user's password (with etcd it dies of each, E#13300), and
// not through those that are.
func TestSignedTokens(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("s"), 0o600))
	tokens, err := token.New(token.Options{Spec: "jwt,sign-method=HS256,priv-key=" + secret})
	must(t, err)
	g := guard(t, rpc.Options{Tokens: tokens})
	tok := g.setUp(t, "alice a both", "bob b both")
	root, alice := as(t, tok["root"]), as(t, tok["alice"])
	a := pb.NewAuthClient(g.conn)
	g.put(t, alice, "a")
	_, err = a.RoleAdd(root, &pb.AuthRoleAddRequest{Name: "more"})
	must(t, err)
	must(t, g.allow(root, "alice", "c", "both"))
	_, err = a.UserChangePassword(root, &pb.AuthUserChangePasswordRequest{Name: "bob", Password: "x"})
	must(t, err)
	g.put(t, alice, "a")
	g.put(t, alice, "c")
	must(t, g.forbid(root, "alice", "c"))
	put := func(ctx context.Context, key string) error {
		_, err := pb.NewKVClient(g.conn).Put(ctx, &pb.PutRequest{Key: []byte(key)})
		return err
	}
	wantCode(t, "forbidden again", put(alice, "c"), codes.PermissionDenied, denied)
	wantCode(t, "bob's old token", put(as(t, tok["bob"]), "b"), codes.InvalidArgument, status.Convert(errOld).Message())
	_, err = a.UserDelete(root, &pb.AuthUserDeleteRequest{Name: "alice"})
	must(t, err)
	_, err = a.UserAdd(root, &pb.AuthUserAddRequest{Name: "alice", Password: "x"})
	must(t, err)
	_, err = a.UserGrantRole(root, &pb.AuthUserGrantRoleRequest{User: "alice", Role: "alice"})
	must(t, err)
	wantCode(t, "another alice", put(alice, "a"), codes.InvalidArgument, status.Convert(errOld).Message())
	_, err = a.UserChangePassword(root, &pb.AuthUserChangePasswordRequest{Name: "root", Password: "x"})
	must(t, err)
	_, err = a.UserList(root, &pb.AuthUserListRequest{})
	wantCode(t, "root's old token", err, codes.InvalidArgument, status.Convert(errOld).Message())
}

// The user of a certificate is its common name, if the server is told so, there is no token, and the call did not come
// through a proxy that has the certificate.
func TestCommonName(t *testing.T) {
	chain := func(name string) context.Context {
		info := credentials.TLSInfo{State: tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{nil, {{Subject: pkix.Name{CommonName: name}}}}}}
		return peer.NewContext(context.Background(), &peer.Peer{AuthInfo: info})
	}
	for _, on := range []bool{true, false} {
		g := guard(t, rpc.Options{ClientCertAuth: on})
		tok := g.setUp(t, "alice a both")
		get := func(ctx context.Context, key string, md ...string) error {
			a, err := g.services.Range(metadata.NewIncomingContext(ctx, metadata.Pairs(md...)), &pb.RangeRequest{Key: []byte(key)})
			if err == nil {
				a.Free()
			}
			return err
		}
		if !on {
			wantCode(t, "not told to", get(chain("alice"), "a"), codes.InvalidArgument, empty)
			continue
		}
		must(t, get(chain("alice"), "a"))
		wantCode(t, "another key", get(chain("alice"), "b"), codes.PermissionDenied, denied)
		wantCode(t, "no such user", get(chain("eve"), "a"), codes.PermissionDenied, denied)
		wantCode(t, "no name", get(chain(""), "a"), codes.PermissionDenied, denied)
		wantCode(t, "no certificate", get(context.Background(), "a"), codes.InvalidArgument, empty)
		wantCode(t, "by a proxy", get(chain("alice"), "a", "grpcgateway-accept", "*/*"), codes.InvalidArgument, empty)
		must(t, get(chain("alice"), "b", "token", tok["root"]))
		wantCode(t, "a wrong token", get(chain("alice"), "a", "token", "x"), codes.Unauthenticated, badToken)
	}
}
