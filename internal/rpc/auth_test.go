package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/token"
	"github.com/trivet-kv/trivet/internal/watch"
)

// guarded is a member with users and roles, reached as one of them.
type guarded struct {
	*served
	conn   *grpc.ClientConn
	tokens *token.Tokens
}

// guard makes a member whose authentication is off still.
func guard(t testing.TB, o rpc.Options) *guarded {
	t.Helper()
	if o.Tokens == nil {
		tokens, err := token.New(token.Options{Spec: "simple"})
		if err != nil {
			t.Fatal(err)
		}
		o.Tokens = tokens
	}
	if o.Passwords == nil {
		o.Passwords = token.NewPasswords(4)
	}
	g := &guarded{served: serve(t, o, watch.Options{}), tokens: o.Tokens}
	on := func(m fsm.Token) { g.tokens.Made(m.Token, m.Who) }
	g.OnToken.Store(&on)
	g.conn = g.dial(t)
	return g
}

// as is the context of a call in the name of whoever has this token; nobody for none.
func as(t testing.TB, tok string) context.Context {
	if tok == "" {
		return within(t)
	}
	return metadata.AppendToOutgoingContext(within(t), "token", tok)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// setUp makes a role of each name in permissions (lines "role key..end read|write|both") and a user of the same name who
// has it, the user root, and switches authentication on. It returns a token of each.
func (g *guarded) setUp(t testing.TB, permissions ...string) map[string]string {
	t.Helper()
	a := pb.NewAuthClient(g.conn)
	ctx := within(t)
	user := func(name, role string) {
		_, err := a.UserAdd(ctx, &pb.AuthUserAddRequest{Name: name, Password: "pw of " + name})
		must(t, err)
		_, err = a.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: name, Role: role})
		must(t, err)
	}
	names := []string{"root"}
	user("root", "root")
	for _, p := range permissions {
		f := strings.Fields(p)
		if !strings.Contains(" "+strings.Join(names, " ")+" ", " "+f[0]+" ") {
			_, err := a.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: f[0]})
			must(t, err)
			user(f[0], f[0])
			names = append(names, f[0])
		}
		if len(f) == 1 {
			continue
		}
		must(t, g.allow(ctx, f[0], f[1], f[2]))
	}
	_, err := a.AuthEnable(ctx, &pb.AuthEnableRequest{})
	must(t, err)
	out := map[string]string{}
	for _, name := range names {
		out[name] = g.login(t, name)
	}
	return out
}

func (g *guarded) login(t testing.TB, name string) string {
	t.Helper()
	r, err := pb.NewAuthClient(g.conn).Authenticate(within(t), &pb.AuthenticateRequest{Name: name, Password: "pw of " + name})
	must(t, err)
	return r.Token
}

func (g *guarded) allow(ctx context.Context, role, keys, access string) error {
	k, end := keyRange(keys)
	kind := map[string]authpb.Permission_Type{"read": authpb.Permission_READ, "write": authpb.Permission_WRITE, "both": authpb.Permission_READWRITE}[access]
	_, err := pb.NewAuthClient(g.conn).RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{
		Name: role, Perm: &authpb.Permission{Key: k, RangeEnd: end, PermType: kind},
	})
	return err
}

func (g *guarded) forbid(ctx context.Context, role, keys string) error {
	k, end := keyRange(keys)
	_, err := pb.NewAuthClient(g.conn).RoleRevokePermission(ctx, &pb.AuthRoleRevokePermissionRequest{Role: role, Key: k, RangeEnd: end})
	return err
}

// keyRange reads "a", "a..c" and "a..".
func keyRange(s string) (key, end []byte) {
	k, e, isRange := strings.Cut(s, "..")
	if isRange && e == "" {
		e = "\x00"
	}
	return []byte(k), []byte(e)
}

func wantCode(t testing.TB, what string, err error, want codes.Code, text string) {
	t.Helper()
	if st := status.Convert(err); st.Code() != want || st.Message() != text {
		t.Errorf("%s: %v %q, want %v %q", what, st.Code(), st.Message(), want, text)
	}
}

const denied, empty, badToken = "etcdserver: permission denied", "etcdserver: user name is empty", "etcdserver: invalid auth token"

