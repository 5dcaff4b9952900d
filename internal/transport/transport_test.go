package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// pipes is a network of net.Pipes, so that the real transport runs inside a synctest bubble.
type pipes struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener
	void      map[string]bool // addresses that answer nothing
}

type pipeListener struct {
	p      *pipes
	addr   string
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes {
	return &pipes{listeners: map[string]*pipeListener{}, void: map[string]bool{}}
}

func (p *pipes) listen(addr string) net.Listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := &pipeListener{p: p, addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
	p.listeners[addr] = l
	return l
}

func (p *pipes) dial(ctx context.Context, addr string) (net.Conn, error) {
	p.mu.Lock()
	l, void := p.listeners[addr], p.void[addr]
	p.mu.Unlock()
	if void {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if l == nil {
		return nil, fmt.Errorf("dial %s: %w", addr, syscall.ECONNREFUSED)
	}
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.closed:
		return nil, fmt.Errorf("dial %s: %w", addr, syscall.ECONNREFUSED)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() {
		l.p.mu.Lock()
		defer l.p.mu.Unlock()
		if l.p.listeners[l.addr] == l {
			delete(l.p.listeners, l.addr)
		}
		close(l.closed)
	})
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: l.addr} }

// recorder is a Handler that writes down what it hears.
type recorder struct {
	mu        sync.Mutex
	messages  []*raftpb.Message
	events    []string
	snapshots []string
	refuse    error
	serve     func(ctx context.Context, from uint64, kind byte, body []byte) ([]byte, error)
	onMessage func(*raftpb.Message) // instead of keeping it
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

func (r *recorder) Receive(ms ...*raftpb.Message) {
	if r.onMessage != nil {
		for _, m := range ms {
			r.onMessage(m)
		}
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.messages = append(r.messages, ms...)
}

func (r *recorder) ReceiveSnapshot(_ *raftpb.Message, dir string, _ func()) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refuse == nil {
		r.snapshots = append(r.snapshots, dir)
	}
	return r.refuse
}

func (r *recorder) Unreachable(id uint64) { r.note("unreachable %d", id) }
func (r *recorder) PeerUp(id uint64)      { r.note("up %d", id) }
func (r *recorder) Removed(by uint64)     { r.note("removed by %d", by) }

func (r *recorder) PeerDown(id uint64, gone bool) { r.note("down %d gone=%v", id, gone) }
func (r *recorder) Serve(ctx context.Context, from uint64, kind byte, body []byte) ([]byte, error) {
	return r.serve(ctx, from, kind, body)
}

// heard returns what was heard, by peer, and forgets it.
func (r *recorder) heard() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortStableFunc(r.events, func(a, b string) int {
		return strings.Compare(strings.Fields(a)[1], strings.Fields(b)[1])
	})
	s := strings.Join(r.events, ", ")
	r.events = nil
	return s
}

// kept returns the messages that were received.
func (r *recorder) kept() []*raftpb.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.messages)
}

func (r *recorder) received() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.messages)
}

type peerSpec struct {
	*Transport
	*recorder
	fs  *vfs.MemFS
	log *lockedBuffer
}

// startPeer runs member id at address "m<id>", with members 1 to 3 as peers.
func startPeer(t *testing.T, p *pipes, id uint64, change func(*Config)) *peerSpec {
	t.Helper()
	fs, log := vfs.NewCrashableMem(), &lockedBuffer{}
	c := Config{
		ClusterID: 0xc1, ID: id, Version: "test", Peers: map[uint64][]string{1: {"m1"}, 2: {"m2"}, 3: {"m3"}},
		Listeners: []net.Listener{p.listen(fmt.Sprintf("m%d", id))}, Dial: p.dial, FS: fs, Incoming: "incoming",
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	}
	if change != nil {
		change(&c)
	}
	tr, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{}
	r.serve = func(_ context.Context, from uint64, kind byte, body []byte) ([]byte, error) {
		return fmt.Appendf(nil, "%d asked %d %s", from, kind, body), nil
	}
	tr.Serve(r)
	return &peerSpec{tr, r, fs, log}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func heartbeat(from, to uint64) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(from), To: new(to), Term: new(uint64(1))}
}

