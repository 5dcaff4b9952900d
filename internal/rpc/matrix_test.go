package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/trivet-kv/trivet/internal/rpc"
)

// need is one thing that a request asks of its user: to read or write every key of a range.
type need struct {
	keys  string
	write bool
}

// matrixUser is a user with one permission, as the model knows it.
type matrixUser struct{ name, keys, access string }

// probes lie so densely that two of the ranges below differ by one of them at least.
var probes = []string{"a", "l", "m", "m\x00", "m0", "m5", "m5/x", "m6/x", "my", "mz", "m\xff", "n", "n0", "z", "\xff"}

func inside(keys, key string) bool {
	k, end := keyRange(keys)
	switch {
	case len(end) == 0:
		return key == string(k)
	case end[0] == 0:
		return key >= string(k)
	}
	return key >= string(k) && key < string(end)
}

// may is the model: every key that the range holds lies in what the user was given.
func (u matrixUser) may(n need) bool {
	if u.name == "root" {
		return true
	}
	if n.write && u.access == "read" || !n.write && u.access == "write" || u.access == "" {
		return false
	}
	for _, p := range probes {
		if inside(n.keys, p) && !inside(u.keys, p) {
			return false
		}
	}
	return true
}

// matrixCall is one way to make a request.
type matrixCall struct {
	name  string
	needs []need
	do    func(g *guarded, ctx context.Context) error
}

// matrixOp is an operation on keys, alone and in a transaction.
type matrixOp struct {
	name  string
	needs []need
	op    proto.Message // a request of KV, or a Compare
}

// The leases that exist in the matrix, and their one key.
const leaseOfM, leaseOfA = 100, 200

func matrixOps() []matrixOp {
	var all []matrixOp
	for _, keys := range []string{"m", "a", "m0", "m..n", "m..mz", "l..n", "m.."} {
		k, end := keyRange(keys)
		read, write := need{keys, false}, need{keys, true}
		all = append(all,
			matrixOp{"range " + keys, []need{read}, &pb.RangeRequest{Key: k, RangeEnd: end}},
			matrixOp{"count " + keys, []need{read}, &pb.RangeRequest{Key: k, RangeEnd: end, CountOnly: true, Serializable: true}},
			matrixOp{"compare " + keys, []need{read}, &pb.Compare{Key: k, RangeEnd: end}},
			matrixOp{"always true " + keys, []need{read}, &pb.Compare{Key: k, RangeEnd: end, Result: 7}},
			matrixOp{"delete " + keys, []need{write}, &pb.DeleteRangeRequest{Key: k, RangeEnd: end}},
			matrixOp{"delete prev_kv " + keys, []need{write, read}, &pb.DeleteRangeRequest{Key: k, RangeEnd: end, PrevKv: true}})
		if len(end) == 0 {
			all = append(all,
				matrixOp{"put " + keys, []need{write}, &pb.PutRequest{Key: k}},
				matrixOp{"put prev_kv " + keys, []need{write, read}, &pb.PutRequest{Key: k, PrevKv: true}},
				matrixOp{"put with the lease of m " + keys, []need{write, {"m", true}}, &pb.PutRequest{Key: k, Lease: leaseOfM}},
				matrixOp{"put with the lease of a " + keys, []need{write, {"a", true}}, &pb.PutRequest{Key: k, Lease: leaseOfA}})
		}
	}
	return all
}

// calls are the ways in which the operation can be asked for: by a call of its own, and in transactions of every depth, on
// either branch, whichever is taken.
func (o matrixOp) calls() []matrixCall {
	var all []matrixCall
	add := func(name string, do func(g *guarded, ctx context.Context) error) {
		all = append(all, matrixCall{o.name + ", " + name, o.needs, do})
	}
	switch r := o.op.(type) {
	case *pb.RangeRequest:
		add("alone", func(g *guarded, ctx context.Context) error {
			_, err := pb.NewKVClient(g.conn).Range(ctx, r)
			return err
		})
		add("streamed", func(g *guarded, ctx context.Context) error {
			s, err := pb.NewKVClient(g.conn).RangeStream(ctx, r)
			for err == nil {
				_, err = s.Recv()
			}
			return noEOF(err)
		})
	case *pb.PutRequest:
		add("alone", func(g *guarded, ctx context.Context) error {
			_, err := pb.NewKVClient(g.conn).Put(ctx, r)
			return err
		})
	case *pb.DeleteRangeRequest:
		add("alone", func(g *guarded, ctx context.Context) error {
			_, err := pb.NewKVClient(g.conn).DeleteRange(ctx, r)
			return err
		})
	}
	for depth := 1; depth <= 3; depth++ {
		for _, failure := range []bool{false, true} {
			txn := o.txn(failure)
			for range depth - 1 {
				inner := []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: txn}}}
				if txn = (&pb.TxnRequest{Success: inner}); failure {
					txn = &pb.TxnRequest{Failure: inner}
				}
			}
			add(fmt.Sprintf("in a transaction %d deep, failure %v", depth, failure), func(g *guarded, ctx context.Context) error {
				_, err := pb.NewKVClient(g.conn).Txn(ctx, txn)
				return err
			})
		}
	}
	return all
}

