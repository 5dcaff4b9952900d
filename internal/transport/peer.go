package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// peer is what the transport keeps for one other member: two streams out, and calls that wait for answers.
type peer struct {
	t      *Transport
	id     uint64
	ctx    context.Context // ends with RemovePeer or Close
	cancel context.CancelFunc
	small  *stream
	append *stream

	// mu guards what follows and is held while the handler hears of it, so that it hears in order.
	mu       sync.Mutex
	addrs    []string
	said     []string // where it says that it is, in its newest handshake; bounded by maxHelloText
	up       int      // connected streams
	told     bool     // the handler believes that the peer is up
	refused  bool     // nobody listened when last dialled
	gone     bool     // the handler knows
	lastWarn string

	callMu sync.Mutex
	calls  map[uint64]chan answer // at most MaxCalls
	callID uint64
}

type answer struct {
	body []byte
	err  error
}

func newPeer(t *Transport, id uint64, addrs []string) *peer {
	p := &peer{t: t, id: id, addrs: addrs, calls: map[uint64]chan answer{}}
	p.ctx, p.cancel = context.WithCancel(t.ctx)
	p.small, p.append = newStream(p, streamSmall), newStream(p, streamAppends)
	return p
}

// startLocked starts the streams; t.mu is held.
func (p *peer) startLocked() {
	p.t.goLocked(p.small.run)
	p.t.goLocked(p.append.run)
}

func (p *peer) setAddrs(addrs []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addrs = addrs
}

// says notes the addresses that the peer gives for itself. They are dialled after those of the table of members, which may be
// older: this member may have been away while the peer moved, and could never learn of it from the table otherwise.
func (p *peer) says(addrs []string) {
	if len(addrs) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Equal(p.said, addrs) {
		return
	}
	p.said = addrs
	if !slices.Equal(p.addrs, addrs) {
		p.t.c.Logger.Info("a peer says that it is elsewhere; it is looked for there too", "peer", hex(p.id), "known", p.addrs, "says", addrs)
	}
}

// there says that the peer was heard of: whoever waits to dial it again does so now.
func (p *peer) there() {
	for _, s := range []*stream{p.small, p.append} {
		select {
		case s.again <- struct{}{}:
		default:
		}
	}
}

// dialled are the addresses to dial, in order.
func (p *peer) dialled() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return joined(p.addrs, p.said)
}

