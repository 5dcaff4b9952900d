package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// jsonPaths are where the gateway has the calls that scripts may make in JSON.
var jsonPaths = map[string]string{
	"KV.Range": "/v3/kv/range", "KV.Put": "/v3/kv/put", "KV.DeleteRange": "/v3/kv/deleterange", "KV.Txn": "/v3/kv/txn",
	"KV.Compact": "/v3/kv/compaction", "Lease.LeaseGrant": "/v3/lease/grant", "Lease.LeaseRevoke": "/v3/lease/revoke",
	"Lease.LeaseTimeToLive": "/v3/lease/timetolive", "Lease.LeaseLeases": "/v3/lease/leases",
	"Maintenance.HashKV": "/v3/maintenance/hashkv", "Maintenance.Status": "/v3/maintenance/status",
	"Cluster.MemberList": "/v3/cluster/member/list",
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
	var refusal struct {
		Code    codes.Code `json:"code"`
		Message string     `json:"message"`
	}
	if r.StatusCode != http.StatusOK {
		if json.Unmarshal(text, &refusal) != nil {
			return nil, status.Errorf(codes.Unknown, "HTTP %d: %s", r.StatusCode, text)
		}
		return nil, status.Error(refusal.Code, fmt.Sprintf("HTTP %d: %s", r.StatusCode, refusal.Message))
	}
	answer := newMessage(m.Output())
	if err := protojson.Unmarshal(text, answer); err != nil {
		return nil, fmt.Errorf("%w: %.500s", err, text)
	}
	return []proto.Message{answer}, nil
}