func (o matrixOp) txn(failure bool) *pb.TxnRequest {
	op := &pb.RequestOp{}
	switch r := o.op.(type) {
	case *pb.Compare:
		return &pb.TxnRequest{Compare: []*pb.Compare{r}}
	case *pb.RangeRequest:
		op.Request = &pb.RequestOp_RequestRange{RequestRange: r}
	case *pb.PutRequest:
		op.Request = &pb.RequestOp_RequestPut{RequestPut: r}
	case *pb.DeleteRangeRequest:
		op.Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: r}
	}
	if failure {
		return &pb.TxnRequest{Failure: []*pb.RequestOp{op}}
	}
	return &pb.TxnRequest{Success: []*pb.RequestOp{op}}
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// leaseAndWatchCalls are those whose needs follow from the keys of a lease, and from the range of a watcher.
func leaseAndWatchCalls() []matrixCall {
	all := []matrixCall{{"list leases", []need{{"m", false}, {"a", false}}, func(g *guarded, ctx context.Context) error {
		_, err := pb.NewLeaseClient(g.conn).LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
		return err
	}}}
	for lease, key := range map[int64]string{leaseOfM: "m", leaseOfA: "a"} {
		all = append(all,
			matrixCall{"revoke the lease of " + key, []need{{key, true}}, func(g *guarded, ctx context.Context) error {
				_, err := pb.NewLeaseClient(g.conn).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: lease})
				return err
			}},
			// Whoever may not read the keys is not told of them (E#15815).
			matrixCall{"time to live and keys of " + key, []need{{key, false}}, func(g *guarded, ctx context.Context) error {
				_, err := pb.NewLeaseClient(g.conn).LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: lease, Keys: true})
				return err
			}},
			matrixCall{"time to live of " + key, nil, func(g *guarded, ctx context.Context) error {
				_, err := pb.NewLeaseClient(g.conn).LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: lease})
				return err
			}},
			matrixCall{"keep alive the lease of " + key, []need{{key, true}}, func(g *guarded, ctx context.Context) error {
				s, err := pb.NewLeaseClient(g.conn).LeaseKeepAlive(ctx)
				if err == nil {
					err = s.Send(&pb.LeaseKeepAliveRequest{ID: lease})
				}
				if err == nil {
					_, err = s.Recv()
				}
				return err
			}})
	}
	for _, keys := range []string{"m", "a", "m0", "m..n", "m..mz", "l..n", "m.."} {
		all = append(all, matrixCall{"watch " + keys, []need{{keys, false}}, func(g *guarded, ctx context.Context) error {
			k, end := keyRange(keys)
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			s, err := pb.NewWatchClient(g.conn).Watch(ctx)
			if err == nil {
				err = s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: k, RangeEnd: end}}})
			}
			if err != nil {
				return err
			}
			r, err := s.Recv()
			if err != nil || !r.Canceled {
				return err
			}
			for _, known := range []error{status.Error(codes.PermissionDenied, denied), status.Error(codes.InvalidArgument, empty)} {
				if r.CancelReason == known.Error() && r.WatchId == -1 && r.Created {
					return known
				}
			}
			return fmt.Errorf("a watch that is refused with %v", r)
		}})
	}
	return all
}