func appendOf(from, to, index uint64, data []byte) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgApp.Enum(), From: new(from), To: new(to), Term: new(uint64(1)), Index: new(index - 1),
		Entries: []*raftpb.Entry{{Type: raftpb.EntryNormal.Enum(), Term: new(uint64(1)), Index: new(index), Data: data}}}
}

func inBubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	bubble.Test(t, f)
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// TestLifeOfAConnection: a peer comes up, its process dies (refused at once: gone), it comes back, and it falls silent
// (no signal: down after the keepalive, never gone).
func TestLifeOfAConnection(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := newPipes()
		a := startPeer(t, p, 1, nil)
		defer a.Close()
		time.Sleep(100 * time.Millisecond)
		want(t, "nobody there", a.heard(), "down 2 gone=true, down 3 gone=true")
		b := startPeer(t, p, 2, nil)
		time.Sleep(time.Second)
		want(t, "peer started", a.heard(), "up 2")
		a.Send([]*raftpb.Message{heartbeat(1, 2), heartbeat(1, 3), appendOf(1, 2, 5, []byte("x")), heartbeat(1, 2)})
		synctest.Wait()
		want(t, "sent to one who is there and one who is not", a.heard(), "unreachable 3")
		if n := b.received(); n != 3 {
			t.Errorf("%d messages of 3 arrived", n)
		}
		b.Close()
		time.Sleep(5 * time.Millisecond)
		want(t, "peer died", a.heard(), "down 2 gone=false, down 2 gone=true")
		b = startPeer(t, p, 2, nil)
		time.Sleep(1100 * time.Millisecond) // between two pings
		want(t, "peer back", a.heard(), "up 2")

		// From now on nothing answers, and what is connected falls silent.
		p.mu.Lock()
		p.void["m2"] = true
		p.mu.Unlock()
		b.mute()
		time.Sleep(time.Minute)
		want(t, "peer silent", a.heard(), "down 2 gone=false")
		b.Close()
	})
}

// TestFoundAtOnce: a peer that was away for long, so that it is dialled seldom, is dialled as soon as it dials itself.
func TestFoundAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := newPipes()
		a := startPeer(t, p, 1, nil)
		defer a.Close()
		time.Sleep(10 * time.Second)
		a.heard()
		b := startPeer(t, p, 2, nil)
		defer b.Close()
		synctest.Wait() // no time passes
		want(t, "peer started", a.heard(), "up 2")
	})
}

// TestHalfDead: a process that is about to end refuses new connections while an old one still stands. It has not ended.
func TestHalfDead(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := newPipes()
		a := startPeer(t, p, 1, nil)
		defer a.Close()
		b := startPeer(t, p, 2, nil)
		time.Sleep(time.Second)
		a.heard()
		_ = b.Transport.c.Listeners[0].Close()
		b.Transport.mu.Lock()
		_ = b.inbound[inboundKey{1, streamAppends}].Close()
		b.Transport.mu.Unlock()
		time.Sleep(3 * time.Second)
		want(t, "one connection of two is left", a.heard(), "down 2 gone=false")
		b.Close()
		time.Sleep(time.Second)
		want(t, "none is left", a.heard(), "down 2 gone=true")
	})
}

// mute breaks what the member reads from, without a word to the other end.
func (s *peerSpec) mute() {
	s.Transport.mu.Lock()
	defer s.Transport.mu.Unlock()
	for _, conn := range s.inbound {
		_ = conn.SetDeadline(time.Unix(1, 0))
	}
}

func TestHandshake(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config) // of member 1, which dials member 2
		text   string
	}{
		{"another cluster", func(c *Config) { c.ClusterID = 0xc2 }, "cluster ID mismatch: it belongs to cluster c2, this member to cluster c1"},
		{"another member's address", func(c *Config) { c.Peers = map[uint64][]string{3: {"m2"}} }, "it looks for member 3, but this address is member 2's"},
		{"a stranger", func(c *Config) { c.ID = 9 }, "member 9 is not in this cluster"},
		{"the member itself", func(c *Config) { c.ID, c.Peers = 2, map[uint64][]string{1: {"m2"}} }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				p := newPipes()
				b := startPeer(t, p, 2, nil)
				a := startPeer(t, p, 1, c.change)
				time.Sleep(time.Second)
				for side, log := range map[string]string{"dialler": a.log.String(), "acceptor": b.log.String()} {
					if !strings.Contains(log, c.text) {
						t.Errorf("the %s's log does not say %q but:\n%s", side, c.text, log)
					}
				}
				if strings.Contains(b.heard(), "up") || strings.Contains(a.heard(), "up") {
					t.Error("connected all the same")
				}
				a.Close()
				b.Close()
			})
		})
	}
}

