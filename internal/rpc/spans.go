package rpc

import (
	"context"
	"strings"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/watch"
)

// This file is what a trace shows of a request: one span each, with etcd's names and attributes. Without a tracer a request
// pays for two comparisons.

// maxSpanText bounds what a span holds of a key: spans wait in memory until the collector takes them.
const maxSpanText = 4 << 10

// spanText is a key as an attribute, which must be UTF-8: one that is not would cost the whole batch of spans.
func spanText(key []byte) string {
	return strings.ToValidUTF8(string(key[:min(len(key), maxSpanText)]), "\uFFFD")
}

// noSpan is every span of a member that does not trace.
var noSpan trace.Span = noop.Span{}

// span begins the span of a request. Whoever calls it ends the span.
func (s *Services) span(ctx context.Context, r any) (context.Context, trace.Span) {
	if s.o.Tracer == nil {
		return ctx, noSpan
	}
	name, attributes := describeSpan(r)
	return s.o.Tracer.Start(ctx, name, trace.WithAttributes(attributes...))
}

// spanOf is the span that a request is in.
func (s *Services) spanOf(ctx context.Context) trace.Span {
	if s.o.Tracer == nil {
		return noSpan
	}
	return trace.SpanFromContext(ctx)
}

// streamed is a RangeRequest of RangeStream.
type streamed struct{ *pb.RangeRequest }

func describeSpan(r any) (string, []attribute.KeyValue) {
	switch r := r.(type) {
	case *pb.RangeRequest:
		return "range", append(rangeAttributes(r), attribute.Bool("keys_only", r.KeysOnly))
	case streamed:
		return "range_streaming", rangeAttributes(r.RangeRequest)
	case *pb.PutRequest:
		return "put", []attribute.KeyValue{attribute.String("key", spanText(r.Key))}
	case *pb.DeleteRangeRequest:
		return "delete_range", []attribute.KeyValue{
			attribute.String("range_begin", spanText(r.Key)), attribute.String("range_end", spanText(r.RangeEnd)),
		}
	case *pb.TxnRequest:
		return "txn", txnAttributes(r)
	case *pb.CompactionRequest:
		return "compact", []attribute.KeyValue{attribute.Bool("is_physical", r.Physical), attribute.Int64("rev", r.Revision)}
	case *pb.LeaseGrantRequest:
		return "lease_grant", []attribute.KeyValue{attribute.Int64("id", r.ID), attribute.Int64("ttl", r.TTL)}
	case *pb.LeaseRevokeRequest:
		return "lease_revoke", []attribute.KeyValue{attribute.Int64("id", r.ID)}
	case *pb.LeaseKeepAliveRequest:
		return "lease_renew", []attribute.KeyValue{attribute.Int64("id", r.ID)}
	case *pb.WatchCreateRequest:
		key, end := r.Key, r.RangeEnd
		if len(key) == 0 {
			key = []byte{0}
		}
		if len(end) == 1 && end[0] == 0 {
			end = nil
		}
		return "watch", []attribute.KeyValue{
			attribute.String("key", spanText(key)), attribute.String("range_end", spanText(end)),
			attribute.Int64("start_rev", r.StartRevision), attribute.Bool("progress_notify", r.ProgressNotify),
			attribute.Bool("prev_kv", r.PrevKv), attribute.Bool("fragment", r.Fragment),
		}
	}
	panic("rpc: a span of something that has none")
}

func rangeAttributes(r *pb.RangeRequest) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("range_begin", spanText(r.Key)), attribute.String("range_end", spanText(r.RangeEnd)),
		attribute.Int64("rev", r.Revision), attribute.Int64("limit", r.Limit), attribute.Bool("count_only", r.CountOnly),
	}
}

// txnAttributes tells of a transaction what its first conditions and operations are about.
func txnAttributes(r *pb.TxnRequest) []attribute.KeyValue {
	var compared, key []byte
	for _, c := range r.Compare {
		if compared = c.GetKey(); len(compared) > 0 {
			break
		}
	}
	first, lease := "", int64(-1) // of a put, once there was one
	for _, op := range r.Success {
		kind, of := describeOp(op)
		if first == "" {
			first = kind
		}
		if len(key) == 0 {
			key = of
		}
		if p := op.GetRequestPut(); p != nil && lease == -1 {
			lease = p.Lease
		}
	}
	return []attribute.KeyValue{
		attribute.String("compare_first_key", spanText(compared)), attribute.String("success_first_key", spanText(key)),
		attribute.String("success_first_type", first), attribute.Int64("success_first_lease", lease),
		attribute.Int("compare_len", len(r.Compare)), attribute.Int("success_len", len(r.Success)),
		attribute.Int("failure_len", len(r.Failure)), attribute.Bool("read_only", fsm.ReadOnly(txnCommand(r))),
	}
}

// describeOp is empty for an operation that is missing.
func describeOp(op *pb.RequestOp) (kind string, key []byte) {
	switch v := op.GetRequest().(type) {
	case *pb.RequestOp_RequestPut:
		return "put", v.RequestPut.GetKey()
	case *pb.RequestOp_RequestRange:
		return "range", v.RequestRange.GetKey()
	case *pb.RequestOp_RequestDeleteRange:
		return "delete_range", v.RequestDeleteRange.GetKey()
	case *pb.RequestOp_RequestTxn:
		return "txn", nil
	}
	return "", nil
}

// watcherSpans are the spans of one stream's watchers. They begin in the goroutine that receives and end in the one that
// sends, at the latest with the stream.
type watcherSpans struct {
	mu   sync.Mutex
	open map[int64]trace.Span // by watcher; as many as the stream has
	done bool
}

// add keeps the span of a watcher that was made. One that was refused has none, as in etcd.
func (w *watcherSpans) add(id int64, span trace.Span, stream *watch.Stream) {
	if id == watch.InvalidID {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done || !stream.Watching(id) { // it may have ended already
		span.End()
		return
	}
	if w.open == nil {
		w.open = make(map[int64]trace.Span)
	}
	w.open[id] = span
}

func (w *watcherSpans) end(id int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if span := w.open[id]; span != nil {
		span.End()
		delete(w.open, id)
	}
}

func (w *watcherSpans) endAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = true
	for _, span := range w.open {
		span.End()
	}
	w.open = nil
}
