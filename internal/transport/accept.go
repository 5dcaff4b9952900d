package transport

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// accept takes connections from one listener until it is closed.
func (t *Transport) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			if t.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of file descriptors, most likely: it passes, or the operator reads this.
			t.c.Logger.Warn("cannot accept a peer's connection", "err", err)
			if !sleep(t.ctx, 100*time.Millisecond) {
				return
			}
			continue
		}
		select {
		case t.handshakes <- struct{}{}:
		default:
			_ = conn.Close() // MaxHandshakes strangers already have their time to speak
			continue
		}
		t.mu.Lock()
		if t.closed {
			t.mu.Unlock()
			_ = conn.Close()
			return
		}
		t.loose[conn] = struct{}{}
		t.goLocked(func() { t.serveConn(conn) })
		t.mu.Unlock()
	}
}

// serveConn shakes hands and reads a connection to its end.
func (t *Transport) serveConn(conn net.Conn) {
	defer t.release(conn)
	raw := conn
	conn, err := t.open(conn)
	if err != nil {
		// The Opener has told the log.
		if conn != nil {
			_ = conn.SetDeadline(time.Now().Add(t.c.HandshakeTimeout))
			_, _ = conn.Write(encodeVerdict(verdictRefused, printable(err.Error())))
		}
		<-t.handshakes
		return
	}
	h, err := t.c.welcome(conn, t.verdictOn)
	<-t.handshakes
	if err != nil {
		if !errors.Is(err, io.EOF) && t.ctx.Err() == nil {
			t.complain(raw.RemoteAddr(), err)
		}
		return
	}
	in := newInConn(t, h.from, conn)
	if h.stream == streamAsk {
		in.serveAsk()
		return
	}
	if h.stream == streamSnapshot {
		in.receiveSnapshot()
		return
	}
	key := inboundKey{h.from, h.stream}
	if !t.enter(key, conn) {
		return
	}
	defer t.leave(key, conn)
	if err := in.read(); !errors.Is(err, io.EOF) && t.ctx.Err() == nil {
		t.c.Observer.ReceiveFailed(h.from)
		t.c.Logger.Warn("gave up a peer's connection", "peer", hex(h.from), "err", err)
	}
	in.serving.Wait()
}

// complainEvery is how often the log hears of the same trouble with connections that came to nothing.
const complainEvery = time.Minute

// complain logs why a connection came to nothing: whoever tries again and again says nothing new.
func (t *Transport) complain(remote net.Addr, err error) {
	host, _, splitErr := net.SplitHostPort(remote.String())
	if splitErr != nil {
		host = remote.String()
	}
	key := host + " " + err.Error()
	t.mu.Lock()
	now := time.Now()
	if len(t.complaints) > 256 {
		clear(t.complaints)
	}
	last, again := t.complaints[key]
	due := !again || now.Sub(last) >= complainEvery
	if due {
		t.complaints[key] = now
	}
	t.mu.Unlock()
	if due {
		t.c.Logger.Warn("a connection to the peer port came to nothing", "remote", remote, "err", err)
	}
}

// enter makes conn the one inbound stream of its kind; an older one belongs to an earlier life of the peer and is closed.
func (t *Transport) enter(key inboundKey, conn net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.peers[key.from] == nil {
		return false
	}
	if old := t.inbound[key]; old != nil {
		_ = old.Close()
	}
	t.inbound[key] = conn
	return true
}

func (t *Transport) leave(key inboundKey, conn net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.inbound[key] == conn {
		delete(t.inbound, key)
	}
}

// inConn is a connection that a peer dialled.
type inConn struct {
	t    *Transport
	from uint64
	conn net.Conn

	serving sync.WaitGroup // calls being served
	slots   chan struct{}  // MaxCalls of them

	mu      sync.Mutex
	out     buffer    // frames to be written next
	writing bool      // somebody writes, or is about to
	room    sync.Cond // out was taken by the one who writes
	broken  error     // why nothing is sent any more

	// Of the one who writes.
	taken    buffer
	deadline time.Time
}

func newInConn(t *Transport, from uint64, conn net.Conn) *inConn {
	c := &inConn{t: t, from: from, conn: conn}
	c.room.L = &c.mu
	return c
}