// joined is a list of all addresses of two, those of the first in front.
func joined(first, second []string) []string {
	all := slices.Clone(first)
	for _, a := range second {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all
}

// send sorts messages onto the two streams. Appends keep their order among themselves, or a follower would refuse the
// later one; commands that are forwarded go with them because they are as large.
func (p *peer) send(ms []*raftpb.Message) {
	dropped := 0
	for _, m := range ms {
		s := p.small
		if t := m.GetType(); t == raftpb.MsgApp || t == raftpb.MsgProp {
			s = p.append
		}
		if awaited(m) && s.pass(m) {
			continue
		}
		if !sendable(m.GetType()) || !s.enqueue(m) {
			dropped++
		}
	}
	if dropped > 0 {
		p.lost(dropped)
	}
}

// lost says that messages were lost.
func (p *peer) lost(messages int) {
	p.t.c.Observer.SendFailed(p.id, messages)
	if h := p.t.handler(); h != nil {
		h.Unreachable(p.id)
	}
}

// handler is nil before Serve.
func (t *Transport) handler() Handler {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.h
}

func (p *peer) connected(version string) {
	p.there()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused, p.gone, p.lastWarn = false, false, ""
	if p.up++; p.up < 2 || p.told {
		return
	}
	p.told = true
	p.t.c.Logger.Info("peer became active", "peer-id", hex(p.id), "version", version) // etcd's words, as below
	p.t.c.Observer.Active(p.id, true)
	p.t.h.PeerUp(p.id)
}

func (p *peer) disconnected(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.up--
	if p.told {
		p.told = false
		p.t.c.Logger.Warn("peer became inactive (message send to peer failed)", "peer-id", hex(p.id), "error", err)
		p.t.c.Observer.Active(p.id, false)
		p.t.h.PeerDown(p.id, false)
	}
	p.noticeDeathLocked()
}

// unconnected notes that dialling failed, and how.
func (p *peer) unconnected(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused = errors.Is(err, syscall.ECONNREFUSED)
	if text := err.Error(); text != p.lastWarn && p.ctx.Err() == nil {
		p.lastWarn = text
		p.t.c.Logger.Warn("cannot reach a peer", "peer", hex(p.id), "addresses", p.addrs, "err", err)
	}
	p.noticeDeathLocked()
}

// noticeDeathLocked: a process whose connections are gone and whose addresses all refuse has ended. A host that is gone,
// or a network that is cut, answers nothing instead.
func (p *peer) noticeDeathLocked() {
	if p.up == 0 && p.refused && !p.gone {
		p.gone = true
		p.t.h.PeerDown(p.id, true)
	}
}

func hex(id uint64) string { return fmt.Sprintf("%x", id) }

// stream is one direction of messages to one peer.
type stream struct {
	p     *peer
	kind  byte
	wake  chan struct{} // 1: something is queued
	again chan struct{} // 1: the peer is there

	mu     sync.Mutex
	up     bool
	outlet *outlet           // while it is up
	queue  []*raftpb.Message // at most MaxQueuedMessages and MaxQueuedBytes
	bytes  int64
	calls  []call // at most MaxCalls, since their callers wait
}

type call struct {
	id   uint64
	kind byte
	body []byte
}

func newStream(p *peer, kind byte) *stream {
	return &stream{p: p, kind: kind, wake: make(chan struct{}, 1), again: make(chan struct{}, 1)}
}

func (s *stream) enqueue(m *raftpb.Message) bool {
	size := messageBytes(m)
	s.mu.Lock()
	// One message always fits, however large.
	ok := s.up && len(s.queue) < s.p.t.c.MaxQueuedMessages && (s.bytes == 0 || s.bytes+size <= s.p.t.c.MaxQueuedBytes)
	if ok {
		s.queue = append(s.queue, m)
		s.bytes += size
	}
	s.mu.Unlock()
	if ok {
		s.nudge()
	}
	return ok
}

func (s *stream) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run keeps the stream connected until its peer is removed or the transport closed. It dials at growing intervals, and at once
// when the peer shows that it is there: when it dials this member, or the other stream has reached it.
func (s *stream) run() {
	const first, last = 20 * time.Millisecond, 500 * time.Millisecond
	backoff := first
	for s.p.ctx.Err() == nil {
		conn, version, err := s.p.t.connect(s.p.ctx, s.p, s.kind)
		if err != nil {
			s.p.unconnected(err)
			if e, refused := errors.AsType[*RefusedError](err); refused {
				backoff = last
				if e.Removed {
					s.p.t.h.Removed(s.p.id)
				}
			}
			wait := time.NewTimer(backoff)
			select {
			case <-wait.C:
				backoff = min(2*backoff, last)
			case <-s.again:
				backoff = first
			case <-s.p.ctx.Done():
			}
			wait.Stop()
			continue
		}
		backoff = first
		s.attend(conn, version)
	}
}

// connect dials the peer's addresses in turn and shakes hands. If nobody listens at any of them the error is
// ECONNREFUSED; if any failed in another way, that is the error.
func (t *Transport) connect(ctx context.Context, p *peer, kind byte) (net.Conn, string, error) {
	addrs := p.dialled()
	err := fmt.Errorf("member %x has no peer address", p.id)
	for i, addr := range addrs {
		conn, version, e := t.dial(ctx, addr, p.id, kind)
		if e == nil {
			return conn, version, nil
		}
		if i == 0 || !errors.Is(e, syscall.ECONNREFUSED) {
			err = fmt.Errorf("%s: %w", addr, e)
		}
	}
	return nil, "", err
}

func (t *Transport) dial(ctx context.Context, addr string, to uint64, kind byte) (net.Conn, string, error) {
	dialCtx, cancel := context.WithTimeout(ctx, t.c.DialTimeout)
	defer cancel()
	conn, err := t.c.Dial(dialCtx, addr)
	if err != nil {
		return nil, "", err
	}
	if !t.adopt(conn) {
		return nil, "", ErrClosed
	}
	// A handshake does not outlive its peer's removal.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	open, err := t.open(conn)
	if err != nil {
		t.release(conn)
		return nil, "", err
	}
	t.exchange(conn, open)
	version, err := t.c.greet(open, to, kind, t.ownAddrs())
	if err != nil {
		t.release(open)
		return nil, "", err
	}
	return open, version, nil
}

// open does the handshake of an Opener.
func (t *Transport) open(conn net.Conn) (net.Conn, error) {
	o, ok := conn.(Opener)
	if !ok {
		return conn, nil
	}
	ctx, cancel := context.WithTimeout(t.ctx, t.c.HandshakeTimeout)
	defer cancel()
	return o.Open(ctx)
}

// attend writes to an established connection until it breaks.
func (s *stream) attend(conn net.Conn, version string) {
	ctx, cancel := context.WithCancelCause(s.p.ctx)
	defer cancel(nil)
	o := newOutlet(conn)
	s.mu.Lock()
	s.up, s.outlet = true, o
	s.mu.Unlock()
	s.p.connected(version)

	// Whoever finds the connection broken, or ends the stream, frees the other from a blocked read or write.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	readerDone := make(chan struct{})
	go func() { // ends when conn is closed, below; attend waits for it
		defer close(readerDone)
		cancel(s.readAnswers(conn))
	}()
	err := s.write(ctx, conn, o)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	s.p.t.release(conn)
	<-readerDone

	s.mu.Lock()
	s.up, s.outlet = false, nil
	lost := len(s.queue)
	clear(s.queue)
	s.queue, s.bytes, s.calls = s.queue[:0], 0, nil
	s.mu.Unlock()
	s.p.disconnected(err)
	if s.kind == streamSmall {
		s.p.failCalls(fmt.Errorf("%w: %w", ErrUnreachable, err))
	}
	if lost > 0 {
		s.p.lost(lost)
	}
}

// maxBatch is about how much goes into one frame: a frame is checked, and so held up, as a whole.
const maxBatch = 1 << 20

// write sends what is queued until ctx ends or the connection breaks.
func (s *stream) write(ctx context.Context, conn net.Conn, o *outlet) error {
	ping := time.NewTicker(s.p.t.c.Keepalive)
	defer ping.Stop()
	var out buffer
	var spare []*raftpb.Message
	var deadline time.Time
	send := func() error {
		if now := time.Now(); deadline.Sub(now) < s.p.t.c.StallTimeout/2 {
			deadline = now.Add(s.p.t.c.StallTimeout)
			if err := conn.SetWriteDeadline(deadline); err != nil {
				return err
			}
		}
		n := out.len()
		err := out.writeTo(conn)
		out.reset()
		s.p.t.c.Observer.Sent(s.p.id, n)
		return err
	}
	pings := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ping.C:
			pings = true
		case <-s.wake:
		}
		s.mu.Lock()
		if o.writing { // by who will wake this goroutine
			o.wanted = true
			s.mu.Unlock()
			continue
		}
		o.writing = true
		ms, calls := s.queue, s.calls
		s.queue, s.bytes, s.calls = spare, 0, nil
		out.arena, o.rest = append(out.arena, o.rest...), nil
		s.mu.Unlock()
		if pings {
			pings = false
			start := out.begin(framePing)
			out.arena = binary.LittleEndian.AppendUint64(out.arena, uint64(time.Now().UnixNano()))
			out.end(start)
		}
		for _, c := range calls {
			start := out.begin(frameCall)
			out.arena = binary.LittleEndian.AppendUint64(out.arena, c.id)
			out.byte(c.kind)
			out.arena = append(out.arena, c.body...)
			out.end(start)
		}
		for i := 0; i < len(ms); {
			start := out.begin(frameMessages)
			for from := out.len(); i < len(ms) && (out.len() == from || out.len()-from < maxBatch); i++ {
				appendMessage(&out, ms[i], s.p.t.c.ID)
			}
			out.end(start)
			if err := send(); err != nil {
				return err
			}
		}
		if out.len() > 0 {
			if err := send(); err != nil {
				return err
			}
		}
		clear(ms)
		spare = ms[:0]
		s.mu.Lock()
		o.writing = false
		s.mu.Unlock()
	}
}

// readAnswers reads what the acceptor writes back: pongs and answers to calls.
func (s *stream) readAnswers(conn net.Conn) error {
	r := bufio.NewReader(conn)
	var extended time.Time
	for {
		if now := time.Now(); now.Sub(extended) >= s.p.t.c.Keepalive {
			extended = now
			if err := conn.SetReadDeadline(now.Add(6 * s.p.t.c.Keepalive)); err != nil {
				return err
			}
		}
		kind, payload, err := readFrame(r, s.p.t.c.MaxFrameBytes)
		if err == io.EOF {
			err = errors.New("the peer closed the connection")
		}
		if err != nil {
			return err
		}
		s.p.t.c.Observer.Received(s.p.id, frameHeader+len(payload))
		switch {
		case kind == framePong && len(payload) == 8:
			s.p.t.c.Observer.RoundTrip(s.p.id, time.Since(time.Unix(0, int64(binary.LittleEndian.Uint64(payload)))))
		case kind == frameAnswer && len(payload) >= 9:
			s.p.answered(binary.LittleEndian.Uint64(payload), payload[8], payload[9:])
		default:
			return fmt.Errorf("%w: a frame of kind %d and %d bytes as an answer", ErrMalformed, kind, len(payload))
		}
	}
}
