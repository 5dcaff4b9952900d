package compat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	mvccpb "go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/trivet-kv/trivet/bench/cluster"
)

const memberCount = 3

// patience is how long an answer may take before the machine or the system counts as broken.
const patience = 15 * time.Second

// flags go to both systems. The election timeout is long so that a busy machine does not change leaders; the rest of a
// cluster's flags come from package cluster.
var flags = []string{"--heartbeat-interval=200", "--election-timeout=3000", "--watch-progress-notify-interval=2s", "--bcrypt-cost=4"}

// target is one of the two systems: a cluster of its members, and the connections to them.
type target struct {
	name    string
	command []string
	dir     string
	extra   []string            // flags of this cluster alone
	alter   func(proto.Message) // changes the requests to this system: to see whether anybody notices
	starts  int
	since   time.Time // of the last start
	cluster *cluster.Cluster
	conns   []*grpc.ClientConn
	dead    [memberCount]bool // killed by the script

	// Of the script that runs.
	names
	tokens    map[string]string // by user
	compacted int64             // up to where history is gone
	behind    bool              // something was written since all members were known to have applied everything
	users     bool              // the same of users, roles and tokens
	streams   map[string]*watchStream
	witness   *watchStream    // sees every event since the script's begin
	seen      []*mvccpb.Event // of witness, when the two were compared last
}

// start begins with fresh members.
func (t *target) start() error {
	t.stop()
	t.starts++
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	dir := filepath.Join(t.dir, fmt.Sprintf("%s-%d", t.name, t.starts))
	c, err := cluster.StartSecure(ctx, clientTLS(), dir, memberCount, t.command, slices.Concat(flags, secureFlags(), t.extra)...)
	if err != nil {
		return fmt.Errorf("%s: %w", t.name, err)
	}
	t.cluster, t.conns, t.since, t.dead = c, nil, time.Now(), [memberCount]bool{}
	t.tokens = make(map[string]string)
	t.names = names{members: make(map[uint64]uint64)}
	for i, m := range c.Members {
		conn, err := m.Dial()
		if err != nil {
			return err
		}
		t.conns = append(t.conns, conn)
		s, err := settled(ctx, conn)
		if err != nil {
			return fmt.Errorf("%s: status of member %d: %w", t.name, i+1, err)
		}
		t.names.cluster = s.Header.ClusterId
		t.members[s.Header.MemberId] = uint64(i + 1)
		t.peers = append(t.peers, urlScheme()+m.Peer)
	}
	return nil
}

// settled waits until a member says that it stores what its version stores: etcd agrees on that some time after it serves.
func settled(ctx context.Context, conn *grpc.ClientConn) (*pb.StatusResponse, error) {
	for {
		s, err := pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{})
		if err != nil {
			return nil, err
		}
		if minor := s.Version[:strings.LastIndexByte(s.Version, '.')+1]; minor != "" && strings.HasPrefix(s.StorageVersion, minor) {
			return s, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (t *target) stop() {
	if t.cluster == nil {
		return
	}
	t.closeStreams()
	for _, c := range t.conns {
		_ = c.Close()
	}
	_ = t.cluster.Close()
	t.cluster = nil
	_ = os.RemoveAll(filepath.Join(t.dir, fmt.Sprintf("%s-%d", t.name, t.starts)))
}

// crashed returns an error, with the end of its log, if a member's process has ended by itself.
func (t *target) crashed() error {
	if t.cluster == nil {
		return nil
	}
	for i, m := range t.cluster.Members {
		if t.dead[i] {
			continue
		}
		select {
		case <-m.Exited():
			log, err := os.ReadFile(filepath.Join(t.dir, fmt.Sprintf("%s-%d", t.name, t.starts), m.Name+".log"))
			if err != nil {
				return err
			}
			return fmt.Errorf("%s: the process of %s has ended:\n%s", t.name, m.Name, log[max(0, len(log)-4000):])
		default:
		}
	}
	return nil
}

func (t *target) closeStreams() {
	for _, w := range t.streams {
		w.close()
	}
	t.streams = make(map[string]*watchStream)
	if t.witness != nil {
		t.witness.close()
		t.witness = nil
	}
}

// reset empties the store, so that a script can begin: no keys, no leases, and history compacted up to the revision that
// the script will call 1.
func (t *target) reset() error {
	t.closeStreams()
	for i := range t.dead {
		if err := t.revive(i); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	kvc, leases := pb.NewKVClient(t.conns[0]), pb.NewLeaseClient(t.conns[0])
	if _, err := kvc.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}); err != nil {
		return fmt.Errorf("%s: delete everything: %w", t.name, err)
	}
	if _, err := kvc.Put(ctx, &pb.PutRequest{Key: []byte("first")}); err != nil {
		return fmt.Errorf("%s: put: %w", t.name, err)
	}
	// Whatever was there, what a script calls revision 1 holds this one event.
	deleted, err := kvc.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("first")})
	if err != nil {
		return fmt.Errorf("%s: delete: %w", t.name, err)
	}
	if t.behind = true; t.catchUp(ctx) != nil {
		return fmt.Errorf("%s: the members do not catch up", t.name)
	}
	all, err := leases.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	if err != nil {
		return fmt.Errorf("%s: list leases: %w", t.name, err)
	}
	for _, l := range all.Leases {
		if _, err := leases.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: l.ID}); err != nil {
			return fmt.Errorf("%s: revoke %x: %w", t.name, l.ID, err)
		}
	}
	base := deleted.Header.Revision
	if _, err := kvc.Compact(ctx, &pb.CompactionRequest{Revision: base, Physical: true}); err != nil {
		return fmt.Errorf("%s: compact at %d: %w", t.name, base, err)
	}
	t.compacted = base
	t.names.base, t.names.leases, t.names.real = base, make(map[int64]int64), make(map[int64]int64)
	t.behind = true
	if err := t.catchUp(ctx); err != nil {
		return err
	}
	return t.openWitness(0, "", base)
}