// TestStrangers: what does not speak the protocol gets a text, or is cut off in time, and does not stand in anybody's way.
func TestStrangers(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := newPipes()
		b := startPeer(t, p, 2, func(c *Config) { c.MaxHandshakes = 4 })
		defer b.Close()
		conn, err := p.dial(t.Context(), "m2")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = conn.Write([]byte("GET /health HTTP/1.1\r\n\r\n")) }()
		answer := make([]byte, 500)
		n, _ := conn.Read(answer)
		if !strings.HasPrefix(string(answer[:n]), "HTTP/1.1 400") {
			t.Errorf("a browser got %q", answer[:n])
		}
		conn.Close()

		old := hello{cluster: 0xc1, from: 1, to: 2, stream: streamSmall}.encode()
		old[len(magic)] = 7
		conn, _ = p.dial(t.Context(), "m2")
		go func() { _, _ = conn.Write(old) }()
		if _, err := readVerdict(conn); err == nil || !strings.Contains(err.Error(), "version 7 of the peer protocol") {
			t.Errorf("another protocol version got %v", err)
		}
		conn.Close()

		var silent []net.Conn
		for range 4 {
			conn, err := p.dial(t.Context(), "m2")
			if err != nil {
				t.Fatal(err)
			}
			silent = append(silent, conn)
		}
		synctest.Wait()
		conn, _ = p.dial(t.Context(), "m2")
		if _, err := conn.Read(answer); err == nil {
			t.Error("a fifth silent connection was kept")
		}
		start := time.Now()
		_, _ = silent[0].Read(answer)
		if took := time.Since(start); took > 6*time.Second {
			t.Errorf("a silent connection was kept for %s", took)
		}
		for _, c := range silent {
			c.Close()
		}
		a := startPeer(t, p, 1, nil)
		defer a.Close()
		time.Sleep(time.Second)
		if !strings.Contains(a.heard(), "up 2") {
			t.Error("a member cannot connect after strangers were there")
		}
	})
}

// TestQueueBounds: a peer that does not read costs bounded memory, never blocks a sender, and is given up.
func TestQueueBounds(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := newPipes()
		a := startPeer(t, p, 1, func(c *Config) { c.MaxQueuedMessages, c.MaxQueuedBytes, c.Keepalive = 10, 10_000, time.Hour })
		defer a.Close()
		l := p.listen("m2")
		defer l.Close()
		// A peer that shakes hands and then reads no more.
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				if _, _, err := readHello(conn); err == nil {
					_, _ = conn.Write(encodeVerdict(verdictWelcome, "test"))
				}
			}
		}()
		time.Sleep(time.Second)
		if !strings.Contains(a.heard(), "up 2") {
			t.Fatal("not connected")
		}
		for range 100 {
			a.Send([]*raftpb.Message{heartbeat(1, 2)})
			a.Send([]*raftpb.Message{appendOf(1, 2, 5, make([]byte, 3000))})
		}
		synctest.Wait()
		for _, s := range []*stream{a.peer(2).small, a.peer(2).append} {
			s.mu.Lock()
			if len(s.queue) > 10 || s.bytes > 10_000 {
				t.Errorf("%d messages of %d bytes are queued", len(s.queue), s.bytes)
			}
			s.mu.Unlock()
		}
		if !strings.Contains(a.heard(), "unreachable 2") {
			t.Error("messages were dropped in silence")
		}
		time.Sleep(40 * time.Second)
		if !strings.Contains(a.heard(), "down 2 gone=false") {
			t.Error("a stream that moves no byte was not given up")
		}
	})
}

