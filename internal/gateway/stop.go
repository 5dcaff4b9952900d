package gateway

import (
	"context"
	"sync"
	"time"
)

// goAwayLead is how long clients that speak gRPC are given to learn that they are to go elsewhere before their watches are
// ended, so that they do not come back here with them. One that does come back is told again, and loses nothing but time.
const goAwayLead = 10 * time.Millisecond

// Stop ends the server and its Services, in an order in which a client that knows other members notices nothing: no more
// connections are taken; clients of gRPC are told to make their next calls elsewhere (GOAWAY), and connections of HTTP/1 are
// closed as they fall idle; calls that would go on for ever end; all others go on to their end. What has not ended when ctx
// ends is broken off.
func (s *Server) Stop(ctx context.Context) {
	for _, sp := range s.splitters {
		sp.close()
	}
	var draining sync.WaitGroup
	draining.Go(s.grpc.GracefulStop)
	draining.Go(func() { _ = s.monitor.Shutdown(ctx) })
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
	s.done.Wait()
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
