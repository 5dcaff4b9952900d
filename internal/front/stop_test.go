package front_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/stats"
)

// A server that stops gracefully tells its clients, takes the calls that they sent before they heard it, lets all end and
// closes. So does grpc-go's.
func TestGracefulStop(t *testing.T) {
	for _, ours := range []bool{false, true} {
		t.Run(fmt.Sprint("ours ", ours), func(t *testing.T) {
			t.Parallel()
			s, srv, addr := start(t, ours, options{})
			r := dial(t, addr)
			r.call(1, "Hold", "under way")
			r.sync()
			stopped := make(chan struct{})
			go func() {
				srv.GracefulStop()
				close(stopped)
			}()
			r.untilNoted(0, "GOAWAY 2147483647 NO_ERROR \"graceful_stop\"")
			r.call(3, "Echo", "sent before it was heard")
			r.until(3)
			ping := r.nextPing() // which comes with the GOAWAY
			r.ok(r.fr.WritePing(true, ping))
			r.untilNoted(0, "GOAWAY 3 NO_ERROR \"graceful_stop\"")
			r.call(5, "Echo", "sent too late")
			select {
			case <-stopped:
				t.Error("the stop did not wait for a call")
			case <-time.After(20 * time.Millisecond):
			}
			close(s.open)
			r.until(1)
			_ = r.conn.Close()
			<-stopped
			if got := r.String(); strings.Contains(got, "-- 5") || !strings.Contains(got, "sent before") {
				t.Errorf("it said:\n%s", got)
			}
		})
	}
}

// nextPing returns the last ping of the server.
func (r *raw) nextPing() [8]byte {
	r.t.Helper()
	for !r.pinged {
		if !r.one() {
			r.t.Fatal("the connection ended before a ping")
		}
	}
	return r.ping
}

// An idle connection is closed by a graceful stop even if its client does not close it, and says nothing.
func TestGracefulStopOfSilence(t *testing.T) {
	_, srv, addr := start(t, true, options{})
	r := dial(t, addr)
	r.call(1, "Echo", "x")
	r.until(1)
	stopped := make(chan struct{})
	go func() {
		srv.GracefulStop()
		close(stopped)
	}()
	r.ok(r.fr.WritePing(true, r.nextPing()))
	r.untilEOF()
	<-stopped
	if got := r.String(); !strings.Contains(got, "GOAWAY 1 NO_ERROR") {
		t.Errorf("it said:\n%s", got)
	}
}

// Stop breaks calls off, a graceful stop that waits for them too.
func TestStop(t *testing.T) {
	s, srv, addr := start(t, true, options{})
	r := dial(t, addr)
	r.call(1, "Begun", "x")
	r.headers(3, false, fields("Bidi")...)
	r.untilNoted(1, "HEADERS")
	stopped := make(chan struct{})
	go func() {
		srv.GracefulStop()
		close(stopped)
	}()
	r.untilNoted(0, "GOAWAY")
	srv.Stop()
	<-stopped
	if err := s.waited(t, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("the context ended with %v", err)
	}
	r.untilEOF()
}

// A client that sends no sign of life is let go; one that answers pings stays.
func TestKeepalive(t *testing.T) {
	t.Parallel()
	s, _, addr := start(t, true, options{interval: time.Second, timeout: time.Second})
	r := dial(t, addr)
	r.call(1, "Begun", "silent")
	r.untilNoted(1, "HEADERS")
	if err := s.waited(t, "silent"); !errors.Is(err, context.Canceled) {
		t.Errorf("the context ended with %v", err)
	}

	s, _, addr = start(t, true, options{interval: 50 * time.Millisecond, timeout: wait})
	r = dial(t, addr)
	r.call(1, "Begun", "answers")
	r.untilNoted(1, "HEADERS")
	for range 5 {
		r.pinged = false
		r.ok(r.fr.WritePing(true, r.nextPing()))
	}
	r.call(3, "Echo", "x")
	r.until(3)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ended) > 0 {
		t.Error("the call ended")
	}
}

// More calls than a connection may have are refused, so that a client may try them again.
func TestMaxStreams(t *testing.T) {
	for _, ours := range []bool{false, true} {
		s, _, addr := start(t, ours, options{maxStreams: 2})
		r := dial(t, addr)
		r.call(1, "Hold", "")
		r.call(3, "Hold", "")
		r.call(5, "Echo", "")
		r.until(5)
		r.untilNoted(5, "RST REFUSED_STREAM")
		close(s.open)
		r.until(1, 3)
		r.call(7, "Echo", "")
		r.until(7)
		if got := string(r.body[7]); got != string(msg("")) {
			t.Errorf("ours %v: it said:\n%s", ours, r)
		}
	}
}

