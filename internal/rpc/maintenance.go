package rpc

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/api/v3/version"
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
	for _, a := range s.alarms() {
		out.Errors = append(out.Errors, a.String())
	}
	return out, nil
}

func (s *Services) alarms() []*pb.AlarmMember {
	raised := s.b.Alarms()
	out := make([]*pb.AlarmMember, len(raised))
	for i, a := range raised {
		out[i] = &pb.AlarmMember{MemberID: a.MemberID, Alarm: pb.AlarmType(a.Type)}
	}
	return out
}

// Alarm answers Maintenance.Alarm: the list of alarms, of one kind or all. As in etcd, whose list goes through the log, it
// is never a stale one. Nothing raises or clears an alarm by hand yet.
func (s *Services) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	if err := s.pass(ctx, alarmGate(r)); err != nil {
		return nil, err
	}
	if r.Action != pb.AlarmRequest_GET {
		return nil, unimplemented("Maintenance.Alarm " + r.Action.String())
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
