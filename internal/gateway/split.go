package gateway

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"
)

// preface is how a connection of HTTP/2, and so of gRPC, begins (RFC 9113, section 3.4).
var preface = []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")

// maxSilent bounds the connections of one listener that have not yet shown their protocol.
const maxSilent = 4096

// splitter accepts connections and hands them on by protocol. One goroutine accepts, and one for each connection that
// has not yet spoken looks at its first bytes; close ends them all.
type splitter struct {
	l      net.Listener
	log    *slog.Logger
	silent time.Duration
	slots  chan struct{}

	grpc, http *handoff

	mu      sync.Mutex
	closed  bool
	pending map[net.Conn]struct{}
	done    sync.WaitGroup
}

func newSplitter(l net.Listener, silent time.Duration, log *slog.Logger) *splitter {
	s := &splitter{
		l: l, log: log, silent: silent, slots: make(chan struct{}, maxSilent),
		grpc: newHandoff(l.Addr()), http: newHandoff(l.Addr()), pending: make(map[net.Conn]struct{}),
	}
	s.done.Add(1)
	go s.accept()
	return s
}

func (s *splitter) accept() {
	defer s.done.Done()
	for wait := time.Duration(0); ; {
		c, err := s.l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || s.isClosed() {
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

func (s *splitter) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
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

// look reads until the connection differs from the preface or has sent it whole, and hands it on.
func (s *splitter) look(c net.Conn) {
	defer s.done.Done()
	deadline := time.Now().Add(s.silent)
	_ = c.SetReadDeadline(deadline)
	head := make([]byte, 0, len(preface))
	same := true
	var err error
	for same && len(head) < len(preface) && err == nil {
		var n int
		n, err = c.Read(head[len(head):cap(head)])
		head = head[:len(head)+n]
		same = bytes.HasPrefix(preface, head)
	}
	s.mu.Lock()
	delete(s.pending, c)
	s.mu.Unlock()
	<-s.slots
	if err != nil && same {
		_ = c.Close()
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	to := s.http
	if same {
		to = s.grpc
	}
	to.give(&spokenConn{Conn: c, head: head})
}

// close stops accepting and closes the connections that have not spoken. Those handed on belong to others.
func (s *splitter) close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.pending {
		_ = c.Close()
	}
	s.mu.Unlock()
	_ = s.l.Close()
	_ = s.grpc.Close()
	_ = s.http.Close()
	s.done.Wait()
}

// spokenConn is a connection of which head was already read.
type spokenConn struct {
	net.Conn
	head []byte
}

func (c *spokenConn) Read(p []byte) (int, error) {
	if len(c.head) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.head)
	c.head = c.head[n:]
	return n, nil
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