// tracer notes what it is told, but for times and addresses.
type tracer struct {
	notes chan string
}

func (tr *tracer) TagRPC(ctx context.Context, i *stats.RPCTagInfo) context.Context {
	tr.notes <- "tag " + i.FullMethodName
	return ctx
}

func (tr *tracer) HandleRPC(_ context.Context, s stats.RPCStats) {
	switch s := s.(type) {
	case *stats.Begin:
		tr.notes <- fmt.Sprintf("begin %v %v %v", s.Client, s.IsClientStream, s.IsServerStream)
	case *stats.InHeader:
		tr.notes <- fmt.Sprintf("in header %q %q %d %v", s.FullMethod, s.Compression, s.WireLength, s.Header)
	case *stats.InPayload:
		tr.notes <- fmt.Sprintf("in payload %q %d %d %d", *s.Payload.(*[]byte), s.Length, s.CompressedLength, s.WireLength)
	case *stats.OutHeader:
		tr.notes <- fmt.Sprintf("out header %q %v %d", s.Compression, s.Header, len(s.Header))
	case *stats.OutPayload:
		tr.notes <- fmt.Sprintf("out payload %q %d %d %d", *s.Payload.(*[]byte), s.Length, s.CompressedLength, s.WireLength)
	case *stats.OutTrailer:
		tr.notes <- fmt.Sprintf("out trailer %v", s.Trailer)
	case *stats.End:
		tr.notes <- fmt.Sprintf("end %v", s.Error)
	default:
		tr.notes <- fmt.Sprintf("%T", s)
	}
}

func (tr *tracer) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (tr *tracer) HandleConn(_ context.Context, s stats.ConnStats) { tr.notes <- fmt.Sprintf("%T", s) }

// Whoever traces calls is told the same as by grpc-go's server.
func TestTrace(t *testing.T) {
	talks := map[string]func(*raw){
		"answer":   func(r *raw) { r.call(1, "Echo", "x") },
		"error":    func(r *raw) { r.call(1, "Fail", "x") },
		"metadata": func(r *raw) { r.call(1, "Meta", "x") },
		"sent":     func(r *raw) { r.call(1, "Meta", "send") },
		"refused":  func(r *raw) { r.call(1, "Meta", "error") },
		"stream":   func(r *raw) { r.headers(1, false, fields("Bidi")...); r.data(1, true, append(msg("a"), msg("bc")...)) },
		"many":     func(r *raw) { r.call(1, "Many", "3") },
		"unknown":  func(r *raw) { r.call(1, "None", "3") },
		"gzip": func(r *raw) {
			r.headers(1, false, fields("Echo", "grpc-encoding", "gzip")...)
			r.data(1, true, formatted(1, zipped(strings.Repeat("compressed", 100))))
		},
		"undecodable": func(r *raw) { r.call(1, "Echo", "undecodable") },
		"cancelled": func(r *raw) {
			r.call(1, "Begun", "x")
			r.untilNoted(1, "HEADERS")
			r.ok(r.fr.WriteRSTStream(1, http2.ErrCodeCancel))
			r.ended[1] = true
		},
	}
	for name, talk := range talks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var told [2][]string
			for i, ours := range []bool{false, true} {
				tr := &tracer{notes: make(chan string, 1000)}
				_, _, addr := start(t, ours, options{trace: tr})
				r := dial(t, addr)
				talk(r)
				r.until(1)
				_ = r.conn.Close()
				ends := 0
				for ends < 2 {
					select {
					case s := <-tr.notes:
						told[i] = append(told[i], s)
						if strings.HasPrefix(s, "end ") || strings.HasSuffix(s, "ConnEnd") {
							ends++
						}
					case <-time.After(wait):
						t.Fatalf("ours %v: told no end, only %q", ours, told[i])
					}
				}
				// The end of the connection may be told before that of a call that it ends.
				for j, s := range told[i] {
					if strings.HasSuffix(s, "ConnEnd") {
						told[i] = append(append(told[i][:j:j], told[i][j+1:]...), s)
						break
					}
				}
			}
			if a, b := strings.Join(told[0], "\n"), strings.Join(told[1], "\n"); a != b {
				t.Errorf("grpc-go tells\n%s\nand we\n%s", a, b)
			}
		})
	}
}
