package proxy

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// passToken hands a client's token on with a stream: etcd's services leave it in the context for some, and for the others
// it is in the metadata of the client's own stream.
func passToken(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	t, ok := ctx.Value(rpctypes.TokenFieldNameGRPCKey{}).(string)
	if !ok {
		t = token(ctx)
	}
	if t != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, t)
	}
	return streamer(ctx, desc, conn, method, opts...)
}

// coded gives an error the code that a member gave it: etcd's client makes errors of its own, which grpc does not know.
func coded(err error) error {
	var e rpctypes.EtcdError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return status.Error(e.Code(), e.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	return err
}

func codedUnary(ctx context.Context, r any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	a, err := next(ctx, r)
	return a, coded(err)
}

func codedStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return coded(next(srv, stream))
}

// calls counts the unary calls under way.
type calls struct {
	mu    sync.Mutex
	n     int
	empty chan struct{} // closed when n is 0; nil while nobody waits
}

func (c *calls) unary(ctx context.Context, r any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	c.mu.Lock()
	c.n++
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.n--; c.n == 0 && c.empty != nil {
			close(c.empty)
			c.empty = nil
		}
	}()
	return next(ctx, r)
}

// drain waits until no call is under way.
func (c *calls) drain(within time.Duration) {
	c.mu.Lock()
	if c.n == 0 {
		c.mu.Unlock()
		return
	}
	empty := make(chan struct{})
	c.empty = empty
	c.mu.Unlock()
	select {
	case <-empty:
	case <-time.After(within):
	}
}

// contentLog tells the log of every message, but for those that may hold passwords or tokens.
type contentLog struct{ log *slog.Logger }

// maxContent bounds what the log shows of a message.
const maxContent = 4096

func (l contentLog) note(ctx context.Context, method, what string, m any, err error) {
	content := ""
	if p, ok := m.(proto.Message); ok {
		switch {
		case err != nil:
		case strings.HasPrefix(method, "/etcdserverpb.Auth/"):
			content = "(not shown)"
		default:
			content = protojson.Format(p)
			content = strings.Join(strings.Fields(content), " ")
		}
	}
	if len(content) > maxContent {
		content = content[:maxContent] + "…"
	}
	args := []any{"grpc." + what + ".content", content}
	i := strings.LastIndexByte(method, '/')
	args = append(args, "grpc.service", strings.TrimPrefix(method[:max(i, 0)], "/"), "grpc.method", method[i+1:])
	if p, ok := peer.FromContext(ctx); ok {
		args = append(args, "peer.address", p.Addr.String())
	}
	if err != nil {
		args = append(args, "grpc."+what+".error", err)
	}
	l.log.Info("grpc "+what, args...)
}

func (l contentLog) unary(ctx context.Context, r any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	l.note(ctx, info.FullMethod, "request", r, nil)
	a, err := next(ctx, r)
	l.note(ctx, info.FullMethod, "response", a, err)
	return a, err
}

func (l contentLog) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return next(srv, loggedStream{stream, l, info.FullMethod})
}

type loggedStream struct {
	grpc.ServerStream
	log    contentLog
	method string
}

func (s loggedStream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	s.log.note(s.Context(), s.method, "request", m, err)
	return err
}

func (s loggedStream) SendMsg(m any) error {
	err := s.ServerStream.SendMsg(m)
	s.log.note(s.Context(), s.method, "response", m, err)
	return err
}
