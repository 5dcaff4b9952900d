package transport

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/certs"
	"github.com/trivet-kv/trivet/test/pki"
)

// pieces counts the writes to a connection that is not one of the kernel's.
type pieces struct {
	net.Conn
	writes [][]byte
}

func (p *pieces) Write(b []byte) (int, error) {
	p.writes = append(p.writes, bytes.Clone(b))
	return len(b), nil
}

// TestJoin: to a connection that takes one piece at a time small pieces go together, and nothing is lost or reordered.
func TestJoin(t *testing.T) {
	var b buffer
	var want []byte
	for i, n := range []int{1, 5000, 30_000, 40_000, 2, 100_000, 7, 60_000, 5_000} {
		data := bytes.Repeat([]byte{byte(i + 1)}, n)
		start := b.begin(frameMessages)
		appendMessage(&b, appendOf(1, 2, uint64(i+1), data), 1)
		b.end(start)
	}
	b.each(0, func(p []byte) { want = append(want, p...) })
	p := &pieces{}
	if err := b.writeTo(p); err != nil {
		t.Fatal(err)
	}
	if got := bytes.Join(p.writes, nil); !bytes.Equal(got, want) {
		t.Errorf("%d bytes became %d, or others", len(want), len(got))
	}
	if len(p.writes) > 10 {
		t.Errorf("%d bytes in %d writes", len(want), len(p.writes))
	}
}

// securePair runs two members over TLS; each dials with the set at its place.
func securePair(t *testing.T, sets [2]*certs.Set, listening [2]*certs.Set) (out [2]*peerSpec) {
	t.Helper()
	var listeners [2]net.Listener
	peers := map[uint64][]string{}
	for i := range listeners {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		peers[uint64(i+1)] = []string{l.Addr().String()}
		if listeners[i] = l; listening[i] != nil {
			listeners[i] = listening[i].Listen(l)
		}
	}
	for i := range out {
		fs, log := vfs.NewMem(), &lockedBuffer{}
		tr, err := New(Config{
			ClusterID: 1, ID: uint64(i + 1), Peers: peers, Listeners: listeners[i : i+1], FS: fs, Incoming: "incoming",
			Logger: slog.New(slog.NewTextHandler(log, nil)),
			Dial: func(ctx context.Context, addr string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
				if err != nil || sets[i] == nil {
					return conn, err
				}
				return sets[i].Dialled(conn, "127.0.0.1"), nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tr.Close() })
		out[i] = &peerSpec{tr, &recorder{serve: func(_ context.Context, _ uint64, _ byte, body []byte) ([]byte, error) { return body, nil }}, fs, log}
	}
	for _, s := range out {
		s.Transport.Serve(s.recorder)
	}
	return out
}

func setOf(t *testing.T, ca *pki.CA, change func(*certs.Options)) *certs.Set {
	t.Helper()
	dir := t.TempDir()
	cert, key := ca.Issue(pki.Spec{CN: "member", Hosts: []string{"127.0.0.1"}}).WriteTo(dir, "member")
	o := certs.Options{Kind: "peer", CertFile: cert, KeyFile: key, TrustedCAFile: pki.Write(dir, "ca.pem", ca.PEM), CheckAddress: true, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&o)
	}
	s, err := certs.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatal(what)
		}
	}
}

// TestSecure: messages, calls, questions and a checkpoint over TLS, and the death of a member.
func TestSecure(t *testing.T) {
	ca := pki.NewCA("ca")
	sets := [2]*certs.Set{setOf(t, ca, nil), setOf(t, ca, nil)}
	members := securePair(t, sets, sets)
	a, b := members[0], members[1]
	within(t, "the members have not found each other", func() bool {
		a.recorder.mu.Lock()
		defer a.recorder.mu.Unlock()
		return len(a.events) > 0 && a.events[len(a.events)-1] == "up 2"
	})
	for i := range uint64(50) {
		a.Send([]*raftpb.Message{heartbeat(1, 2), appendOf(1, 2, i+1, make([]byte, 100_000))})
		time.Sleep(100 * time.Microsecond)
	}
	writeCheckpoint(t, a.fs, "checkpoint")
	sent := make(chan error, 1)
	a.SendSnapshot(snapshotOf(1, 2, 10), "checkpoint", func(err error) { sent <- err })
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	compareCheckpoint(t, b.fs, b.snapshots[0])
	within(t, "the messages have not arrived", func() bool { return b.received() >= 100 })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	addr := b.c.Listeners[0].Addr().String()
	answer, err := Ask(ctx, func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return sets[0].Dialled(conn, "127.0.0.1"), nil
	}, addr, 1, []byte("question"))
	if err != nil || string(answer) != "question" {
		t.Errorf("a question over TLS: %q, %v", answer, err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	within(t, "the death of the peer was not noticed", func() bool {
		a.recorder.mu.Lock()
		defer a.recorder.mu.Unlock()
		return a.events[len(a.events)-1] == "down 2 gone=true"
	})
}

// elsewhere resolves nothing.
type elsewhere struct{}

func (elsewhere) LookupAddr(context.Context, string) ([]string, error) { return nil, nil }
func (elsewhere) LookupHost(context.Context, string) ([]string, error) { return nil, nil }

// TestSecureMismatch: a member with TLS and one without, either way round, and a certificate used from a foreign address:
// both sides say what is wrong.
func TestSecureMismatch(t *testing.T) {
	ca := pki.NewCA("ca")
	secure := setOf(t, ca, nil)
	foreign := setOf(t, ca, func(o *certs.Options) {
		o.ClientCertFile, o.ClientKeyFile = ca.Issue(pki.Spec{CN: "member", Hosts: []string{"10.9.9.9"}}).WriteTo(t.TempDir(), "foreign")
	})
	checks := setOf(t, ca, func(o *certs.Options) { o.Resolver = elsewhere{} })
	for name, c := range map[string]struct {
		dial, listen [2]*certs.Set
		says         [2]string
	}{
		"plain to TLS": {[2]*certs.Set{nil, nil}, [2]*certs.Set{nil, secure}, [2]string{"a member without TLS on a TLS port", ""}},
		"TLS to plain": {[2]*certs.Set{secure, nil}, [2]*certs.Set{nil, nil}, [2]string{"does not speak TLS", "it began with TLS, and this port is without"}},
		"address":      {[2]*certs.Set{foreign, secure}, [2]*certs.Set{checks, checks}, [2]string{"does not name the address that its owner connects from", ""}},
	} {
		members := securePair(t, c.dial, c.listen)
		for i, want := range c.says {
			within(t, name+": the log of member "+string(rune('1'+i))+" does not say "+want, func() bool { return strings.Contains(members[i].log.String(), want) })
		}
		for _, m := range members {
			_ = m.Close()
		}
	}
}
