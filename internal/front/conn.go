package front

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/stats"
)

const (
	// readBuffer holds at least one whole frame.
	readBuffer = 32 << 10
	// streamWindow is how many bytes of a call a client may send before the handler has taken any; a message that is longer
	// is let in as a whole when its length is known. connWindow is that of all calls together, and is given back as bytes
	// come: what calls leave unread must not stand in the way of others. It is bounded nevertheless, at unreadMessages of the
	// longest.
	streamWindow   = 128 << 10
	connWindow     = 1 << 20
	unreadMessages = 64
	// maxOwed is how many frames may wait to be sent that the reader itself owes (answers to settings and pings, windows,
	// resets, refusals) before it reads on.
	maxOwed = 256
	// maxOrphans is how many handlers may still run whose calls were cancelled before the reader reads on: a client that
	// calls and cancels in a loop (CVE-2023-44487) waits for them.
	maxOrphans = 1024
	// lingerTime is how long a connection stays open after its last frame was sent, and lingerBytes how much is read of it, so
	// that the client gets that frame and not a reset.
	lingerTime  = time.Second
	lingerBytes = 4 << 20
	// drainTime is how long a client may take to say that it has heard that it is to go elsewhere.
	drainTime = 5 * time.Second
)

// conn is one connection. One goroutine reads (serve); whoever has something to send writes, one at a time (send.go).
type conn struct {
	s    *Server
	nc   net.Conn
	peer *peer.Peer
	base context.Context // of the calls' contexts

	// The reader's.
	buf       []byte
	at, end   int // what of buf is not yet looked at
	heads     *headReader
	block     []byte // of header fields, if they come in several frames
	blockOf   frame  // the first of these; id 0: none is under way
	blocks    int
	last      *call // the one that began last
	received  int   // bytes of DATA that the client was not given back
	lastPing  time.Time
	strikes   int
	lastRead  atomic.Int64 // Unix time in ns
	unread    atomic.Int64 // bytes of messages that handlers have not taken
	sentSince atomic.Bool  // something of a call was sent since the last ping
	keepalive *time.Timer  // under mu
	pinged    bool         // keepalive's
	pingedAt  time.Time

	mu      sync.Mutex
	streams map[uint32]*call
	maxID   uint32
	unary   int   // how many of streams are answered with one message
	window  int64 // bytes that the client takes on all streams
	initial int64 // window of a new stream
	maxList int   // of the client; 0: it has said none
	enc     encoder

	out      []byte    // what is to be written next
	spare    []byte    // memory for it
	piece    *piece    // what is to be written behind it; that of whose turn it is
	gather   net.Conn  // takes a piece as it lies in memory; nil: pieces are copied (TLS)
	owed     int       // frames in out that the reader owes
	writing  bool      // somebody writes, or is about to
	dead     bool      // nothing is sent any more
	queue    []*call   // who wait for their turn to send much
	turn     *call     // whose it is
	turnLeft int       // how much more before it is the next one's
	room     sync.Cond // out has become shorter
	waiting  int       // how many wait for that
	pongs    [][8]byte // answers to pings, which go behind out
	sending  int       // who have more to send than fits at once
	later    *time.Timer
	overdue  bool      // pongs wait no longer
	orphans  int       // handlers that run though their calls were cancelled
	resume   sync.Cond // the reader may go on

	drained   *time.Timer // not nil: the client was told to go elsewhere
	closing   bool        // new calls are not taken
	lastWords bool        // what is in out is the last; the connection is closed behind it
	lingering bool        // it was sent
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{
		s: s, nc: nc, peer: &peer.Peer{Addr: nc.RemoteAddr(), LocalAddr: nc.LocalAddr()}, heads: newHeadReader(s),
		streams: make(map[uint32]*call), window: 65535, initial: 65535,
	}
	if s.o.AuthInfo != nil {
		c.peer.AuthInfo = s.o.AuthInfo(nc)
	}
	c.resume.L, c.room.L = &c.mu, &c.mu
	c.gather = gathering(nc)
	c.out = c.greeting()
	return c
}

