package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// jsonPaths are where the gateway has the calls that scripts may make in JSON.
var jsonPaths = map[string]string{
	"KV.Range": "/v3/kv/range", "KV.Put": "/v3/kv/put", "KV.DeleteRange": "/v3/kv/deleterange", "KV.Txn": "/v3/kv/txn",
	"KV.Compact": "/v3/kv/compaction", "Lease.LeaseGrant": "/v3/lease/grant", "Lease.LeaseRevoke": "/v3/lease/revoke",
	"Lease.LeaseTimeToLive": "/v3/lease/timetolive", "Lease.LeaseLeases": "/v3/lease/leases",
	"Maintenance.HashKV": "/v3/maintenance/hashkv", "Maintenance.Status": "/v3/maintenance/status",
	"Cluster.MemberList": "/v3/cluster/member/list", "Lease.LeaseKeepAlive": "/v3/lease/keepalive",
	"Auth.AuthEnable": "/v3/auth/enable", "Auth.AuthStatus": "/v3/auth/status", "Auth.Authenticate": "/v3/auth/authenticate",
	"Auth.UserAdd": "/v3/auth/user/add", "Auth.UserGet": "/v3/auth/user/get", "Auth.UserDelete": "/v3/auth/user/delete",
	"Auth.UserChangePassword": "/v3/auth/user/changepw", "Auth.UserGrantRole": "/v3/auth/user/grant",
	"Auth.UserRevokeRole": "/v3/auth/user/revoke", "Auth.RoleAdd": "/v3/auth/role/add", "Auth.RoleGet": "/v3/auth/role/get",
	"Auth.RoleDelete": "/v3/auth/role/delete", "Auth.RoleGrantPermission": "/v3/auth/role/grant",
	"Auth.RoleRevokePermission": "/v3/auth/role/revoke",
}

// invokeJSON makes a call over the JSON gateway. What cannot be read as an answer or an error is an error with that text.
func (t *target) invokeJSON(ctx context.Context, o op, m protoreflect.MethodDescriptor, req proto.Message) ([]proto.Message, error) {
	body, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(req)
	if err != nil {
		return nil, err
	}
	call, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url(o.member)+jsonPaths[o.method], bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if md, ok := metadata.FromOutgoingContext(ctx); ok && len(md.Get("token")) > 0 {
		call.Header.Set("Authorization", md.Get("token")[0])
	}
	r, err := t.transport().RoundTrip(call)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if m.IsStreamingServer() {
		return linesOf(text, r.StatusCode, m)
	}
	if r.StatusCode != http.StatusOK {
		var refused refusal
		if json.Unmarshal(text, &refused) != nil {
			return nil, status.Errorf(codes.Unknown, "HTTP %d: %s", r.StatusCode, text)
		}
		return nil, status.Error(refused.Code, fmt.Sprintf("HTTP %d: %s", r.StatusCode, refused.Message))
	}
	answer := newMessage(m.Output())
	if err := protojson.Unmarshal(text, answer); err != nil {
		return nil, fmt.Errorf("%w: %.500s", err, text)
	}
	return []proto.Message{answer}, nil
}

// refusal is an error as the gateway writes it.
type refusal struct {
	Code    codes.Code `json:"code"`
	Message string     `json:"message"`
}

// line is one answer of a stream of the gateway, or its end.
type line struct {
	Result json.RawMessage `json:"result"`
	Error  *refusal        `json:"error"`
	refusal
}

// message reads the answer, or the error.
func (l *line) message(m proto.Message) error {
	switch {
	case l.Error != nil:
		return status.Error(l.Error.Code, l.Error.Message)
	case l.Code != codes.OK:
		return status.Error(l.Code, l.Message)
	}
	return protojson.Unmarshal(l.Result, m)
}

// linesOf are the answers of a stream that has ended.
func linesOf(text []byte, httpStatus int, m protoreflect.MethodDescriptor) ([]proto.Message, error) {
	var answers []proto.Message
	for lines := json.NewDecoder(bytes.NewReader(text)); ; {
		var l line
		err := lines.Decode(&l)
		if errors.Is(err, io.EOF) {
			return answers, nil
		}
		if err != nil {
			return answers, status.Errorf(codes.Unknown, "HTTP %d: %v: %.500s", httpStatus, err, text)
		}
		answer := newMessage(m.Output())
		if err := l.message(answer); err != nil {
			return answers, status.Error(status.Code(err), fmt.Sprintf("HTTP %d: %s", httpStatus, status.Convert(err).Message()))
		}
		answers = append(answers, answer)
	}
}

// watchConn carries the messages of a watch stream.
type watchConn interface {
	Send(*pb.WatchRequest) error
	Recv() (*pb.WatchResponse, error)
}

// socketWatch is a watch stream over a websocket.
type socketWatch struct{ *websocket.Conn }

func (t *target) openSocketWatch(ctx context.Context, member int, token string) (watchConn, error) {
	header := http.Header{}
	if token != "" {
		header.Set("Sec-Websocket-Protocol", "Bearer, "+token)
	}
	conn, r, err := t.socket(member, "/v3/watch", header)
	if err != nil {
		if r != nil {
			err = fmt.Errorf("%w: HTTP %d", err, r.StatusCode)
		}
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	return socketWatch{conn}, conn.SetReadDeadline(time.Time{})
}

// Send sends a message of text.
func (s socketWatch) Send(r *pb.WatchRequest) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(r)
	if err != nil {
		return err
	}
	return s.WriteMessage(websocket.TextMessage, b)
}

// Recv reads one.
func (s socketWatch) Recv() (*pb.WatchResponse, error) {
	_, b, err := s.ReadMessage()
	if err != nil {
		return nil, err
	}
	var l line
	if err := json.Unmarshal(b, &l); err != nil {
		return nil, fmt.Errorf("%w: %.500s", err, b)
	}
	answer := &pb.WatchResponse{}
	return answer, l.message(answer)
}

// bodyWatch is a watch stream that is one HTTP call: its request is what is sent first.
type bodyWatch struct {
	ctx      context.Context
	target   *target
	member   int
	token    string
	answered chan *http.Response // one, when it begins
	lines    *json.Decoder       // of Recv
}

func (t *target) openBodyWatch(ctx context.Context, member int, token string) watchConn {
	return &bodyWatch{ctx: ctx, target: t, member: member, token: token, answered: make(chan *http.Response, 1)}
}

// Send makes the call. A second one never comes.
func (s *bodyWatch) Send(r *pb.WatchRequest) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(r)
	if err != nil {
		return err
	}
	call, err := http.NewRequestWithContext(s.ctx, http.MethodPost, s.target.url(s.member)+"/v3/watch", bytes.NewReader(b))
	if err != nil {
		return err
	}
	if s.token != "" {
		call.Header.Set("Authorization", s.token)
	}
	answer, err := s.target.transport().RoundTrip(call)
	if err != nil {
		return err
	}
	s.answered <- answer
	return nil
}

// Recv reads a line.
func (s *bodyWatch) Recv() (*pb.WatchResponse, error) {
	if s.lines == nil {
		select {
		case r := <-s.answered:
			context.AfterFunc(s.ctx, func() { _ = r.Body.Close() })
			s.lines = json.NewDecoder(r.Body)
		case <-s.ctx.Done():
			return nil, s.ctx.Err()
		}
	}
	var l line
	if err := s.lines.Decode(&l); err != nil {
		return nil, err
	}
	answer := &pb.WatchResponse{}
	return answer, l.message(answer)
}
