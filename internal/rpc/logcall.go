package rpc

import (
	"context"
	"log/slog"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
)

// Bounds on what one line of the log holds and what it costs to make.
const (
	maxLoggedContent = 4 << 10 // bytes of a request's text
	maxCountedAnswer = 1 << 20 // bytes of a range's answer; a longer one is not copied to be counted
)

// logCall writes etcd's line about one unary call, as a warning if it was slow. What a put or a transaction writes or
// compares with is left out, and of calls other than of keys, which may carry secrets, everything but their name.
func (s *Services) logCall(ctx context.Context, method string, begin time.Time, took time.Duration, req, answer any) {
	level := slog.LevelDebug
	if took > s.o.WarnSlow {
		level = slog.LevelWarn
	}
	remote := "unknown"
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		remote = p.Addr.String()
	}
	c := describeCall(req, answer)
	if len(c.content) > maxLoggedContent {
		c.content = c.content[:maxLoggedContent] + "..."
	}
	s.log.Log(ctx, level, "request stats",
		"start time", begin, "time spent", took, "remote", remote, "response type", method,
		"request count", c.requests, "request size", c.requestBytes,
		"response count", c.responses, "response size", c.responseBytes, "request content", c.content)
}

// loggedCall is what etcd tells of a call; -1 is what it does not count.
type loggedCall struct {
	requests, responses         int64
	requestBytes, responseBytes int
	content                     string
}

func describeCall(req, answer any) loggedCall {
	var size int
	a, _ := answer.(*Answer)
	if a != nil {
		size = a.Buffers.Len()
	} else if m, ok := answer.(proto.Message); ok {
		size = proto.Size(m)
	}
	switch r := req.(type) {
	case *pb.RangeRequest:
		c := loggedCall{requestBytes: proto.Size(r), responseBytes: size, content: r.String(), responses: -1}
		var out pb.RangeResponse
		if a == nil {
			c.responses = 0
		} else if size <= maxCountedAnswer && proto.Unmarshal(a.Bytes(), &out) == nil {
			c.responses = out.Count
		}
		return c
	case *pb.PutRequest:
		return loggedCall{requests: 1, requestBytes: proto.Size(r), responseBytes: size, content: pb.NewLoggablePutRequest(r).String()}
	case *pb.DeleteRangeRequest:
		c := loggedCall{requestBytes: proto.Size(r), responseBytes: size, content: r.String()}
		if out, ok := answer.(*pb.DeleteRangeResponse); ok {
			c.responses = out.Deleted
		}
		return c
	case *pb.TxnRequest:
		return loggedCall{
			requests: int64(len(r.Success) + len(r.Failure)), requestBytes: proto.Size(r), responseBytes: size,
			content: pb.NewLoggableTxnRequest(r).String(),
		}
	}
	return loggedCall{-1, -1, -1, -1, ""}
}