// serve reads until the connection ends.
func (c *conn) serve() {
	c.base = c.s.connContext(c)
	c.lastRead.Store(time.Now().UnixNano())
	c.mu.Lock()
	c.keepalive = time.AfterFunc(c.s.o.PingInterval, c.look)
	c.mu.Unlock()
	err := c.read()
	c.mu.Lock()
	c.keepalive.Stop()
	if c.drained != nil {
		c.drained.Stop()
	}
	var fault connError
	if errors.As(err, &fault) && !c.dead {
		c.appendPongs()
		c.out = appendGoAway(c.out, c.maxID, fault.code, fault.text)
		c.lastWords = true
	}
	c.closing = true
	linger := c.lastWords && !c.lingering && !c.dead
	if linger {
		_ = c.nc.SetWriteDeadline(time.Now().Add(lingerTime))
		c.flush(false)
	}
	c.mu.Unlock()
	c.endCalls()
	if linger {
		c.linger()
	}
	c.close()
	if t := c.s.o.Trace; t != nil {
		t.HandleConn(c.base, &stats.ConnEnd{})
	}
}

// linger waits until the client closes, the time is over, or somebody else closes the connection. A client that goes on
// sending is held up after a while.
func (c *conn) linger() {
	defer time.AfterFunc(lingerTime, c.close).Stop()
	if n, _ := io.CopyN(io.Discard, c.nc, lingerBytes); n < lingerBytes {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.dead {
		c.resume.Wait()
	}
}

// endCalls ends all calls: nobody will read their answers.
func (c *conn) endCalls() {
	c.mu.Lock()
	calls := make([]*call, 0, len(c.streams))
	for _, k := range c.streams {
		c.drop(k)
		calls = append(calls, k)
	}
	c.mu.Unlock()
	for _, k := range calls {
		k.end(context.Canceled)
	}
}

// close closes the connection at once. The reader ends then.
func (c *conn) close() {
	c.mu.Lock()
	c.die()
	c.mu.Unlock()
}

// die is close under mu.
func (c *conn) die() {
	if c.dead {
		return
	}
	c.dead = true
	c.out, c.piece = nil, nil
	_ = c.nc.Close()
	c.resume.Broadcast()
	c.room.Broadcast()
	for _, k := range c.streams {
		k.may.Broadcast()
	}
}

// greeting is the server's half of the preface.
func (c *conn) greeting() []byte {
	settings := make([]byte, 0, 64)
	settings = appendSetting(settings, http2.SettingMaxFrameSize, maxFrame)
	if c.s.o.MaxStreams > 0 {
		settings = appendSetting(settings, http2.SettingMaxConcurrentStreams, c.s.o.MaxStreams)
	}
	settings = appendSetting(settings, http2.SettingInitialWindowSize, streamWindow)
	settings = appendSetting(settings, http2.SettingMaxHeaderListSize, maxHeaderList)
	out := append(appendFrame(nil, len(settings), http2.FrameSettings, 0, 0), settings...)
	return appendWindowUpdate(out, 0, connWindow-65535)
}

// fill reads until n bytes are there.
func (c *conn) fill(n int) error {
	if c.end-c.at >= n {
		return nil
	}
	if c.at > 0 {
		c.end = copy(c.buf, c.buf[c.at:c.end])
		c.at = 0
	}
	for c.end < n {
		c.beforeWait()
		got, err := c.nc.Read(c.buf[c.end:])
		if got == 0 && err != nil {
			return err
		}
		c.end += got
		c.lastRead.Store(time.Now().UnixNano())
	}
	return nil
}

// read takes frame after frame.
func (c *conn) read() error {
	c.buf = make([]byte, readBuffer)
	if err := c.fill(len(preface)); err != nil {
		return err
	}
	if string(c.buf[:len(preface)]) != preface {
		return connError{http2.ErrCodeProtocol, "the connection does not begin as HTTP/2 does"}
	}
	c.at = len(preface)
	for first := true; ; first = false {
		if err := c.fill(frameHead); err != nil {
			return err
		}
		f := parseFrame(c.buf[c.at:])
		switch {
		case f.length > maxFrame:
			return connError{http2.ErrCodeFrameSize, "a frame is longer than 16384 bytes"}
		case first && (f.kind != http2.FrameSettings || f.flags.Has(http2.FlagSettingsAck)):
			return connError{http2.ErrCodeProtocol, "the first frame is not SETTINGS"}
		case c.blockOf.id != 0 && (f.kind != http2.FrameContinuation || f.id != c.blockOf.id):
			return connError{http2.ErrCodeProtocol, "header fields are not continued"}
		}
		if err := c.fill(frameHead + f.length); err != nil {
			return err
		}
		p := c.buf[c.at+frameHead : c.at+frameHead+f.length]
		if err := c.take(f, p); err != nil {
			return err
		}
		c.at += frameHead + f.length
		if c.at == c.end {
			c.at, c.end = 0, 0
		}
	}
}

// take handles one frame. p is valid until it returns. An error ends the connection.
func (c *conn) take(f frame, p []byte) error {
	switch f.kind {
	case http2.FrameData:
		return c.takeData(f, p)
	case http2.FrameHeaders:
		return c.takeHeaders(f, p)
	case http2.FrameContinuation:
		return c.takeContinuation(f, p)
	case http2.FrameRSTStream:
		return c.takeReset(f, p)
	case http2.FrameSettings:
		return c.takeSettings(f, p)
	case http2.FramePing:
		return c.takePing(f, p)
	case http2.FrameWindowUpdate:
		return c.takeWindowUpdate(f, p)
	case http2.FramePriority:
		if f.id == 0 {
			return connError{http2.ErrCodeProtocol, "PRIORITY without a stream"}
		}
		if len(p) != 5 {
			return c.resetUnlessIdle(f.id, http2.ErrCodeFrameSize)
		}
	case http2.FramePushPromise:
		return connError{http2.ErrCodeProtocol, "a client sent PUSH_PROMISE"}
	case http2.FrameGoAway:
		if f.id != 0 {
			return connError{http2.ErrCodeProtocol, "GOAWAY on a stream"}
		}
	}
	return nil // GOAWAY of a client asks for nothing; frames of other kinds are for others
}

// resetUnlessIdle resets a stream; one that was never begun cannot be reset.
func (c *conn) resetUnlessIdle(id uint32, code http2.ErrCode) error {
	c.mu.Lock()
	idle := id > c.maxID
	c.mu.Unlock()
	if idle {
		return connError{code, "a malformed frame on a stream that was not begun"}
	}
	c.reset(id, code)
	return nil
}

// owe counts a frame that the reader has put into out, and waits while there are too many. mu is held.
func (c *conn) owe() {
	c.owed++
	c.pause()
}

// pause holds the reader up while the client asks for more than it takes. mu is held.
func (c *conn) pause() {
	for !c.dead && (c.owed > maxOwed || c.orphans > c.maxOrphans() || c.waiting > maxOrphans) {
		c.push()
		c.resume.Wait()
	}
}

func (c *conn) maxOrphans() int {
	if m := c.s.o.MaxStreams; m > 0 && m < maxOrphans {
		return int(m)
	}
	return maxOrphans
}

// beforeWait is called before the reader waits for the client: what it owes must not wait with it. Handlers that it has just
// woken may send it along.
func (c *conn) beforeWait() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writing || c.dead || !c.something() || c.delayPongs() {
		return
	}
	c.mu.Unlock()
	runtime.Gosched()
	c.mu.Lock()
	c.push()
}

// reset ends a stream from this side, whether there is a call on it or not.
func (c *conn) reset(id uint32, code http2.ErrCode) {
	c.mu.Lock()
	k := c.streams[id]
	if k != nil {
		c.drop(k)
	}
	if !c.dead {
		c.out = appendReset(c.out, id, code)
		c.owe()
	}
	c.mu.Unlock()
	if k != nil {
		k.end(context.Canceled)
	}
}

// drop forgets a call that has not been answered. mu is held; whoever calls it ends the call.
func (c *conn) drop(k *call) {
	c.forget(k)
	if k.dispatched {
		k.orphan = true
		c.orphans++
	}
}

// forget takes a call off the connection. mu is held.
func (c *conn) forget(k *call) {
	k.closed = true
	delete(c.streams, k.id)
	if k.head.unary() {
		c.unary--
	}
	c.leave(k)
	k.may.Broadcast()
	if c.closing && c.drained != nil && len(c.streams) == 0 {
		c.lastWords = true
	}
}

// returned notes that the handler of a call has returned.
func (c *conn) returned(k *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.orphan {
		c.orphans--
		c.resume.Signal()
	}
}
