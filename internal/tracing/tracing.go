// Package tracing sends spans to an OpenTelemetry collector: OTLP over gRPC without TLS, in batches, from one goroutine.
// It owns the connection, the sampler and the resource that spans are of. It never holds a call up: a span that finds the
// queue full is dropped, and a collector that is away costs nothing but those. What a span is about is package rpc's
// business, which gets the Tracer, and grpc-go's, which gets the Handler.
//
// Everything that a collector sees is etcd's: names, the scope, the resource and who decides what is sampled. Like there,
// the variables OTEL_EXPORTER_OTLP_*, OTEL_BSP_* and OTEL_RESOURCE_ATTRIBUTES are read by the library.
package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.40.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/stats"
)

// Scope is the instrumentation scope of the spans that a member makes: etcd's, since collectors filter by it.
const Scope = "go.etcd.io/etcd"

// Million is the rate at which every trace is sampled.
const Million = 1_000_000

// Options says where spans go and which.
type Options struct {
	Address     string // of the collector: HOST:PORT, or a target of grpc-go
	ServiceName string
	InstanceID  string // empty: none
	// PerMillion is how many of a million traces are sampled that begin here. A trace that a caller has begun is sampled if
	// the caller says so. 0: those alone.
	PerMillion int
	Logger     *slog.Logger // told of spans that were not taken
}

// Exporter sends spans until Stop. A nil one sends none.
type Exporter struct {
	provider *sdk.TracerProvider
	handler  stats.Handler
}

// Start makes the exporter. It connects when the first spans go out, so that a collector may come later. The libraries'
// complaints, which are one for the process, go to the Logger from then on.
func Start(o Options) (*Exporter, error) {
	ctx := context.Background()
	out, err := otlptracegrpc.New(ctx, otlptracegrpc.WithInsecure(), otlptracegrpc.WithEndpoint(o.Address))
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	attributes := []resource.Option{resource.WithAttributes(semconv.ServiceName(o.ServiceName))}
	if o.InstanceID != "" {
		attributes = append(attributes, resource.WithAttributes(semconv.ServiceInstanceID(o.InstanceID)))
	}
	of, err := resource.New(ctx, attributes...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tracing: %w", err), out.Shutdown(ctx))
	}
	sampler := sdk.NeverSample()
	if o.PerMillion > 0 {
		sampler = sdk.TraceIDRatioBased(float64(o.PerMillion) / Million)
	}
	p := sdk.NewTracerProvider(sdk.WithBatcher(out), sdk.WithResource(of), sdk.WithSampler(sdk.ParentBased(sampler)))
	otel.SetErrorHandler(&complaints{log: o.Logger})
	otel.SetLogger(logr.FromSlogHandler(o.Logger.Handler()))
	return &Exporter{provider: p, handler: otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(p),
		otelgrpc.WithPropagators(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})),
	)}, nil
}

// Tracer makes the spans of a member's own work.
func (e *Exporter) Tracer() trace.Tracer {
	if e == nil {
		return nil
	}
	return e.provider.Tracer(Scope)
}

// Handler makes one span of each call of a gRPC server, with the caller's span as its parent.
func (e *Exporter) Handler() stats.Handler {
	if e == nil {
		return nil
	}
	return e.handler
}

// Stop sends the spans that have ended, for as long as ctx lasts, and then no more.
func (e *Exporter) Stop(ctx context.Context) error {
	if e == nil {
		return nil
	}
	return e.provider.Shutdown(ctx)
}

// quiet is how long complaints are counted after one was logged.
const quiet = time.Minute

// complaints logs what goes wrong behind everybody's back, one line a minute: a collector that is away fails every batch.
type complaints struct {
	log *slog.Logger

	mu     sync.Mutex
	last   time.Time
	unsaid int
}

// Handle is called by the library.
func (c *complaints) Handle(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.last) < quiet {
		c.unsaid++
		return
	}
	c.log.Warn("sending traces failed", "error", err, "failures not logged", c.unsaid)
	c.last, c.unsaid = time.Now(), 0
}
