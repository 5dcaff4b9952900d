package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
)

// Config is everything a Transport needs. Zero bounds take the defaults named at each field.
type Config struct {
	ClusterID, ID uint64
	Version       string                                                   // of the software, told to peers and shown in their logs
	Peers         map[uint64][]string                                      // addresses of each other member, as Dial takes them; SetPeer changes them later
	Addrs         []string                                                 // of this member as it was started, for peers that do not know it yet, or where it is now; may be empty
	Listeners     []net.Listener                                           // closed by Close; their connections may be Openers
	Dial          func(ctx context.Context, addr string) (net.Conn, error) // nil: TCP to host:port; the connection may be an Opener

	FS       vfs.FS // where checkpoints are read from and received to
	Incoming string // directory for checkpoints being received; emptied by New

	MaxQueuedMessages int           // per peer and stream; default 4096
	MaxQueuedBytes    int64         // per peer and stream; default 64 MiB
	MaxFrameBytes     int           // largest frame taken; must hold the largest entry; default 64 MiB
	MaxCalls          int           // under way at once per peer, in either direction; default 64
	MaxHandshakes     int           // connections that have not yet said who they are; default 128
	Keepalive         time.Duration // streams say so this often, and are given up after five times as long; default 1 s
	DialTimeout       time.Duration // default 1 s
	HandshakeTimeout  time.Duration // default 5 s
	StallTimeout      time.Duration // a stream or a checkpoint that moves no byte for so long is given up; default 30 s

	Logger   *slog.Logger
	Observer Observer
}

// Opener is a new connection with a handshake of its own, such as TLS, which comes first. Open does it, within ctx, and
// returns what to go on with; Close of the Opener must end it too. If it returns an error and a connection, the error is
// told to the other side over that.
type Opener interface {
	Open(ctx context.Context) (net.Conn, error)
}

// Observer is told what happens, for metrics. Every field may be nil; they must return at once.
type Observer struct {
	Sent             func(to uint64, bytes int)
	Received         func(from uint64, bytes int)
	SendFailed       func(to uint64, messages int) // dropped at a bound or lost with a connection
	ReceiveFailed    func(from uint64)             // a connection that broke, or that carried what cannot be
	RoundTrip        func(peer uint64, d time.Duration)
	Active           func(peer uint64, up bool)
	SnapshotSent     func(to uint64, bytes int64, d time.Duration, err error)
	SnapshotReceived func(from uint64, bytes int64, d time.Duration, err error)
	// A checkpoint is on its way, until SnapshotSent or SnapshotReceived.
	SnapshotSending   func(to uint64)
	SnapshotReceiving func(from uint64)
	// SnapshotSynced is how long a received checkpoint took to be made durable.
	SnapshotSynced func(d time.Duration)
}

func (o *Observer) setDefaults() {
	none := func(uint64, int) {}
	snapshot := func(uint64, int64, time.Duration, error) {}
	if o.Sent == nil {
		o.Sent = none
	}
	if o.Received == nil {
		o.Received = none
	}
	if o.SendFailed == nil {
		o.SendFailed = none
	}
	for _, f := range []*func(uint64){&o.ReceiveFailed, &o.SnapshotSending, &o.SnapshotReceiving} {
		if *f == nil {
			*f = func(uint64) {}
		}
	}
	if o.SnapshotSynced == nil {
		o.SnapshotSynced = func(time.Duration) {}
	}
	if o.RoundTrip == nil {
		o.RoundTrip = func(uint64, time.Duration) {}
	}
	if o.Active == nil {
		o.Active = func(uint64, bool) {}
	}
	if o.SnapshotSent == nil {
		o.SnapshotSent = snapshot
	}
	if o.SnapshotReceived == nil {
		o.SnapshotReceived = snapshot
	}
}

func (c *Config) setDefaults() {
	def(&c.MaxQueuedMessages, 4096)
	def(&c.MaxQueuedBytes, 64<<20)
	def(&c.MaxFrameBytes, 64<<20)
	def(&c.MaxCalls, 64)
	def(&c.MaxHandshakes, 128)
	def(&c.Keepalive, time.Second)
	def(&c.DialTimeout, time.Second)
	def(&c.HandshakeTimeout, 5*time.Second)
	def(&c.StallTimeout, 30*time.Second)
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Observer.setDefaults()
}

