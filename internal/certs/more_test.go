package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/test/pki"
)

// acceptAll lets the set meet everybody who comes to the world's port.
func (w *world) acceptAll() {
	go func() { // ends with the listener
		for {
			conn, err := w.l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				if t, _, err := w.set.Accept(ctx, conn); err == nil {
					t.Close()
				}
			}()
		}
	}()
}

// TestWithoutTLS: who begins without TLS is told so, and the log hears of it once for each cause.
func TestWithoutTLS(t *testing.T) {
	w := newWorld(t, nil)
	w.acceptAll()
	for range 3 {
		answer, err := http.Post("http://"+w.l.Addr().String(), "text/plain", strings.NewReader(strings.Repeat("x", 100_000)))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode != http.StatusBadRequest || string(body) != plainText || err != nil {
			t.Errorf("%s %q %v", answer.Status, body, err)
		}
	}
	for begin, want := range map[string]string{
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": "gRPC without TLS on a TLS port",
		"TRIVETP\n and more":               "a member without TLS on a TLS port",
		"\x00\x01\x02\x03\x04\x05":         "something that is not TLS",
	} {
		conn, err := net.Dial("tcp", w.l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(begin)); err != nil {
			t.Error(err)
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q: the connection was not closed", begin)
		}
		conn.Close()
		if w.log.count(want) != 1 {
			t.Errorf("%q: the log does not say %q", begin, want)
		}
	}
	if w.log.count("HTTP without TLS on a TLS port") != 1 {
		t.Error("three refusals for one cause are not one line")
	}
	// A look whether the port is open is not worth a line.
	conn, err := net.Dial("tcp", w.l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if w.log.count("closed during") != 0 {
		t.Error("a probe is logged")
	}
}

func TestHello(t *testing.T) {
	w := newWorld(t, nil)
	c := as(w.ca, w.ca.Issue(pki.Spec{CN: "alice"}))
	c.ServerName, c.InsecureSkipVerify, c.NextProtos = "db.example", true, []string{"h2", "http/1.1"}
	m := w.meet(c)
	if m.serverErr != nil || m.hello.ServerName != "db.example" || strings.Join(m.hello.Protos, " ") != "h2 http/1.1" ||
		m.server.ConnectionState().NegotiatedProtocol != "h2" {
		t.Errorf("%+v, %v", m.hello, m.serverErr)
	}
}

func TestComplaints(t *testing.T) {
	now := time.Now()
	c := complaints{}
	due := func(host, cause string, after time.Duration) (int, bool) {
		now = now.Add(after)
		return c.due(complaint{host, cause}, now)
	}
	for i, s := range []struct {
		host, cause string
		after       time.Duration
		skipped     int
		ok          bool
	}{
		{"a", "x", 0, 0, true}, {"a", "x", time.Second, 0, false}, {"a", "y", 0, 0, true}, {"b", "x", 0, 0, true},
		{"a", "x", 0, 0, false}, {"a", "x", complainEvery, 2, true}, {"a", "x", complainEvery, 0, true},
	} {
		if skipped, ok := due(s.host, s.cause, s.after); skipped != s.skipped || ok != s.ok {
			t.Errorf("step %d: %d %v", i, skipped, ok)
		}
	}
	logged := 0
	for i := range 10 * maxComplaints {
		if _, ok := due(string(rune(i))+"host", "z", 0); ok {
			logged++
		}
	}
	if len(c.made) > maxComplaints+1 || logged > maxComplaints+1 {
		t.Errorf("%d kept, %d logged", len(c.made), logged)
	}
}

// TestSelfSigned: made once and kept; made anew when over; broken ones are left alone and refused.
func TestSelfSigned(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "fixtures", "peer")
	log := slog.New(slog.DiscardHandler)
	cert, key, err := SelfSigned(dir, []string{"127.0.0.1", "db.example"}, time.Hour, log)
	if err != nil {
		t.Fatal(err)
	}
	read := func() string {
		t.Helper()
		a, err := os.ReadFile(cert)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(key)
		if err != nil {
			t.Fatal(err)
		}
		return string(a) + string(b)
	}
	first := read()
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Error("others may read the key", err)
	}
	if _, _, err := SelfSigned(dir, nil, time.Hour, log); err != nil || read() != first {
		t.Error("a certificate that is good was not kept", err)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil || pair.Leaf.VerifyHostname("db.example") != nil || pair.Leaf.VerifyHostname("127.0.0.1") != nil {
		t.Error(err)
	}
	if err := os.WriteFile(cert, []byte(first[:100]), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := SelfSigned(dir, nil, time.Hour, log); err == nil || !strings.Contains(err.Error(), "remove both") {
		t.Error("a broken certificate:", err)
	}
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	if _, _, err := SelfSigned(dir, nil, -time.Hour, log); err != nil {
		t.Fatal(err)
	}
	over := read()
	if _, _, err := SelfSigned(dir, []string{"127.0.0.1"}, time.Hour, log); err != nil || read() == over {
		t.Error("a certificate that is over was kept", err)
	}
}

// TestMembers: two members with certificates of their own making find each other, as do two with a CA; a stranger's
// certificate is refused by the one who dials too.
func TestMembers(t *testing.T) {
	w := newWorld(t, nil)
	l := w.set.Listen(w.l)
	connect := func(dialler *Set, host string) (in, out error) {
		t.Helper()
		raw, err := net.Dial("tcp", w.l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		done := make(chan error, 1)
		go func() {
			conn, err := accepted.(*Unopened).Open(ctx)
			if err == nil {
				_, err = io.Copy(conn, conn) // nil at the other's closing, without a goodbye
			}
			accepted.Close()
			done <- err
		}()
		conn, out := dialler.Dialled(raw, host).Open(ctx)
		if out == nil {
			if _, out = conn.Write([]byte("hello")); out == nil {
				_, out = io.ReadFull(conn, make([]byte, 5))
			}
			conn.Close()
		}
		raw.Close()
		return <-done, out
	}
	set := func(change func(*Options)) *Set {
		t.Helper()
		o := w.o
		change(&o)
		s, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if in, out := connect(w.set, "127.0.0.1"); in != nil || out != nil {
		t.Error(in, out)
	}
	if in, out := connect(w.set, "127.0.0.2"); in == nil || out == nil || !strings.Contains(out.Error(), "the certificate is for other names") {
		t.Error(in, out)
	}
	other := set(func(o *Options) { o.TrustedCAFile = pki.Write(w.dir, "other.pem", pki.NewCA("other").PEM) })
	if in, out := connect(other, "127.0.0.1"); in == nil || out == nil || !strings.Contains(out.Error(), "unknown authority") {
		t.Error(in, out)
	}
	unknown := set(func(o *Options) {
		o.CertFile, o.KeyFile = pki.NewCA("other").Issue(pki.Spec{CN: "x"}).WriteTo(w.dir, "x")
	})
	if in, out := connect(unknown, "127.0.0.1"); in == nil || out == nil || !strings.Contains(out.Error(), "the other side does not know the authority of this certificate") {
		t.Error(in, out)
	}
	if in, out := connect(set(func(o *Options) { o.TrustedCAFile, o.SelfSigned = "", true }), "127.0.0.9"); in != nil || out != nil {
		t.Error(in, out)
	}
	cert, err := tls.LoadX509KeyPair(w.o.CertFile, w.o.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	crl := pki.Write(w.dir, "peers.der", w.ca.Revoke(&pki.Pair{X509: cert.Leaf}))
	if _, out := connect(set(func(o *Options) { o.CRLFile = crl }), "127.0.0.1"); !errors.Is(out, errRevoked) {
		t.Error("who dials a member with a revoked certificate:", out)
	}
	if _, out := connect(set(func(o *Options) { o.AllowedCNs = []string{"x"} }), "127.0.0.1"); !errors.Is(out, errNotAllowed) {
		t.Error("who dials a member with another's name:", out)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	w := newWorld(t, nil)
	for name, c := range map[string]struct {
		change func(*Options)
		want   string
	}{
		"no key":      {func(o *Options) { o.KeyFile = "" }, "a certificate and its key belong together"},
		"dialler key": {func(o *Options) { o.ClientKeyFile = "x" }, "for dialling and its key belong together"},
		"both names":  {func(o *Options) { o.AllowedCNs, o.AllowedHostnames = []string{"a"}, []string{"b"} }, "exclude one another"},
		"no CA":       {func(o *Options) { o.TrustedCAFile = "none.pem" }, "trusted CA: stat none.pem"},
		"empty CA":    {func(o *Options) { o.TrustedCAFile = pki.Write(w.dir, "empty", nil) }, "there is no certificate in it"},
		"not a list":  {func(o *Options) { o.CRLFile = o.CertFile }, "revocation list: "},
		"other key":   {func(o *Options) { o.KeyFile = pki.Write(w.dir, "k", w.ca.Issue(pki.Spec{}).Key) }, "private key does not match public key"},
	} {
		o := w.o
		c.change(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// memFS holds four files.
type memFS map[string][]byte

func (m memFS) ReadFile(name string) ([]byte, error)  { return m[name], nil }
func (m memFS) Stat(name string) (os.FileInfo, error) { return memInfo{name, len(m[name])}, nil }

type memInfo struct {
	name string
	size int
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return int64(i.size) }
func (i memInfo) Mode() os.FileMode  { return 0o600 }
func (i memInfo) ModTime() time.Time { return time.Now() }
func (i memInfo) IsDir() bool        { return false }
func (i memInfo) Sys() any           { return nil }

// FuzzReload: whatever the files hold, nothing panics, there is always something to serve with, and good files are taken
// again afterwards.
func FuzzReload(f *testing.F) {
	ca := pki.NewCA("one")
	a, b := ca.Issue(pki.Spec{CN: "a"}), ca.Issue(pki.Spec{CN: "b"})
	crl := ca.Revoke(b)
	f.Add(b.Cert, b.Key, ca.PEM, crl)
	f.Add(b.Cert, a.Key, ca.PEM[:80], crl[:40])
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), []byte{}, []byte("x"), []byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, cert, key, pool, revoked []byte) {
		fs := memFS{"cert": a.Cert, "key": a.Key, "ca": ca.PEM, "crl": crl}
		s, err := New(Options{
			CertFile: "cert", KeyFile: "key", TrustedCAFile: "ca", CRLFile: "crl", FS: fs, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		fs["cert"], fs["key"], fs["ca"], fs["crl"] = cert, key, pool, revoked
		g := s.current()
		if g.server == nil || g.client == nil || g.pair.Leaf == nil || g.pool == nil || g.revoked == nil {
			t.Errorf("nothing to serve with: %+v", g)
		}
		fs["cert"], fs["key"], fs["ca"], fs["crl"] = a.Cert, a.Key, ca.PEM, crl
		if g := s.current(); g.pair.Leaf.Subject.CommonName != "a" || !g.revoked[string(b.X509.SerialNumber.Bytes())] || len(g.revoked) != 1 {
			t.Errorf("good files are not taken again: %+v", g)
		}
	})
}
