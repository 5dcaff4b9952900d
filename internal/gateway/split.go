package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/trivet-kv/trivet/internal/certs"
)

// preface is how a connection of HTTP/2, and so of gRPC, begins (RFC 9113, section 3.4).
var preface = []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")

// tlsHandshake is the first byte of a TLS connection.
const tlsHandshake = 0x16

// handshakeTimeout is how long a TLS handshake may take, as in etcd, within the time of a silent connection.
const handshakeTimeout = 10 * time.Second

// silentTimeout is how long a connection may wait before it shows its protocol, unless told otherwise.
const silentTimeout = 30 * time.Second

// complainEvery is how often the log hears of TLS on a door without.
const complainEvery = time.Minute

// maxSilent bounds the connections of one listener that have not yet shown their protocol.
const maxSilent = 4096

// Door is one listener, and how its connections may begin.
type Door struct {
	net.Listener
	TLS   *certs.Set // nil: without TLS only
	Plain bool       // without TLS; both: the first byte decides
}

// splitter accepts connections, does the TLS handshake of those that begin with one, and hands them on by protocol. One
// goroutine accepts, and one for each connection that has not yet shown its protocol looks at how it begins; close ends
// them all.
type splitter struct {
	l      Door
	log    *slog.Logger
	silent time.Duration
	slots  chan struct{}

	grpc, http *handoff // nil: not served on this door

	mu         sync.Mutex
	leaving    bool // no more connections are accepted
	closed     bool // nor handed on
	complained time.Time
	pending    map[net.Conn]struct{}
	done       sync.WaitGroup
	accepted   chan struct{} // closed when the accepting goroutine has ended
}

// newSplitter serves gRPC, HTTP or both on a door.
func newSplitter(l Door, grpc, http bool, silent time.Duration, log *slog.Logger) *splitter {
	s := &splitter{l: l, log: log, silent: silent, slots: make(chan struct{}, maxSilent), pending: make(map[net.Conn]struct{}), accepted: make(chan struct{})}
	if grpc {
		s.grpc = newHandoff(l.Addr())
	}
	if http {
		s.http = newHandoff(l.Addr())
	}
	s.done.Add(1)
	go s.accept()
	return s
}

// Split serves a door for somebody with services of their own: connections that can only be gRPC come from the first
// listener, and those of HTTP, which with TLS may carry gRPC too, from the second. end closes the door, both listeners and
// the connections that neither has been given.
func Split(d Door, log *slog.Logger) (grpc, http net.Listener, end func()) {
	s := newSplitter(d, true, true, silentTimeout, log)
	return s.grpc, s.http, s.close
}

func (s *splitter) accept() {
	defer s.done.Done()
	defer close(s.accepted)
	for wait := time.Duration(0); ; {
		c, err := s.l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || s.isLeaving() {
				return
			}
			// Out of descriptors, most often: wait a little and go on, as net/http does.
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			s.log.Warn("cannot accept a client connection", "address", s.l.Addr().String(), "error", err, "retry-in", wait)
			time.Sleep(wait)
			continue
		}
		wait = 0
		s.slots <- struct{}{}
		if !s.admit(c) {
			_ = c.Close()
			<-s.slots
			return
		}
		go s.look(c)
	}
}

func (s *splitter) isLeaving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaving
}

func (s *splitter) admit(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.pending[c] = struct{}{}
	s.done.Add(1)
	return true
}

// look finds out what a new connection speaks and hands it on.
func (s *splitter) look(c net.Conn) {
	defer s.done.Done()
	ctx, cancel := context.WithTimeout(context.Background(), s.silent)
	defer cancel()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	to, out := s.classify(ctx, c)
	s.mu.Lock()
	delete(s.pending, c)
	s.mu.Unlock()
	<-s.slots
	if to == nil {
		_ = c.Close()
		return
	}
	_ = c.SetDeadline(time.Time{})
	to.give(out)
}

// classify reads the beginning of a connection. It returns nil if nothing can be made of it.
func (s *splitter) classify(ctx context.Context, c net.Conn) (*handoff, net.Conn) {
	begin := &spokenConn{Conn: c}
	if s.l.TLS != nil {
		if s.l.Plain && !begin.peek(1) {
			return nil, nil
		}
		if !s.l.Plain || begin.head[0] == tlsHandshake {
			return s.secure(ctx, begin)
		}
	}
	like := begin.like(preface)
	if like == unlike && begin.head[0] == tlsHandshake {
		s.complain(c)
	}
	switch {
	case like == whole && s.grpc != nil:
		if !begin.settings() {
			return nil, nil
		}
		return s.grpc, begin
	case like == unlike && s.http != nil:
		return s.http, begin // which answers TLS in plain HTTP, as clients of TLS recognise
	}
	return nil, nil
}

// secure does the handshake and goes by what was agreed in it. Whoever can speak HTTP/2 only is a gRPC client and goes to
// the grpc server. Who offered HTTP/1 too, like browsers, curl and proxies, goes to net/http, which tells gRPC from pages by
// the content type.
func (s *splitter) secure(ctx context.Context, c *spokenConn) (*handoff, net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	t, hello, err := s.l.TLS.Accept(ctx, c)
	if err != nil {
		return nil, nil // the log was told
	}
	if t.ConnectionState().NegotiatedProtocol != "h2" {
		if s.http == nil {
			return nil, nil
		}
		return s.http, t
	}
	if s.grpc != nil && (s.http == nil || !slices.Contains(hello.Protos, "http/1.1")) {
		begin := &spokenConn{Conn: t, secure: t}
		if begin.like(preface) != whole || !begin.settings() {
			return nil, nil
		}
		return s.grpc, begin
	}
	return s.http, t
}