func (c *inConn) read() error {
	c.slots = make(chan struct{}, c.t.c.MaxCalls)
	r := bufio.NewReaderSize(c.conn, 64<<10)
	var extended time.Time
	var ms []*raftpb.Message
	for {
		// Moving the deadline once per keepalive is as good as at every frame, and cheaper.
		if now := time.Now(); now.Sub(extended) >= c.t.c.Keepalive {
			extended = now
			if err := c.conn.SetReadDeadline(now.Add(6 * c.t.c.Keepalive)); err != nil {
				return err
			}
		}
		kind, payload, err := readFrame(r, c.t.c.MaxFrameBytes)
		if err != nil {
			return err
		}
		c.t.c.Observer.Received(c.from, frameHeader+len(payload))
		switch {
		case kind == frameMessages:
			err = decodeMessages(payload, c.from, c.t.c.ID, func(m *raftpb.Message) { ms = append(ms, m) })
			c.t.h.Receive(ms...)
			clear(ms)
			ms = ms[:0]
		case kind == framePing && len(payload) == 8:
			err = c.write(framePong, payload)
		case kind == frameCall && len(payload) >= 9:
			err = c.serve(binary.LittleEndian.Uint64(payload), payload[8], payload[9:])
		default:
			err = fmt.Errorf("%w: a frame of kind %d and %d bytes", ErrMalformed, kind, len(payload))
		}
		if err != nil {
			return err
		}
	}
}

// serve answers a call from a goroutine of its own.
func (c *inConn) serve(id uint64, kind byte, body []byte) error {
	select {
	case c.slots <- struct{}{}:
	default:
		return c.answer(id, nil, ErrBusy)
	}
	c.serving.Add(1)
	go func() { // owned by serveConn, which waits for it
		defer c.serving.Done()
		defer func() { <-c.slots }()
		answer, err := c.t.h.Serve(c.t.ctx, c.from, kind, body)
		_ = c.answer(id, answer, err) // a broken connection is noticed by its reader
	}()
	return nil
}

func (c *inConn) answer(id uint64, body []byte, err error) error {
	head := binary.LittleEndian.AppendUint64(make([]byte, 0, 9), id)
	if err != nil {
		return c.write(frameAnswer, append(head, 1), []byte(err.Error()))
	}
	return c.write(frameAnswer, append(head, 0), body)
}

// write sends one frame: it puts it behind those that are to be sent, and writes them unless somebody does. That one takes it
// along, so that answers that come together leave together. Errors of a connection may come late: its reader notices too.
func (c *inConn) write(kind byte, parts ...[]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.writing && c.out.len() >= maxBatch && c.broken == nil {
		c.room.Wait()
	}
	if c.broken != nil {
		return c.broken
	}
	start := c.out.begin(kind)
	for _, p := range parts {
		c.out.arena = append(c.out.arena, p...)
	}
	c.out.end(start)
	if c.writing {
		return nil
	}
	c.writing = true
	c.mu.Unlock()
	runtime.Gosched() // those who are about to answer too
	c.mu.Lock()
	for c.out.len() > 0 && c.broken == nil {
		c.out, c.taken = c.taken, c.out
		c.room.Broadcast()
		c.mu.Unlock()
		err := c.flush()
		c.mu.Lock()
		if err != nil {
			c.broken = err
			c.room.Broadcast()
			_ = c.conn.Close() // which its reader waits for
		}
	}
	c.writing = false
	return c.broken
}

// flush writes what was taken.
func (c *inConn) flush() error {
	// Moving the deadline once per half of it is as good as at every frame, and cheaper.
	if now := time.Now(); c.deadline.Sub(now) < c.t.c.StallTimeout/2 {
		c.deadline = now.Add(c.t.c.StallTimeout)
		if err := c.conn.SetWriteDeadline(c.deadline); err != nil {
			return err
		}
	}
	c.t.c.Observer.Sent(c.from, c.taken.len())
	err := c.taken.writeTo(c.conn)
	if cap(c.taken.arena) > maxBatch {
		c.taken = buffer{} // an answer that long is rare
	}
	c.taken.reset()
	return err
}