// Every call on keys and leases × nesting × kind and shape of permission, and root and nobody: it is done exactly if the
// model says that the user may.
func TestMatrix(t *testing.T) {
	users := []matrixUser{{name: "root"}, {name: "plain"}}
	lines := []string{"plain"}
	for _, access := range []string{"read", "write", "both"} {
		for i, keys := range []string{"m", "m..n", "m..mz", "m..", "a"} {
			u := matrixUser{fmt.Sprintf("%s%d", access, i), keys, access}
			users = append(users, u)
			lines = append(lines, fmt.Sprintf("%s %s %s", u.name, keys, access))
		}
	}
	g := guard(t, rpc.Options{})
	tok := g.setUp(t, lines...)
	var calls []matrixCall
	for _, o := range matrixOps() {
		calls = append(calls, o.calls()...)
	}
	calls = append(append(calls, leaseAndWatchCalls()...), sessionCalls()...)
	everySessionCall(t, calls)
	allowed, refused := 0, 0
	for _, c := range calls {
		g.matrixState(t, tok["root"])
		err := c.do(g, within(t))
		if !errors.Is(err, errSilent) {
			wantCode(t, "nobody: "+c.name, err, codes.InvalidArgument, empty)
		}
		for _, u := range users {
			may := true
			for _, n := range c.needs {
				may = may && u.may(n)
			}
			if may {
				g.matrixState(t, tok["root"]) // what others did may have taken a key off its lease
			}
			err := c.do(g, as(t, tok[u.name]))
			if may {
				allowed++
				if err != nil {
					t.Errorf("%+v: %s: %v", u, c.name, err)
				}
				g.matrixState(t, tok["root"])
			} else {
				if refused++; errors.Is(err, errSilent) {
					continue // as in etcd such a stream just ends
				}
				wantCode(t, fmt.Sprintf("%+v: %s", u, c.name), err, codes.PermissionDenied, denied)
			}
		}
		if t.Failed() {
			return
		}
	}
	if allowed < 500 || refused < 2000 {
		t.Errorf("%d allowed, %d refused: the matrix is thinner than it was", allowed, refused)
	}
}

// matrixState brings back the leases and their keys.
func (g *guarded) matrixState(t *testing.T, root string) {
	t.Helper()
	for lease, key := range map[int64]string{leaseOfM: "m", leaseOfA: "a"} {
		_, err := pb.NewLeaseClient(g.conn).LeaseGrant(as(t, root), &pb.LeaseGrantRequest{ID: lease, TTL: 1000})
		if err != nil && !strings.Contains(err.Error(), "already exists") {
			t.Fatal(err)
		}
		_, err = pb.NewKVClient(g.conn).Put(as(t, root), &pb.PutRequest{Key: []byte(key), Lease: lease})
		must(t, err)
	}
	must(t, g.sessionState(as(t, root)))
	// Nothing else hangs on them.
	_, err := pb.NewKVClient(g.conn).Put(as(t, root), &pb.PutRequest{Key: []byte("m0")})
	must(t, err)
}

// who may call what, apart from keys: "anybody", "known" users, the "admin" only; "keys" is TestMatrix's. A call of etcd's
// that is not here fails the test: somebody must decide.
var callers = map[string]string{
	"KV.Range": "keys", "KV.RangeStream": "keys", "KV.Put": "keys", "KV.DeleteRange": "keys", "KV.Txn": "keys", "KV.Compact": "admin",
	"Watch.Watch": "keys", "Lease.LeaseGrant": "known", "Lease.LeaseRevoke": "keys", "Lease.LeaseKeepAlive": "keys",
	"Lease.LeaseTimeToLive": "keys", "Lease.LeaseLeases": "keys",
	"Cluster.MemberAdd": "admin", "Cluster.MemberRemove": "admin", "Cluster.MemberUpdate": "admin", "Cluster.MemberList": "known",
	"Cluster.MemberPromote": "admin",
	"Maintenance.Alarm":     "known", "Maintenance.Status": "known", "Maintenance.Defragment": "admin", "Maintenance.Hash": "admin",
	"Maintenance.HashKV": "admin", "Maintenance.Snapshot": "admin", "Maintenance.MoveLeader": "admin", "Maintenance.Downgrade": "admin",
	"Auth.AuthEnable": "admin", "Auth.AuthDisable": "admin", "Auth.AuthStatus": "anybody", "Auth.Authenticate": "anybody",
	"Auth.UserAdd": "admin", "Auth.UserGet": "admin", "Auth.UserList": "admin", "Auth.UserDelete": "admin",
	"Auth.UserChangePassword": "admin", "Auth.UserGrantRole": "admin", "Auth.UserRevokeRole": "admin",
	"Auth.RoleAdd": "admin", "Auth.RoleGet": "admin", "Auth.RoleList": "admin", "Auth.RoleDelete": "admin",
	"Auth.RoleGrantPermission": "admin", "Auth.RoleRevokePermission": "admin",
}