// complain tells the log of TLS on a door without.
func (s *splitter) complain(c net.Conn) {
	s.mu.Lock()
	due := time.Since(s.complained) >= complainEvery
	if due {
		s.complained = time.Now()
	}
	s.mu.Unlock()
	if due {
		s.log.Warn("rejected connection on client endpoint: TLS on a port without TLS; use an http:// URL, or serve https:// with --cert-file and --key-file",
			"remote-addr", c.RemoteAddr().String(), "address", s.l.Addr().String())
	}
}

// lastAccept is how long connections are still accepted when a splitter leaves: what the kernel has accepted already would be
// reset when the listener is closed, with the request that may be in it.
const lastAccept = 2 * time.Millisecond

// leave accepts no more connections. Those that have not spoken are handed on when they do, until close.
func (s *splitter) leave() {
	s.mu.Lock()
	s.leaving = true
	s.mu.Unlock()
	if l, ok := s.l.Listener.(interface{ SetDeadline(time.Time) error }); ok && l.SetDeadline(time.Now().Add(lastAccept)) == nil {
		select {
		case <-s.accepted:
		case <-time.After(10 * lastAccept): // it may wait for room among those that have not spoken
		}
	}
	_ = s.l.Close()
}

// close stops accepting and closes the connections that have not spoken. Those handed on belong to others.
func (s *splitter) close() {
	s.mu.Lock()
	s.leaving, s.closed = true, true
	for c := range s.pending {
		_ = c.Close()
	}
	s.mu.Unlock()
	_ = s.l.Close()
	for _, h := range []*handoff{s.grpc, s.http} {
		if h != nil {
			_ = h.Close()
		}
	}
	s.done.Wait()
}

// spokenConn is a connection of which head was already read.
type spokenConn struct {
	net.Conn
	head   []byte
	secure *tls.Conn // nil without TLS
}

func (c *spokenConn) Read(p []byte) (int, error) {
	if len(c.head) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.head)
	c.head = c.head[n:]
	return n, nil
}

// TLSState implements rpc.Secured.
func (c *spokenConn) TLSState() (tls.ConnectionState, bool) {
	if c.secure == nil {
		return tls.ConnectionState{}, false
	}
	return c.secure.ConnectionState(), true
}

// Plain implements front.Plain.
func (c *spokenConn) Plain() net.Conn {
	if c.secure != nil {
		return nil
	}
	return c.Conn
}

// peek reads until n bytes are in head, and reports whether that many came.
func (c *spokenConn) peek(n int) bool {
	for len(c.head) < n {
		if c.more(n) != nil {
			return false
		}
	}
	return true
}

// more reads once, up to n bytes of head.
func (c *spokenConn) more(n int) error {
	at := len(c.head)
	c.head = slices.Grow(c.head, n-at)
	got, err := c.Conn.Read(c.head[at:n])
	c.head = c.head[:at+got]
	return err
}

// The head of a frame of HTTP/2 (RFC 9113, section 4.1) is its length in 24 bits, its type, and six bytes more. A SETTINGS
// frame is the second half of the preface (section 3.4).
const (
	frameHead    = 9
	settingsType = 4
	maxSettings  = 4 << 10 // bytes of settings, of 6 each, that a client may send at first
)

// settings reads, behind the preface, the frame that must follow it, and reports whether it came. The grpc server would wait
// for it too, but its stop cannot begin meanwhile.
func (c *spokenConn) settings() bool {
	if !c.peek(len(preface) + frameHead) {
		return false
	}
	h := c.head[len(preface):]
	n := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
	return h[3] == settingsType && n <= maxSettings && c.peek(len(preface)+frameHead+n)
}

type likeness int

const (
	part   likeness = iota // the connection ended, or time did, before it could be told
	unlike                 // it begins differently
	whole                  // it begins so
)

// like reads until the connection differs from how it might begin, or has begun so.
func (c *spokenConn) like(begin []byte) likeness {
	for {
		switch {
		case !bytes.HasPrefix(begin, c.head[:min(len(c.head), len(begin))]):
			return unlike
		case len(c.head) >= len(begin):
			return whole
		}
		if c.more(len(begin)) != nil && len(c.head) < len(begin) && bytes.HasPrefix(begin, c.head) {
			return part
		}
	}
}

// handoff is a listener whose connections somebody else accepted. give waits until Accept takes the connection.
type handoff struct {
	addr  net.Addr
	conns chan net.Conn
	stop  chan struct{}
	once  sync.Once
}

func newHandoff(addr net.Addr) *handoff {
	return &handoff{addr: addr, conns: make(chan net.Conn), stop: make(chan struct{})}
}

func (h *handoff) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.stop:
		_ = c.Close()
	}
}

// Accept waits for the next connection.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.stop:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and give.
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.stop) })
	return nil
}

// Addr is that of the real listener.
func (h *handoff) Addr() net.Addr { return h.addr }
