package front_test

import (
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/front"
)

// An answer to a ping leaves with the answer of a call under way, but does not wait for that for more than two milliseconds; and
// not at all if there is none, or only one that has no end.
func TestPongs(t *testing.T) {
	for name, c := range map[string]struct {
		begin   func(r *raw)
		release bool // the call is answered
		after   time.Duration
	}{
		"no call":               {begin: func(*raw) {}},
		"call that is answered": {begin: func(r *raw) { r.call(1, "Hold", "") }, release: true},
		"call that is not":      {begin: func(r *raw) { r.call(1, "Hold", "") }, after: 2 * time.Millisecond},
		"call that was": {begin: func(r *raw) {
			r.call(1, "Echo", "")
			r.until(1)
		}},
		"call that was cancelled": {begin: func(r *raw) {
			r.call(1, "Hold", "")
			r.ok(r.fr.WriteRSTStream(1, 8))
		}},
		"call that does not exist": {begin: func(r *raw) {
			r.call(1, "None", "")
			r.until(1)
		}},
		"stream": {begin: func(r *raw) { r.headers(1, false, fields("Bidi")...) }},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s := newService()
				srv := front.New(front.Options{Codec: bytesCodec{}, MaxRecvBytes: maxRecv, PingInterval: time.Hour, PingTimeout: time.Hour})
				srv.RegisterService(s.desc(), s)
				ours, theirs := net.Pipe()
				go func() { _ = srv.Serve(newOneConn(theirs)) }()
				defer srv.Stop()
				r := speak(t, ours, func(r *raw) { go r.ok(r.fr.WriteSettings()) })
				r.one()
				c.begin(r)
				synctest.Wait()
				began := time.Now()
				r.ok(r.fr.WritePing(false, [8]byte{7}))
				synctest.Wait()
				if c.release {
					close(s.open)
				} else {
					defer close(s.open)
				}
				r.untilNoted(0, "PONG 07")
				if took := time.Since(began); took != c.after {
					t.Errorf("the answer came after %v, not %v", took, c.after)
				}
				if c.release && !r.ended[1] {
					t.Error("the answer to the ping overtook that of the call")
				}
			})
		})
	}
}

// oneConn is a listener to which one client comes.
type oneConn struct {
	conns  chan net.Conn
	closed chan struct{}
	end    func()
}

func newOneConn(c net.Conn) *oneConn {
	l := &oneConn{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
	l.end = sync.OnceFunc(func() { close(l.closed) })
	l.conns <- c
	return l
}

// Accept implements net.Listener.
func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *oneConn) Close() error {
	l.end()
	return nil
}

// Addr implements net.Listener.
func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{} }
