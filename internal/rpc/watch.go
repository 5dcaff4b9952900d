package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/watch"
)

// WatchStream is the stream of Watch.Watch as its front door hands it over. Recv returns io.EOF when the client has
// closed its side, and another error when the stream is broken. Send takes the wire form of a WatchResponse.
type WatchStream interface {
	Recv() (*pb.WatchRequest, error)
	Send(*Answer) error
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
		if now := s.authMark(); now != seen {
			g.recheck()
			seen = now
			if b.Kind == watch.Events && !w.Watching(b.ID) {
				continue // of a watcher that has just ended
			}
		}
		begin := time.Now()
		if b.Kind == watch.Canceled || b.Kind == watch.Compacted {
			g.spans.end(b.ID)
		}
		if err := s.sendBatch(&b, stream.Send); err != nil {
			if ctx.Err() == nil {
				s.m.StreamFailures.WithLabelValues("send", "watch").Inc()
			}
			return watchEnd(ctx, err)
		}
		switch took := time.Since(begin).Seconds(); {
		case len(b.Events) > 0:
			s.m.Events.Add(float64(len(b.Events)))
			s.m.WatchSendSeconds.Observe(took)
			s.m.WatchSendPerEventSeconds.Observe(took / float64(len(b.Events)))
		case b.Kind == watch.Progress:
			s.m.WatchProgressSeconds.Observe(took)
		default:
			s.m.WatchControlSeconds.Observe(took)
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

// sendBatch sends one batch: in one answer, or in fragments if the watcher allows them and the answer is longer than a
// message of a client may be.
func (s *Services) sendBatch(b *watch.Batch, send func(*Answer) error) error {
	var head [2*maxHeaderBytes + 64]byte
	prefix := appendHeader(head[:0], s.b.Header(), b.Revision)
	prefix = appendVarint(prefix, watchID, uint64(b.ID))
	switch b.Kind {
	case watch.Events:
		return s.sendEvents(prefix, b, send)
	case watch.Created:
		prefix = appendBool(prefix, watchCreated, true)
	case watch.Refused:
		prefix = appendBool(prefix, watchCreated, true)
		prefix = appendBool(prefix, watchCanceled, true)
		prefix = appendBytes(prefix, watchReason, []byte(refusal(b.Err)))
	case watch.Canceled:
		prefix = appendBool(prefix, watchCanceled, true)
		if b.Err != nil {
			prefix = appendBytes(prefix, watchReason, []byte(refusal(b.Err)))
		}
	case watch.Compacted:
		prefix = appendBool(prefix, watchCanceled, true)
		prefix = appendVarint(prefix, watchCompact, uint64(b.CompactRevision))
	case watch.Progress:
	default:
		panic(fmt.Sprintf("rpc: a watch batch of kind %d", b.Kind))
	}
	return send(&Answer{Buffers: mem.BufferSlice{mem.SliceBuffer(append([]byte(nil), prefix...))}})
}

// refusal is the reason that etcd gives for a watcher that it does not make.
func refusal(err error) string {
	if _, ok := err.(watchRefusal); ok || errors.Is(err, watch.ErrEmptyRange) || errors.Is(err, watch.ErrDuplicateID) {
		return err.Error()
	}
	return Text(err)
}

// inlineBytes is the length up to which the events of an answer are copied behind its header; longer ones are sent from
// the buffers that all watchers share.
const inlineBytes = 4 << 10

func (s *Services) sendEvents(prefix []byte, b *watch.Batch, send func(*Answer) error) error {
	limit := s.o.MaxRequestBytes + grpcOverheadBytes
	events := b.Events
	for len(events) > 0 {
		n, size := 0, len(prefix)
		for n < len(events) {
			e := len(events[n].Wire(b.PrevKV, encodeEvent))
			if b.Fragment && n > 0 && size+e >= limit {
				break
			}
			n, size = n+1, size+e
		}
		if err := send(eventsAnswer(prefix, events[:n], b.PrevKV, size, n < len(events))); err != nil {
			return err
		}
		events = events[n:]
	}
	return nil
}

// eventsAnswer makes one answer of size bytes, of which prefix is the beginning.
func eventsAnswer(prefix []byte, events []*watch.Event, prevKV bool, size int, more bool) *Answer {
	inline := size <= inlineBytes
	room := len(prefix) + 2
	if inline {
		room = size + 2
	}
	head := append(make([]byte, 0, room), prefix...)
	head = appendBool(head, watchFragment, more)
	if inline {
		for _, e := range events {
			head = append(head, e.Wire(prevKV, encodeEvent)...)
		}
		return &Answer{Buffers: mem.BufferSlice{mem.SliceBuffer(head)}}
	}
	out := make(mem.BufferSlice, 0, 1+len(events))
	out = append(out, mem.SliceBuffer(head))
	for _, e := range events {
		out = append(out, mem.SliceBuffer(e.Wire(prevKV, encodeEvent)))
	}
	return &Answer{Buffers: out}
}

// encodeEvent appends an event as the field events of a WatchResponse. It is what package watch keeps with the event.
func encodeEvent(dst []byte, e *watch.Event, prev *kv.KeyValue) []byte {
	body := sizeVarint(eventType, uint64(e.Type)) + sizeMessage(eventKV, sizeKeyValue(&e.KV))
	if prev != nil {
		body += sizeMessage(eventPrev, sizeKeyValue(prev))
	}
	dst = protowire.AppendTag(dst, watchEvents, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(body))
	dst = appendVarint(dst, eventType, uint64(e.Type))
	dst = appendKeyValue(dst, eventKV, &e.KV)
	if prev != nil {
		dst = appendKeyValue(dst, eventPrev, prev)
	}
	return dst
}

// sizeMessage is the size of a field that holds a message of n bytes; unlike bytes, an empty one is there.
func sizeMessage(field protowire.Number, n int) int {
	return protowire.SizeTag(field) + protowire.SizeBytes(n)
}