func def[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

// ErrClosed is returned after Close, ErrUnreachable while there is no connection to a peer, and ErrUnknownPeer for an id
// that is not a member's.
var (
	ErrClosed      = errors.New("transport: closed")
	ErrUnreachable = errors.New("transport: no connection to the peer")
	ErrUnknownPeer = errors.New("transport: no such peer")
	ErrBusy        = errors.New("transport: too many calls under way")
)

// RemoteError is what a peer's handler answered to a Call.
type RemoteError struct{ Text string }

func (e *RemoteError) Error() string { return e.Text }

// Transport carries messages over TCP. To each peer it keeps two connections that it dialled itself and only writes
// messages to; what the peer sends comes over the two that the peer dialled.
type Transport struct {
	c      Config
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine
	h      Handler        // set by Serve before any goroutine starts

	handshakes chan struct{} // bounds connections without a name

	mu      sync.Mutex
	serving bool
	closed  bool
	peers   map[uint64]*peer
	removed map[uint64]struct{}     // members that were removed, and are told so
	addrs   []string                // of this member
	inbound map[inboundKey]net.Conn // the newest of its kind; an older one is closed
	loose   map[net.Conn]struct{}   // every other open connection

	complaints map[string]time.Time // when the log last heard of a trouble with connections that came to nothing

	guests   int    // peers that verdictOn let in
	staging  bool   // a checkpoint is being received
	stagings uint64 // received so far; makes their names unique
}

type inboundKey struct {
	from   uint64
	stream byte
}

// New makes a transport. It neither listens nor dials before Serve; messages sent before are lost.
func New(c Config) (*Transport, error) {
	c.setDefaults()
	if c.ID == 0 || c.FS == nil || c.Incoming == "" {
		return nil, errors.New("transport: member id, file system and incoming directory are needed")
	}
	if err := emptyDir(c.FS, c.Incoming); err != nil {
		return nil, fmt.Errorf("transport: empty the directory for incoming checkpoints: %w", err)
	}
	t := &Transport{
		c:          c,
		handshakes: make(chan struct{}, c.MaxHandshakes),
		peers:      map[uint64]*peer{},
		removed:    map[uint64]struct{}{},
		addrs:      c.Addrs,
		inbound:    map[inboundKey]net.Conn{},
		loose:      map[net.Conn]struct{}{},
		complaints: map[string]time.Time{},
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	for id, addrs := range c.Peers {
		if id != c.ID {
			t.peers[id] = newPeer(t, id, addrs)
		}
	}
	return t, nil
}

// Serve accepts connections and dials the peers, until Close. It returns at once.
func (t *Transport) Serve(h Handler) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.serving {
		return
	}
	t.h, t.serving = h, true
	for _, l := range t.c.Listeners {
		t.goLocked(func() { t.accept(l) })
	}
	for _, p := range t.peers {
		p.startLocked()
	}
}

// goLocked runs f in a goroutine that Close waits for. t.mu is held, and closed is false.
func (t *Transport) goLocked(f func()) {
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		f()
	}()
}

func (t *Transport) peer(id uint64) *peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.peers[id]
}

// Send queues messages for their addressees and never blocks. At a queue's bound, or while there is no connection,
// messages are dropped and the handler is told that the peer is Unreachable. A MsgSnap does not go this way. The
// messages must not be changed afterwards.
func (t *Transport) Send(ms []*raftpb.Message) {
	for len(ms) > 0 {
		to, n := ms[0].GetTo(), 1
		for n < len(ms) && ms[n].GetTo() == to {
			n++
		}
		if p := t.peer(to); p != nil {
			p.send(ms[:n])
		}
		ms = ms[n:]
	}
}

// SetPeer makes a member known or changes its addresses; of this member, what it tells peers before Config.Addrs.
func (t *Transport) SetPeer(id uint64, addrs []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	if id == t.c.ID {
		t.addrs = addrs
		return
	}
	t.setPeerLocked(id, addrs)
}

func (t *Transport) setPeerLocked(id uint64, addrs []string) {
	if _, removed := t.removed[id]; removed {
		return
	}
	if p := t.peers[id]; p != nil {
		p.setAddrs(addrs)
		return
	}
	p := newPeer(t, id, addrs)
	t.peers[id] = p
	if t.serving {
		p.startLocked()
	}
}

// maxGuests bounds the members that are known only because they said who they are.
const maxGuests = 64

// verdictOn decides whether a member that dials is let in. One that is not known, and says where it can be reached, may have
// come to the cluster while this member was away: it becomes a peer, so that this member can catch up from it.
func (t *Transport) verdictOn(h hello) (verdict byte, refusal string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, removed := t.removed[h.from]; removed {
		return verdictRemoved, fmt.Sprintf("member %x has been removed from this cluster", h.from)
	}
	if p := t.peers[h.from]; p != nil {
		p.says(h.addrs)
		p.there()
		return verdictWelcome, ""
	}
	if !t.closed && len(h.addrs) > 0 && t.guests < maxGuests {
		t.guests++
		t.c.Logger.Info("a member that came to the cluster while this one was away is known now", "peer", hex(h.from), "addresses", h.addrs)
		t.setPeerLocked(h.from, h.addrs)
		return verdictWelcome, ""
	}
	return verdictRefused, fmt.Sprintf("member %x is not in this cluster, or has been removed from it", h.from)
}

// RemovePeer forgets a member and closes its connections; whenever it dials again, it is told that it was removed.
func (t *Transport) RemovePeer(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removed[id] = struct{}{}
	if p := t.peers[id]; p != nil {
		p.cancel()
		delete(t.peers, id)
	}
	for key, conn := range t.inbound {
		if key.from == id {
			_ = conn.Close()
		}
	}
}

// Close ends all connections and goroutines and closes the listeners.
func (t *Transport) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	t.cancel()
	var err error
	for _, l := range t.c.Listeners {
		if e := l.Close(); e != nil && !errors.Is(e, net.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	for _, conn := range t.inbound {
		_ = conn.Close()
	}
	for conn := range t.loose {
		_ = conn.Close()
	}
	t.mu.Unlock()
	t.wg.Wait()
	return err
}

// adopt keeps an open connection so that Close can end it; false after Close, with the connection closed.
func (t *Transport) adopt(conn net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = conn.Close()
		return false
	}
	t.loose[conn] = struct{}{}
	return true
}

// exchange keeps a connection under the form that it has after its own handshake.
func (t *Transport) exchange(conn, open net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.loose, conn)
	t.loose[open] = struct{}{}
}

// release closes a connection and forgets it.
func (t *Transport) release(conn net.Conn) {
	_ = conn.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.loose, conn)
}

// sleep waits, or returns false when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
