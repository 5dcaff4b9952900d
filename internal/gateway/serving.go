package gateway

import (
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// Loops are the accept loops of one server. NewLoops makes them.
type Loops struct {
	running sync.WaitGroup
	failed  chan error
}

// NewLoops is a server without accept loops yet.
func NewLoops() *Loops { return &Loops{failed: make(chan error, 1)} }

// Go runs one accept loop; the first that fails for another reason than the stop is reported by Failed.
func (l *Loops) Go(serve func() error) {
	l.running.Go(func() {
		err := serve()
		if err == nil || errors.Is(err, http.ErrServerClosed) || errors.Is(err, grpc.ErrServerStopped) || errors.Is(err, net.ErrClosed) {
			return
		}
		select {
		case l.failed <- fmt.Errorf("serve clients: %w", err):
		default:
		}
	})
}

// Failed tells that a listener has broken. It holds at most one error.
func (l *Loops) Failed() <-chan error { return l.failed }

// Wait waits until all loops have ended.
func (l *Loops) Wait() { l.running.Wait() }

// NewHTTPServer is a server of h for clients, who may be silent for so long before a request's header is whole, and, if they
// speak HTTP/2, have so many requests under way on a connection; 0: no bound.
func NewHTTPServer(h http.Handler, silent time.Duration, maxConcurrentStreams uint32) *http.Server {
	streams := int(min(maxConcurrentStreams, math.MaxInt32))
	if streams == 0 {
		streams = math.MaxInt32
	}
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: silent,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: streams},
		ErrorLog:          log.New(io.Discard, "", 0), // what clients do wrong is theirs to see
	}
}

// ByContent sends calls of gRPC to services, which come here over the connections of clients that can speak HTTP/1 too, and all
// else to pages.
func ByContent(services, pages http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.Contains(r.Header.Get("Content-Type"), "application/grpc") {
			services.ServeHTTP(w, r)
			return
		}
		pages.ServeHTTP(w, r)
	})
}