// openWitness has a member tell everything from a revision on, 0 for what is to come, in the name of a user who may see it.
func (t *target) openWitness(member int, user string, from int64) (err error) {
	if t.witness, err = openWatch(t, op{member: member, user: user}); err != nil {
		return err
	}
	t.witness.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: from, PrevKv: true,
	}}})
	return t.witness.answered()
}

// outcome is what a call came to.
type outcome struct {
	answers []proto.Message
	err     *status.Status
	odd     error // what made no sense in the answers
}

// catchUp returns when every member has applied everything that was acknowledged before the call.
func (t *target) catchUp(ctx context.Context) error {
	if !t.behind {
		return nil
	}
	errs, asked := make(chan error, len(t.conns)), 0
	for i, c := range t.conns {
		if t.dead[i] {
			continue
		}
		asked++
		go func() {
			_, err := pb.NewKVClient(c).Range(ctx, &pb.RangeRequest{Key: []byte("barrier"), CountOnly: true})
			if c := status.Code(err); c == codes.InvalidArgument || c == codes.PermissionDenied {
				err = nil // it named no user, or that of the certificate, which is looked at behind the barrier
			}
			errs <- err
		}()
	}
	var all []error
	for range asked {
		all = append(all, <-errs)
	}
	err := errors.Join(all...)
	t.behind = err != nil
	t.users = t.users && t.behind
	return err
}

// call makes one call and returns its outcome in the form in which both systems must be equal.
func (t *target) call(o op) outcome {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	m, err := method(o.method)
	if err != nil {
		return outcome{err: status.Convert(err)}
	}
	out := outcome{}
	req := t.request(o.req)
	if t.alter != nil {
		t.alter(req)
	}
	if o.json {
		out.answers, err = t.invokeJSON(t.named(ctx, o.user), o, m, req)
	} else {
		out.answers, err = invoke(t.named(ctx, o.user), t.conns[o.member], m, req)
	}
	if err != nil {
		out.err = status.Convert(err)
	}
	for _, a := range out.answers {
		if r, ok := a.(*pb.AuthenticateResponse); ok {
			t.tokens[o.req.(*pb.AuthenticateRequest).Name] = r.Token
			// How long its part by chance is; of a signed one, the part that says how it is signed.
			r.Token = strings.Map(func(rune) rune { return 'x' }, r.Token[:strings.IndexByte(r.Token, '.')])
		}
		if err := t.answer(o.member, req, a); err != nil {
			out.odd = errors.Join(out.odd, fmt.Errorf("%s: %w", t.name, err))
		}
	}
	if o.method == "KV.RangeStream" && err == nil {
		whole, err := joinChunks(out.answers)
		if err != nil {
			out.odd = errors.Join(out.odd, fmt.Errorf("%s: %w", t.name, err))
		}
		out.answers = []proto.Message{whole}
	}
	return out
}

// named adds the token of a user.
func (t *target) named(ctx context.Context, user string) context.Context {
	if user == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "token", t.token(user))
}

func (t *target) token(user string) string {
	if user == "nonsense" {
		return "nonsense.1"
	}
	return t.tokens[user]
}

// invoke makes a call of any kind: one request, all answers.
func invoke(ctx context.Context, conn *grpc.ClientConn, m protoreflect.MethodDescriptor, req proto.Message) ([]proto.Message, error) {
	path := fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
	if !m.IsStreamingClient() && !m.IsStreamingServer() {
		answer := newMessage(m.Output())
		if err := conn.Invoke(ctx, path, req, answer); err != nil {
			return nil, err
		}
		return []proto.Message{answer}, nil
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: m.IsStreamingClient()}, path)
	if err != nil {
		return nil, err
	}
	if err := s.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := s.CloseSend(); err != nil {
		return nil, err
	}
	var answers []proto.Message
	for {
		answer := newMessage(m.Output())
		err := s.RecvMsg(answer)
		if errors.Is(err, io.EOF) {
			return answers, nil
		}
		if err != nil {
			return answers, err
		}
		answers = append(answers, answer)
	}
}

// joinChunks is a streamed range as one answer: where the chunks begin and end is up to the server.
func joinChunks(chunks []proto.Message) (*pb.RangeResponse, error) {
	whole := &pb.RangeResponse{}
	for i, c := range chunks {
		r := c.(*pb.RangeStreamResponse).RangeResponse
		if r.GetHeader() != nil && i != len(chunks)-1 {
			return whole, errors.New("a chunk with a header, and others after it")
		}
		whole.Kvs = append(whole.Kvs, r.GetKvs()...)
		whole.Header, whole.More, whole.Count = r.GetHeader(), r.GetMore(), r.GetCount()
	}
	return whole, nil
}

// caughtUp is catchUp with patience.
func (t *target) caughtUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return t.catchUp(ctx)
}
