// Package collector is an OpenTelemetry collector for tests: it takes spans over OTLP and keeps all of them.
package collector

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	otlp "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// Span is one span as it came. Ids are in hexadecimal; attributes are text whatever they were.
type Span struct {
	Name, Scope, Kind string
	Trace, ID, Parent string // Parent is empty for the first of a trace
	Attributes        map[string]string
	Resource          map[string]string
	Events            []string // their names, in order
	Status            string
}

// Collector keeps the spans that come to Address.
type Collector struct {
	Address string

	otlp.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []Span
	more  chan struct{} // closed and replaced when spans come
}

// Start listens on a free port of loopback until the test ends.
func Start(t testing.TB) *Collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &Collector{Address: l.Addr().String(), more: make(chan struct{})}
	s := grpc.NewServer()
	otlp.RegisterTraceServiceServer(s, c)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return c
}

// Export is what members call.
func (c *Collector) Export(_ context.Context, r *otlp.ExportTraceServiceRequest) (*otlp.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, of := range r.ResourceSpans {
		resource := text(of.Resource.GetAttributes())
		for _, scope := range of.ScopeSpans {
			for _, s := range scope.Spans {
				c.spans = append(c.spans, read(s, scope.Scope.GetName(), resource))
			}
		}
	}
	close(c.more)
	c.more = make(chan struct{})
	return &otlp.ExportTraceServiceResponse{}, nil
}

func read(s *tracepb.Span, scope string, resource map[string]string) Span {
	out := Span{
		Name: s.Name, Scope: scope, Kind: s.Kind.String(),
		Trace: hex.EncodeToString(s.TraceId), ID: hex.EncodeToString(s.SpanId), Parent: hex.EncodeToString(s.ParentSpanId),
		Attributes: text(s.Attributes), Resource: resource, Status: s.Status.GetCode().String() + " " + s.Status.GetMessage(),
	}
	for _, e := range s.Events {
		out.Events = append(out.Events, e.Name)
	}
	return out
}

func text(attributes []*common.KeyValue) map[string]string {
	out := make(map[string]string, len(attributes))
	for _, a := range attributes {
		switch v := a.Value.GetValue().(type) {
		case *common.AnyValue_StringValue:
			out[a.Key] = v.StringValue
		case *common.AnyValue_BoolValue:
			out[a.Key] = fmt.Sprint(v.BoolValue)
		case *common.AnyValue_IntValue:
			out[a.Key] = fmt.Sprint(v.IntValue)
		default:
			out[a.Key] = a.Value.String()
		}
	}
	return out
}

// Spans are those that have come so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Wait returns the spans that have come, once enough says that those are all.
func (c *Collector) Wait(within time.Duration, enough func([]Span) bool) ([]Span, error) {
	deadline := time.After(within)
	for {
		c.mu.Lock()
		spans, more := slices.Clone(c.spans), c.more
		c.mu.Unlock()
		if enough(spans) {
			return spans, nil
		}
		select {
		case <-more:
		case <-deadline:
			return spans, fmt.Errorf("%d spans came within %v, and they are not enough", len(spans), within)
		}
	}
}