func TestCall(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := newPipes()
		a, b := startPeer(t, p, 1, func(c *Config) { c.MaxCalls = 3 }), startPeer(t, p, 2, nil)
		defer a.Close()
		if _, err := a.Call(t.Context(), 2, 7, nil); !errors.Is(err, ErrUnreachable) {
			t.Errorf("before there is a connection: %v", err)
		}
		if _, err := a.Call(t.Context(), 9, 7, nil); !errors.Is(err, ErrUnknownPeer) {
			t.Errorf("a stranger: %v", err)
		}
		time.Sleep(time.Second)
		answer, err := a.Call(t.Context(), 2, 7, []byte("why"))
		if err != nil || string(answer) != "1 asked 7 why" {
			t.Errorf("%q, %v", answer, err)
		}
		release := make(chan struct{})
		b.serve = func(ctx context.Context, _ uint64, _ byte, body []byte) ([]byte, error) {
			if string(body) == "fail" {
				return nil, errors.New("no lease with that id")
			}
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil, nil
		}
		var remote *RemoteError
		if _, err := a.Call(t.Context(), 2, 7, []byte("fail")); !errors.As(err, &remote) || remote.Text != "no lease with that id" {
			t.Errorf("an error of the peer: %v", err)
		}
		results := make(chan error, 3)
		for range 3 {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := a.Call(ctx, 2, 7, nil)
				results <- err
			}()
		}
		synctest.Wait()
		if _, err := a.Call(t.Context(), 2, 7, nil); !errors.Is(err, ErrBusy) {
			t.Errorf("a fourth call where three may wait: %v", err)
		}
		for range 3 {
			if err := <-results; !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a call that is not answered: %v", err)
			}
		}
		go func() {
			_, err := a.Call(t.Context(), 2, 7, nil)
			results <- err
		}()
		synctest.Wait()
		b.Close()
		if err := <-results; !errors.Is(err, ErrUnreachable) {
			t.Errorf("a call whose peer dies: %v", err)
		}
		close(release)
	})
}

// TestRemovePeer: a removed member is not dialled, not listened to and not let in again.
func TestRemovePeer(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := newPipes()
		a, b := startPeer(t, p, 1, nil), startPeer(t, p, 2, nil)
		defer a.Close()
		defer b.Close()
		time.Sleep(time.Second)
		a.RemovePeer(2)
		time.Sleep(time.Second)
		b.heard()
		time.Sleep(time.Minute)
		heard := b.heard()
		if strings.Contains(heard, "up 1") {
			t.Error("a removed member was let in")
		}
		if !strings.Contains(heard, "removed by 1") {
			t.Errorf("it does not hear that it was removed: %s", heard)
		}
		if text := b.log.String(); !strings.Contains(text, "has been removed from this cluster") {
			t.Errorf("it is not told why:\n%s", text)
		}
		a.SetPeer(2, []string{"m2"})
		time.Sleep(time.Second)
		if strings.Contains(b.heard(), "up 1") {
			t.Error("an id that was removed came back")
		}
	})
}

// TestPeerMoved: a member that was away while a peer moved knows an address at which nobody is, and finds it nevertheless.
func TestPeerMoved(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		p := newPipes()
		a := startPeer(t, p, 1, nil)
		defer a.Close()
		time.Sleep(100 * time.Millisecond)
		a.heard()
		b := startPeer(t, p, 2, func(c *Config) {
			c.Listeners, c.Addrs = []net.Listener{p.listen("moved")}, []string{"moved"}
		})
		p.listen("m2").Close() // startPeer opened it
		time.Sleep(time.Minute)
		want(t, "peer at another address", a.heard(), "up 2")
		a.Send([]*raftpb.Message{heartbeat(1, 2)})
		synctest.Wait()
		if n := b.received(); n != 1 {
			t.Errorf("%d messages of 1 arrived", n)
		}
		// The table of a member that died before it had applied its own move still has the old address, as that of the peer has.
		a.Close()
		b.SetPeer(2, []string{"m2"})
		a = startPeer(t, p, 1, nil)
		defer a.Close()
		time.Sleep(time.Minute)
		if heard := a.heard(); !strings.Contains(heard, "up 2") {
			t.Errorf("a peer whose own table is old is not found: %s", heard)
		}
		b.Close()
		a.RemovePeer(2)
		b = startPeer(t, p, 2, func(c *Config) { c.Addrs = []string{"m2"} })
		defer b.Close()
		time.Sleep(time.Minute)
		if strings.Contains(a.heard(), "up 2") {
			t.Error("a removed member is looked for where it says it is")
		}
	})
}
