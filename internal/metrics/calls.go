package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

type callVecs struct {
	started, handled, received, sent *prometheus.CounterVec
	seconds                          *prometheus.HistogramVec
}

func (m *Metrics) fillCalls() {
	labels := []string{"grpc_type", "grpc_service", "grpc_method"}
	m.calls = callVecs{
		started:  m.counterVec("grpc_server_started_total", "Calls begun.", labels...),
		handled:  m.counterVec("grpc_server_handled_total", "Calls ended, by their code.", append(labels, "grpc_code")...),
		received: m.counterVec("grpc_server_msg_received_total", "Messages received in calls.", labels...),
		sent:     m.counterVec("grpc_server_msg_sent_total", "Messages sent in calls.", labels...),
		seconds:  m.histogramVec("grpc_server_handling_seconds", "Time from the begin of a call to its end.", prometheus.DefBuckets, labels...),
	}
}

// numCodes is the number of gRPC's status codes, OK to Unauthenticated.
const numCodes = int(codes.Unauthenticated) + 1

// Call counts one gRPC method. All its series exist from the start with the value zero, as etcd's do, so that alert
// rules on rates see the first failure too.
type Call struct {
	Started, Received, Sent prometheus.Counter

	handled [numCodes]prometheus.Counter
	seconds prometheus.Observer
}

// Call makes the series of one method; kind is unary, server_stream or bidi_stream.
func (m *Metrics) Call(kind, service, method string) *Call {
	c := &Call{
		Started:  m.calls.started.WithLabelValues(kind, service, method),
		Received: m.calls.received.WithLabelValues(kind, service, method),
		Sent:     m.calls.sent.WithLabelValues(kind, service, method),
		seconds:  m.calls.seconds.WithLabelValues(kind, service, method),
	}
	for i := range c.handled {
		c.handled[i] = m.calls.handled.WithLabelValues(kind, service, method, codes.Code(i).String())
	}
	return c
}

// Handled counts the end of a call.
func (c *Call) Handled(code codes.Code, took time.Duration) {
	if int(code) >= numCodes {
		code = codes.Unknown
	}
	c.handled[code].Inc()
	c.seconds.Observe(took.Seconds())
}
