package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The lock and election services in the matrix: locks and campaigns are at names under m5, which nobody holds when one begins,
// and at m6 is a leader.
const held, led = "m5/..m50", "m6/..m60"

// errSilent is a stream that ended without an answer and without an error.
var errSilent = errors.New("the stream ended without a word")

// lostCode is an error as the two services tell it, which see errors of the store through a client, with its own code again.
func lostCode(err error) error {
	for text, c := range map[string]codes.Code{denied: codes.PermissionDenied, empty: codes.InvalidArgument} {
		if st := status.Convert(err); st.Code() == codes.Unknown && st.Message() == text {
			return status.Error(c, text)
		}
	}
	return err
}

// sessionCalls are the calls of the two services: by the keys that they touch, and by the lease that those are put on.
func sessionCalls() []matrixCall {
	read, write := need{held, false}, need{held, true}
	all := []matrixCall{
		{"Lock.Unlock", []need{write}, func(g *guarded, ctx context.Context) error {
			_, err := v3lockpb.NewLockClient(g.conn).Unlock(ctx, &v3lockpb.UnlockRequest{Key: []byte("m5/x")})
			return lostCode(err)
		}},
		{"Election.Resign", []need{read, write}, func(g *guarded, ctx context.Context) error {
			_, err := v3electionpb.NewElectionClient(g.conn).Resign(ctx, &v3electionpb.ResignRequest{Leader: &v3electionpb.LeaderKey{Name: []byte("m5"), Key: []byte("m5/x"), Lease: leaseOfM}})
			return lostCode(err)
		}},
		{"Election.Leader", []need{{led, false}}, func(g *guarded, ctx context.Context) error {
			_, err := v3electionpb.NewElectionClient(g.conn).Leader(ctx, &v3electionpb.LeaderRequest{Name: []byte("m6")})
			return lostCode(err)
		}},
		{"Election.Observe", []need{{led, false}}, func(g *guarded, ctx context.Context) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			s, err := v3electionpb.NewElectionClient(g.conn).Observe(ctx, &v3electionpb.LeaderRequest{Name: []byte("m6")})
			if err == nil {
				_, err = s.Recv()
			}
			if errors.Is(err, io.EOF) {
				return errSilent
			}
			return err
		}},
	}
	for lease, key := range map[int64]string{leaseOfM: "m", leaseOfA: "a", 0: ""} {
		needs, name := []need{write, read}, "a lease of its own"
		if key != "" {
			needs, name = append(needs, need{key, true}), "the lease of "+key
		}
		all = append(all,
			matrixCall{"Lock.Lock with " + name, needs, func(g *guarded, ctx context.Context) error {
				_, err := v3lockpb.NewLockClient(g.conn).Lock(ctx, &v3lockpb.LockRequest{Name: []byte("m5"), Lease: lease})
				return lostCode(err)
			}},
			matrixCall{"Election.Campaign with " + name, needs, func(g *guarded, ctx context.Context) error {
				_, err := v3electionpb.NewElectionClient(g.conn).Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("m5"), Lease: lease})
				return lostCode(err)
			}},
			matrixCall{"Election.Proclaim with " + name, needs, func(g *guarded, ctx context.Context) error {
				leader := &v3electionpb.LeaderKey{Name: []byte("m5"), Key: fmt.Appendf(nil, "m5/%x", lease), Lease: lease}
				_, err := v3electionpb.NewElectionClient(g.conn).Proclaim(ctx, &v3electionpb.ProclaimRequest{Leader: leader})
				return lostCode(err)
			}})
	}
	return all
}

// sessionState makes the lock free and has the leader there.
func (g *guarded) sessionState(ctx context.Context) error {
	k, end := keyRange(held)
	if _, err := pb.NewKVClient(g.conn).DeleteRange(ctx, &pb.DeleteRangeRequest{Key: k, RangeEnd: end}); err != nil {
		return err
	}
	_, err := pb.NewKVClient(g.conn).Put(ctx, &pb.PutRequest{Key: []byte("m6/1")})
	return err
}

// everySessionCall wants each method of the two services among the calls.
func everySessionCall(t *testing.T, calls []matrixCall) {
	t.Helper()
	for _, d := range []grpc.ServiceDesc{v3lockpb.Lock_ServiceDesc, v3electionpb.Election_ServiceDesc} {
		service := d.ServiceName[strings.LastIndexByte(d.ServiceName, '.')+1:]
		var names []string
		for _, m := range d.Methods {
			names = append(names, service+"."+m.MethodName)
		}
		for _, m := range d.Streams {
			names = append(names, service+"."+m.StreamName)
		}
		for _, name := range names {
			if !slices.ContainsFunc(calls, func(c matrixCall) bool { return strings.HasPrefix(c.name, name) }) {
				t.Errorf("%s is not in the matrix", name)
			}
		}
	}
}
