package gateway

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"
)

// goAwayLead is how long clients that speak gRPC are given to learn that they are to go elsewhere before their watches are
// ended, so that they do not come back here with them. One that does come back is told again, and loses nothing but time.
const goAwayLead = 10 * time.Millisecond

// keepAliveLead is how long connections of HTTP/1 that are kept alive are given to make one more request, whose answer tells
// the client to close it. There is no other way to tell: a request that meets a connection as the server closes it has failed for
// the client, which cannot know whether it was done. Whoever is silent for so long is closed without a word.
const keepAliveLead = 250 * time.Millisecond

// Stop ends the server and its Services, in an order in which a client that knows other members notices nothing: no more
// connections are taken; clients of gRPC are told to make their next calls elsewhere (GOAWAY), and those of HTTP/1 by the answer to
// their next request; calls that would go on for ever end; all others go on to their end. What has not ended when ctx
// ends is broken off.
func (s *Server) Stop(ctx context.Context) {
	s.leaving.Store(true)
	for _, sp := range s.splitters {
		sp.leave()
	}
	var draining sync.WaitGroup
	draining.Go(s.grpc.GracefulStop)
	draining.Go(func() { _ = s.monitor.Shutdown(ctx) })
	for begun := time.Now(); s.keptAlive.Load() > 0 && time.Since(begun) < keepAliveLead && ctx.Err() == nil; {
		wait(ctx, time.Millisecond)
	}
	for _, sp := range s.splitters {
		sp.close()
	}
	draining.Go(func() {
		_ = s.http.Shutdown(ctx)
		s.awaitSockets(ctx)
	})
	wait(ctx, goAwayLead)
	s.o.Services.Drain()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		draining.Wait()
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		s.o.Logger.Warn("breaking off calls that have not ended in time")
	}
	s.o.Services.Stop()
	s.end()
	_ = s.http.Close()
	_ = s.monitor.Close()
	s.grpc.Stop()
	s.inner.Stop()
	<-ended
	if s.conn != nil {
		_ = s.conn.Close()
	}
	s.loops.Wait()
}

// countKept counts the connections of HTTP/1.
func (s *Server) countKept(c net.Conn, state http.ConnState) {
	if t, ok := c.(*tls.Conn); ok && t.ConnectionState().NegotiatedProtocol == "h2" {
		return // is sent a GOAWAY
	}
	switch state {
	case http.StateNew:
		s.keptAlive.Add(1)
	case http.StateClosed, http.StateHijacked:
		s.keptAlive.Add(-1)
	}
}

// sendAway tells clients of HTTP/1 to close their connections, while the server is about to stop.
func (s *Server) sendAway(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 1 && s.leaving.Load() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// awaitSockets waits until no websocket is left, or ctx ends. The http server does not know them any more.
func (s *Server) awaitSockets(ctx context.Context) {
	for s.sockets.Load() > 0 && ctx.Err() == nil {
		wait(ctx, 10*time.Millisecond)
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
