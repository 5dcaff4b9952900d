package rpc

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/api/v3/version"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

// Status answers Maintenance.Status.
func (s *Services) Status(_ context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	st := s.b.Status()
	cluster, down := s.b.ClusterVersion()
	out := &pb.StatusResponse{
		Header:           headerPB(s.b.Header(), s.b.Store().Revision()),
		Version:          version.Version,
		Leader:           st.Leader,
		RaftIndex:        st.CommitIndex,
		RaftAppliedIndex: st.Applied,
		RaftTerm:         st.Term,
		DbSize:           st.DBSize,
		DbSizeInUse:      st.DBInUse,
		DbSizeQuota:      st.Quota,
		IsLearner:        st.Learner,
		StorageVersion:   StorageVersion(cluster),
		DowngradeInfo:    &pb.DowngradeInfo{Enabled: down.Enabled, TargetVersion: down.Target},
	}
	if st.Leader == 0 {
		out.Errors = append(out.Errors, "etcdserver: no leader")
	}
	for _, a := range s.b.Alarms() {
		out.Errors = append(out.Errors, alarmText(a))
	}
	return out, nil
}

// alarmText is the alarm in the text form of protobuf, without the second space that Go's printer puts in at whim.
func alarmText(a kv.Alarm) string {
	var fields []string
	if a.MemberID != 0 {
		fields = append(fields, fmt.Sprintf("memberID:%d", a.MemberID))
	}
	return strings.Join(append(fields, "alarm:"+a.Type.String()), " ")
}

func (s *Services) alarms() []*pb.AlarmMember { return alarmsPB(s.b.Alarms()) }

func alarmsPB(alarms []kv.Alarm) []*pb.AlarmMember {
	var out []*pb.AlarmMember
	for _, a := range alarms {
		out = append(out, &pb.AlarmMember{MemberID: a.MemberID, Alarm: pb.AlarmType(a.Type)})
	}
	return out
}

// Alarm answers Maintenance.Alarm: it raises or clears an alarm of any member, whether there is such a member or not, or
// lists the alarms of one kind or all; as in etcd, whose list goes through the log, never a stale one.
func (s *Services) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if err := s.pass(ctx, alarmGate(r)); err != nil {
		return nil, err
	}
	if r.Action != pb.AlarmRequest_GET {
		return s.changeAlarm(ctx, r)
	}
	begin := time.Now()
	err := s.b.ReadBarrier(ctx)
	s.took("Alarm", err, begin)
	if err != nil {
		return nil, toStatus(err)
	}
	out := &pb.AlarmResponse{Header: headerPB(s.b.Header(), s.b.Store().Revision())}
	for _, a := range s.alarms() {
		if r.Alarm == pb.AlarmType_NONE || r.Alarm == a.Alarm {
			out.Alarms = append(out.Alarms, a)
		}
	}
	return out, nil
}

func (s *Services) changeAlarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if r.Action != pb.AlarmRequest_ACTIVATE && r.Action != pb.AlarmRequest_DEACTIVATE {
		return nil, status.Errorf(codes.InvalidArgument, "trivet: alarm action %d is none of GET, ACTIVATE, DEACTIVATE", r.Action)
	}
	res, err := s.propose(ctx, "Alarm", &command.Command{Alarm: &command.Alarm{
		Alarm: kv.Alarm{Type: kv.AlarmType(r.Alarm), MemberID: r.MemberID}, Raise: r.Action == pb.AlarmRequest_ACTIVATE,
	}})
	if err != nil {
		return nil, err
	}
	return &pb.AlarmResponse{Header: headerPB(s.b.Header(), res.Revision), Alarms: alarmsPB(res.Alarms)}, nil
}

// Defragment answers Maintenance.Defragment. There is nothing to defragment; as in etcd the answer has no header.
func (s *Services) Defragment(context.Context, *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	begin := time.Now()
	s.m.DefragInflight.Inc()
	err := s.b.Defragment()
	s.m.DefragInflight.Dec()
	s.m.DefragSeconds.Observe(time.Since(begin).Seconds())
	if err != nil {
		return nil, toStatus(err)
	}
	return &pb.DefragmentResponse{}, nil
}

// Hash answers Maintenance.Hash, the hash of everything this member stores. It is not equal on two members.
func (s *Services) Hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	begin := time.Now()
	store := s.b.Store()
	hash, _, rev, err := store.Hash(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	s.m.HashSeconds.Observe(time.Since(begin).Seconds())
	return &pb.HashResponse{Header: headerPB(s.b.Header(), rev), Hash: hash}, nil
}

// HashKV answers Maintenance.HashKV, the hash of the history up to a revision, equal on all members and equal to etcd's.
func (s *Services) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	begin := time.Now()
	store := s.b.Store()
	hash, compact, rev, err := store.HashKV(ctx, r.Revision)
	if err != nil {
		return nil, toStatus(err)
	}
	s.m.HashRevisionSeconds.Observe(time.Since(begin).Seconds())
	return &pb.HashKVResponse{
		Header: headerPB(s.b.Header(), store.Revision()), Hash: hash, CompactRevision: compact, HashRevision: rev,
	}, nil
}

// MoveLeader answers Maintenance.MoveLeader; as in etcd only the leader takes it and the answer has no header.
func (s *Services) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	if s.b.Header().MemberID != s.b.Leader() {
		return nil, rpctypes.ErrGRPCNotLeader
	}
	if err := s.b.MoveLeader(ctx, r.TargetID); err != nil {
		return nil, toStatus(err)
	}
	return &pb.MoveLeaderResponse{}, nil
}
