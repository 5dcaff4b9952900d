package tracing_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/trivet-kv/trivet/internal/tracing"
	"github.com/trivet-kv/trivet/test/collector"
)

func start(t *testing.T, o tracing.Options) *tracing.Exporter {
	t.Helper()
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	e, err := tracing.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// caller is the context of a call whose caller has begun a trace, and sampled it or not.
func caller(sampled trace.TraceFlags) context.Context {
	return trace.ContextWithRemoteSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: sampled, Remote: true,
	}))
}

// What reaches a collector by the time of Stop: the caller decides about its traces, the rate about those that begin here.
func TestSampling(t *testing.T) {
	for _, x := range []struct {
		perMillion int
		want       string
	}{
		{0, "sampled caller"},
		{tracing.Million, "no caller, sampled caller"},
	} {
		c := collector.Start(t)
		e := start(t, tracing.Options{Address: c.Address, ServiceName: "keys", InstanceID: "one", PerMillion: x.perMillion})
		for name, ctx := range map[string]context.Context{
			"no caller": context.Background(), "sampled caller": caller(trace.FlagsSampled), "unsampled caller": caller(0),
		} {
			_, span := e.Tracer().Start(ctx, name)
			span.End()
		}
		if err := e.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := map[string]collector.Span{}
		for _, s := range c.Spans() {
			got[s.Name] = s
		}
		if len(got) != strings.Count(x.want, ",")+1 {
			t.Errorf("%d: %d spans came", x.perMillion, len(got))
		}
		for _, name := range strings.Split(x.want, ", ") {
			s, ok := got[name]
			if !ok || s.Scope != tracing.Scope || s.Resource["service.name"] != "keys" || s.Resource["service.instance.id"] != "one" {
				t.Errorf("%d: %s: %+v", x.perMillion, name, s)
			}
		}
		if s := got["sampled caller"]; s.Trace != "01000000000000000000000000000000" || s.Parent != "0200000000000000" {
			t.Errorf("the caller's span is not the parent: %+v", s)
		}
	}
}

// A collector that is away holds up nobody: neither those who make more spans than wait, nor the stop.
func TestCollectorAway(t *testing.T) {
	e := start(t, tracing.Options{Address: "127.0.0.1:1", PerMillion: tracing.Million})
	for range 10_000 {
		_, span := e.Tracer().Start(context.Background(), "x")
		span.End()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- e.Stop(ctx) }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("spans that nobody took were taken for sent")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("Stop waits for the collector")
	}
}

func TestBadAddress(t *testing.T) {
	if _, err := tracing.Start(tracing.Options{Address: "%zz", Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("an address that is none was taken")
	}
}

// Nobody asks whether spans are sent.
func TestNone(t *testing.T) {
	var e *tracing.Exporter
	if e.Tracer() != nil || e.Handler() != nil || e.Stop(t.Context()) != nil {
		t.Error("a nil Exporter does something")
	}
}