// Tokens: in either header, of whoever is still who he was, and of nobody else.
func TestTokens(t *testing.T) {
	g := guard(t, rpc.Options{})
	tok := g.setUp(t, "alice a both")
	kvc, a := pb.NewKVClient(g.conn), pb.NewAuthClient(g.conn)
	get := func(md ...string) error {
		_, err := kvc.Range(metadata.AppendToOutgoingContext(within(t), md...), &pb.RangeRequest{Key: []byte("a")})
		return err
	}
	must(t, get("token", tok["alice"]))
	must(t, get("authorization", tok["alice"]))
	must(t, get("authorization", "Bearer "+tok["alice"]))
	must(t, get("token", "Bearer "+tok["alice"]))
	wantCode(t, "no token", get(), codes.InvalidArgument, empty)
	for _, bad := range []string{"", "x", "x.1", "x.999999", tok["alice"] + "1", "." + tok["alice"]} {
		wantCode(t, "token "+bad, get("token", bad), codes.Unauthenticated, badToken)
	}
	// What changes other users and roles, or what this one may do, does not end a token.
	root := as(t, tok["root"])
	must(t, g.allow(root, "alice", "b", "read"))
	must(t, get("token", tok["alice"]))
	_, err := a.UserChangePassword(root, &pb.AuthUserChangePasswordRequest{Name: "alice", Password: "other"})
	must(t, err)
	wantCode(t, "after the password changed", get("token", tok["alice"]), codes.Unauthenticated, badToken)
	_, err = a.Authenticate(within(t), &pb.AuthenticateRequest{Name: "alice", Password: "pw of alice"})
	wantCode(t, "the old password", err, codes.InvalidArgument, "etcdserver: authentication failed, invalid user ID or password")
	_, err = a.AuthDisable(root, &pb.AuthDisableRequest{})
	must(t, err)
	must(t, get("token", "whatever"))
	_, err = a.AuthEnable(within(t), &pb.AuthEnableRequest{})
	must(t, err)
	wantCode(t, "root after off and on", get("token", tok["root"]), codes.Unauthenticated, badToken)
}

// CVE-2021-28235, a password left in memory: the request does not hold it while, and after, it is looked at.
func TestPasswordIsNotKept(t *testing.T) {
	seen := &holder{}
	g := guard(t, rpc.Options{Passwords: seen})
	ctx := context.Background()
	add := &pb.AuthUserAddRequest{Name: "root", Password: "secret"}
	_, err := g.services.UserAdd(ctx, add)
	must(t, err)
	_, err = g.services.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"})
	must(t, err)
	_, err = g.services.AuthEnable(ctx, &pb.AuthEnableRequest{})
	must(t, err)
	login := &pb.AuthenticateRequest{Name: "root", Password: "secret"}
	r, err := g.services.Authenticate(ctx, login)
	must(t, err)
	change := &pb.AuthUserChangePasswordRequest{Name: "root", Password: "secret"}
	_, err = g.services.UserChangePassword(metadata.NewIncomingContext(ctx, metadata.Pairs("token", r.Token)), change)
	must(t, err)
	if seen.calls.Load() != 3 {
		t.Errorf("%d passwords were looked at", seen.calls.Load())
	}
	for _, m := range []fmt.Stringer{add, login, change} {
		if strings.Contains(m.String(), "secret") {
			t.Errorf("%v still holds the password", m)
		}
	}
}

// holder is Passwords that can be made to stand still.
type holder struct {
	calls   atomic.Int32
	entered chan struct{} // if set: told when somebody stands in it
	release chan struct{}
}

func (h *holder) stand(ctx context.Context) error {
	h.calls.Add(1)
	if h.entered == nil {
		return nil
	}
	select {
	case h.entered <- struct{}{}:
	case <-ctx.Done():
	}
	select {
	case <-h.release:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *holder) Hash(ctx context.Context, password string) ([]byte, error) {
	return []byte("hash of " + password), h.stand(ctx)
}

func (h *holder) Compare(ctx context.Context, hash []byte, password string) error {
	if err := h.stand(ctx); err != nil {
		return err
	}
	if string(hash) != "hash of "+password {
		return errors.New("wrong")
	}
	return nil
}

// While passwords are compared, which takes long, all else goes on, also while many clients come at once (E#9615).
func TestPasswordsHoldUpNobody(t *testing.T) {
	h := &holder{}
	g := guard(t, rpc.Options{Passwords: h})
	tok := g.setUp(t, "alice a both")
	h.entered, h.release = make(chan struct{}), make(chan struct{})
	done := make(chan error, 5)
	for range cap(done) {
		go func() {
			_, err := pb.NewAuthClient(g.conn).Authenticate(within(t), &pb.AuthenticateRequest{Name: "alice", Password: "pw of alice"})
			done <- err
		}()
		<-h.entered
	}
	_, err := pb.NewKVClient(g.conn).Put(as(t, tok["alice"]), &pb.PutRequest{Key: []byte("a")})
	must(t, err)
	_, err = pb.NewAuthClient(g.conn).RoleAdd(as(t, tok["root"]), &pb.AuthRoleAddRequest{Name: "more"})
	must(t, err)
	close(h.release)
	for range cap(done) {
		must(t, <-done)
	}
}