// callerRequests are the requests for which an empty one says too little.
var callerRequests = map[string]proto.Message{
	"Auth.UserAdd": &pb.AuthUserAddRequest{Name: "new", Password: "x"}, "Auth.UserGet": &pb.AuthUserGetRequest{Name: "root"},
	"Auth.UserChangePassword": &pb.AuthUserChangePasswordRequest{Name: "new", Password: "x"},
	"Auth.Authenticate":       &pb.AuthenticateRequest{Name: "plain", Password: "pw of plain"},
	"Auth.RoleAdd":            &pb.AuthRoleAddRequest{Name: "new"}, "Auth.RoleGet": &pb.AuthRoleGetRequest{Role: "new"},
	"Lease.LeaseGrant": &pb.LeaseGrantRequest{TTL: 100},
}

// Every call that there is, by nobody, by somebody without any permission, with a wrong token, and by root.
func TestCallers(t *testing.T) {
	g := guard(t, rpc.Options{})
	tok := g.setUp(t, "plain")
	seen := 0
	protoregistry.GlobalFiles.RangeFilesByPackage("etcdserverpb", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				name := string(s.Name()) + "." + string(m.Name())
				seen++
				g.checkCallers(t, tok, name, m)
			}
		}
		return true
	})
	if seen != len(callers) {
		t.Errorf("%d calls, %d in the table", seen, len(callers))
	}
	alarm := func(token string) error {
		_, err := pb.NewMaintenanceClient(g.conn).Alarm(as(t, token), &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE})
		return err
	}
	wantCode(t, "nobody clears alarms", alarm(""), codes.InvalidArgument, empty)
	wantCode(t, "plain clears alarms", alarm(tok["plain"]), codes.PermissionDenied, denied)
	// What a user may know of itself.
	a := pb.NewAuthClient(g.conn)
	u, err := a.UserGet(as(t, tok["plain"]), &pb.AuthUserGetRequest{Name: "plain"})
	if err != nil || len(u.Roles) != 1 {
		t.Error(u, err)
	}
	_, err = a.RoleGet(as(t, tok["plain"]), &pb.AuthRoleGetRequest{Role: "plain"})
	must(t, err)
	_, err = a.RoleGet(as(t, tok["plain"]), &pb.AuthRoleGetRequest{Role: "root"})
	wantCode(t, "another role", err, codes.PermissionDenied, denied)
}

func (g *guarded) checkCallers(t *testing.T, tok map[string]string, name string, m protoreflect.MethodDescriptor) {
	t.Helper()
	rule := callers[name]
	call := func(token string) error { return g.invoke(as(t, token), name, m) }
	switch rule {
	case "":
		t.Errorf("%s: who may call it? Say so in callers, and in gates", name)
	case "keys":
		if strings.HasPrefix(name, "Watch") || strings.HasPrefix(name, "KV") {
			return // empty requests are refused before; TestMatrix makes better ones
		}
		wantCode(t, name+" by nobody", call(""), codes.InvalidArgument, empty)
	case "anybody":
		if err := call(""); err != nil {
			t.Errorf("%s by nobody: %v", name, err)
		}
	default:
		wantCode(t, name+" by nobody", call(""), codes.InvalidArgument, empty)
		wantCode(t, name+" with a wrong token", call("wrong.1"), codes.Unauthenticated, badToken)
		if err := call(tok["plain"]); rule == "admin" {
			wantCode(t, name+" by plain", err, codes.PermissionDenied, denied)
		} else if err != nil {
			t.Errorf("%s by plain: %v", name, err)
		}
		if name == "Auth.AuthDisable" {
			return // everybody may everything then
		}
		switch st := status.Convert(call(tok["root"])); {
		case st.Code() == codes.PermissionDenied, st.Code() == codes.Unauthenticated, st.Message() == empty:
			t.Errorf("%s by root: %v", name, st.Err())
		}
	}
}

func (g *guarded) invoke(ctx context.Context, name string, m protoreflect.MethodDescriptor) error {
	message := func(d protoreflect.MessageDescriptor) proto.Message {
		t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
		if err != nil {
			panic(err)
		}
		return t.New().Interface()
	}
	req := message(m.Input())
	if r := callerRequests[name]; r != nil {
		req = proto.Clone(r)
	}
	path := fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
	if !m.IsStreamingClient() && !m.IsStreamingServer() {
		return g.conn.Invoke(ctx, path, req, message(m.Output()))
	}
	s, err := g.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: m.IsStreamingClient()}, path)
	if err == nil {
		err = s.SendMsg(req)
	}
	if err == nil {
		err = s.CloseSend()
	}
	for err == nil {
		err = s.RecvMsg(message(m.Output()))
	}
	return noEOF(err)
}
