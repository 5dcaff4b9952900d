package rpc

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/watch"
)

// WatchStream is the stream of Watch.Watch as its front door hands it over. Recv returns io.EOF when the client has
// closed its side, and another error when the stream is broken. Send takes WatchResponses in their wire form, which are the
// caller's again when it returns.
type WatchStream interface {
	Recv() (*pb.WatchRequest, error)
	Send([]Answer) error
}

// Watch serves one stream of watchers until the client ends it or ctx, which must come from StreamContext, ends. A client
// that closes its side only goes on being served. Everything is sent from the goroutine of this call; another one
// receives, which may outlive the call until the front door ends the stream, and that it does when this call returns.
func (s *Services) Watch(ctx context.Context, stream WatchStream) error {
	ctx, over := s.untilDrain(ctx)
	defer over()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := s.b.Hub().NewStream()
	defer w.Close()
	g := s.newGuard(ctx, w)
	defer g.close()
	go func() {
		if err := receiveWatch(ctx, w, g, stream); err != nil {
			cancel(err)
		}
	}()
	var seen mark
	for {
		b, err := w.Next(ctx)
		if err != nil {
			return watchEnd(ctx, err)
		}
		out := bursts.Get().(*burst)
		for ok := true; ok; {
			gone := false // a watcher that has just ended
			if now := s.authMark(); now != seen {
				g.recheck()
				seen = now
				gone = b.Kind == watch.Events && !w.Watching(b.ID)
			}
			if b.Kind == watch.Canceled || b.Kind == watch.Compacted {
				g.spans.end(b.ID)
			}
			if !gone {
				out.add(s, &b)
			}
			if ok = !out.full(); ok {
				b, ok, err = w.Ready()
			}
		}
		if failed := s.sendBurst(out, stream); failed != nil {
			if ctx.Err() == nil {
				s.m.StreamFailures.WithLabelValues("send", "watch").Inc()
			}
			err = failed
		}
		if err != nil {
			return watchEnd(ctx, err)
		}
	}
}

// watchEnd is what a stream answers that ended by err or by its context.
func watchEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if errors.Is(err, context.Canceled) {
		return rpctypes.ErrGRPCWatchCanceled
	}
	return toStatus(err)
}

// receiveWatch takes the client's requests until it closes its side, which is no error.
func receiveWatch(ctx context.Context, w *watch.Stream, g *guard, stream WatchStream) error {
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch u := r.RequestUnion.(type) {
		case *pb.WatchRequest_CreateRequest:
			if u.CreateRequest != nil {
				err = g.create(ctx, u.CreateRequest)
			}
		case *pb.WatchRequest_CancelRequest:
			if u.CancelRequest != nil {
				err = w.Cancel(ctx, u.CancelRequest.WatchId)
			}
		case *pb.WatchRequest_ProgressRequest:
			if u.ProgressRequest != nil {
				w.RequestProgress()
			}
		}
		if err != nil {
			return err
		}
	}
}

func createOptions(r *pb.WatchCreateRequest) watch.CreateOptions {
	o := watch.CreateOptions{
		ID:             r.WatchId,
		Range:          kv.Range{Key: r.Key, End: r.RangeEnd},
		StartRevision:  r.StartRevision,
		PrevKV:         r.PrevKv,
		ProgressNotify: r.ProgressNotify,
		Fragment:       r.Fragment,
	}
	for _, f := range r.Filters {
		switch f {
		case pb.WatchCreateRequest_NOPUT:
			o.NoPut = true
		case pb.WatchCreateRequest_NODELETE:
			o.NoDelete = true
		}
	}
	return o
}
