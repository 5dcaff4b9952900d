package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/test/pki"
)

const patience = 30 * time.Second

// lines is a log that a test can look into.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// world is a set with files in a folder, a CA that signed them, and a port that it accepts at.
type world struct {
	t   *testing.T
	dir string
	ca  *pki.CA
	log *lines
	o   Options
	set *Set
	l   net.Listener
}

// newWorld demands certificates of clients.
func newWorld(t *testing.T, change func(*Options)) *world {
	w := &world{t: t, dir: t.TempDir(), ca: pki.NewCA("one"), log: &lines{}}
	w.write(w.ca.Issue(pki.Spec{CN: "server", Hosts: []string{"127.0.0.1"}}))
	w.o = Options{
		Kind: "client", CertFile: filepath.Join(w.dir, "server.pem"), KeyFile: filepath.Join(w.dir, "server-key.pem"),
		TrustedCAFile: pki.Write(w.dir, "ca.pem", w.ca.PEM), CRLFile: pki.Write(w.dir, "crl.der", w.ca.Revoke()),
		NextProtos: []string{"h2", "http/1.1"}, Logger: w.log.logger(),
	}
	if change != nil {
		change(&w.o)
	}
	var err error
	if w.set, err = New(w.o); err != nil {
		t.Fatal(err)
	}
	if w.l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.l.Close() })
	return w
}

func (w *world) write(p *pki.Pair) { p.WriteTo(w.dir, "server") }

// met is both ends of a connection after its handshake.
type met struct {
	client, server *tls.Conn
	hello          Hello
	clientErr      error
	serverErr      error
}

// meet connects with a configuration of the client and waits for what both sides make of it.
func (w *world) meet(c *tls.Config) met {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	raw, err := net.Dial("tcp", w.l.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { raw.Close() })
	accepted, err := w.l.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { accepted.Close() })
	var m met
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.server, m.hello, m.serverErr = w.set.Accept(ctx, accepted)
		if m.serverErr != nil {
			accepted.Close()
			return
		}
		_, m.serverErr = m.server.Write([]byte("hi"))
	}()
	m.client = tls.Client(raw, c)
	_ = raw.SetDeadline(time.Now().Add(patience))
	if _, m.clientErr = io.ReadFull(m.client, make([]byte, 2)); m.clientErr != nil {
		raw.Close()
	}
	<-done
	return m
}

func pool(ca *pki.CA) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.Cert)
	return p
}

// as is a client that trusts ca and shows a pair, if there is one.
func as(ca *pki.CA, p *pki.Pair) *tls.Config {
	c := &tls.Config{ServerName: "127.0.0.1", RootCAs: pool(ca), NextProtos: []string{"h2"}}
	if p != nil {
		pair, err := tls.X509KeyPair(p.Cert, p.Key)
		if err != nil {
			panic(err)
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return c
}

// TestReload: a certificate, a CA and a revocation list are replaced, in many ways, and what begins afterwards sees them;
// the connection from before goes on.
// With etcd a new CA needs a restart (E#11555).
func TestReload(t *testing.T) {
	w := newWorld(t, nil)
	alice := w.ca.Issue(pki.Spec{CN: "alice"})
	old := w.meet(as(w.ca, alice))
	if old.clientErr != nil || old.serverErr != nil {
		t.Fatal(old.clientErr, old.serverErr)
	}
	for i := range 5 { // several times within the steps in which file systems tell time
		name := fmt.Sprintf("server %d", i)
		w.write(w.ca.Issue(pki.Spec{CN: name, Hosts: []string{"127.0.0.1"}}))
		m := w.meet(as(w.ca, alice))
		if m.clientErr != nil {
			t.Fatal(m.clientErr)
		}
		if got := m.client.ConnectionState().PeerCertificates[0].Subject.CommonName; got != name {
			t.Errorf("after the certificate of %q was written, %q was shown", name, got)
		}
	}
	pki.Write(w.dir, "crl.der", w.ca.Revoke(alice))
	if m := w.meet(as(w.ca, alice)); !errors.Is(m.serverErr, errRevoked) || m.clientErr == nil {
		t.Errorf("a revoked client: %v, %v", m.serverErr, m.clientErr)
	}
	next := pki.NewCA("two")
	pki.Write(w.dir, "ca.pem", next.PEM)
	bob := w.ca.Issue(pki.Spec{CN: "bob"})
	if m := w.meet(as(w.ca, bob)); m.serverErr == nil || !strings.Contains(m.serverErr.Error(), "unknown authority") {
		t.Errorf("a client of the old CA: %v", m.serverErr)
	}
	pki.Write(w.dir, "ca.pem", append(bytes.Clone(next.PEM), w.ca.PEM...))
	for _, m := range []met{w.meet(as(w.ca, bob)), w.meet(as(w.ca, next.Issue(pki.Spec{CN: "carol"})))} {
		if m.serverErr != nil || m.clientErr != nil {
			t.Errorf("with both CAs: %v, %v", m.serverErr, m.clientErr)
		}
	}
	if _, err := old.server.Write([]byte("still here")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(old.client, make([]byte, 10)); err != nil {
		t.Error("the connection from before:", err)
	}
}

// TestBrokenFilesKeepTheOld: whatever is wrong with the files, handshakes go on with those before, the log says once
// what is wrong, and good files are taken again.
func TestBrokenFilesKeepTheOld(t *testing.T) {
	w := newWorld(t, nil)
	alice := w.ca.Issue(pki.Spec{CN: "alice"})
	good := map[string][]byte{}
	for _, name := range []string{"server.pem", "server-key.pem", "ca.pem", "crl.der"} {
		b, err := os.ReadFile(filepath.Join(w.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		good[name] = b
	}
	other := w.ca.Issue(pki.Spec{CN: "other"})
	for name, whole := range good {
		for what, content := range map[string][]byte{
			"empty": {}, "half": whole[:len(whole)/2], "one byte less": whole[:len(whole)-2], "nonsense": []byte("nonsense"), "gone": nil,
			"another's":            map[string][]byte{"server.pem": other.Cert, "server-key.pem": other.Key}[name],
			"two, one of them cut": append(bytes.Clone(w.ca.PEM), w.ca.PEM[:100]...),
		} {
			if content == nil && what != "gone" {
				continue
			}
			path := filepath.Join(w.dir, name)
			if what == "gone" {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			} else if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			before := w.log.count("cannot be used")
			for range 3 {
				m := w.meet(as(w.ca, alice))
				if m.clientErr != nil || m.serverErr != nil {
					t.Errorf("%s, %s: %v, %v", name, what, m.clientErr, m.serverErr)
				} else if got := m.client.ConnectionState().PeerCertificates[0].Subject.CommonName; got != "server" {
					t.Errorf("%s, %s: the certificate of %q was shown", name, what, got)
				}
			}
			if n := w.log.count("cannot be used") - before; n != 1 {
				t.Errorf("%s, %s: the log says %d times that it cannot be used", name, what, n)
			}
			pki.Write(w.dir, name, whole)
			if m := w.meet(as(w.ca, alice)); m.clientErr != nil {
				t.Errorf("%s, good again after %s: %v", name, what, m.clientErr)
			}
		}
	}
	w.write(w.ca.Issue(pki.Spec{CN: "new", Hosts: []string{"127.0.0.1"}}))
	m := w.meet(as(w.ca, alice))
	if m.clientErr != nil || m.client.ConnectionState().PeerCertificates[0].Subject.CommonName != "new" {
		t.Errorf("good files after broken ones are not taken: %v", m.clientErr)
	}
}

// TestNoResumptionAcrossReload: a session is resumed while the files stay, not after a reload; and a certificate that was
// revoked is refused either way.
func TestNoResumptionAcrossReload(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		w := newWorld(t, nil)
		alice := w.ca.Issue(pki.Spec{CN: "alice"})
		c := as(w.ca, alice)
		c.ClientSessionCache, c.MaxVersion = tls.NewLRUClientSessionCache(0), version
		for i, want := range []bool{false, true} {
			m := w.meet(c)
			if m.clientErr != nil || m.server.ConnectionState().DidResume != want {
				t.Errorf("%s, connection %d: %v, resumed: %v", tls.VersionName(version), i, m.clientErr, !want)
			}
		}
		pki.Write(w.dir, "ca.pem", append(bytes.Clone(w.ca.PEM), pki.NewCA("two").PEM...))
		if m := w.meet(c); m.clientErr != nil || m.server.ConnectionState().DidResume {
			t.Errorf("%s: after a reload: %v", tls.VersionName(version), m.clientErr)
		}
		pki.Write(w.dir, "crl.der", w.ca.Revoke(alice))
		if m := w.meet(c); !errors.Is(m.serverErr, errRevoked) {
			t.Errorf("%s: a revoked client with a session: %v", tls.VersionName(version), m.serverErr)
		}
	}
}

// hungFS stops answering when told to.
type hungFS struct {
	systemFS
	hang chan struct{} // Stat waits while it is not nil and open
}

func (f *hungFS) Stat(name string) (os.FileInfo, error) {
	if f.hang != nil {
		<-f.hang
	}
	return f.systemFS.Stat(name)
}

func TestHungDisk(t *testing.T) {
	fs := &hungFS{}
	w := newWorld(t, func(o *Options) { o.FS = fs })
	fs.hang = make(chan struct{})
	defer close(fs.hang)
	for range 2 {
		if m := w.meet(as(w.ca, w.ca.Issue(pki.Spec{CN: "alice"}))); m.clientErr != nil || m.serverErr != nil {
			t.Error(m.clientErr, m.serverErr)
		}
	}
	if w.log.count("cannot be looked at") != 1 {
		t.Error("the log does not say once that the disk hangs")
	}
}

// TestRefusals: who is refused, for which reason, in words that name it.
func TestRefusals(t *testing.T) {
	w := newWorld(t, nil)
	stranger := pki.NewCA("stranger")
	for name, c := range map[string]struct {
		config *tls.Config
		want   string
	}{
		"unknown authority":      {as(w.ca, stranger.Issue(pki.Spec{CN: "x"})), "the certificate is of an unknown authority"},
		"expired":                {as(w.ca, w.ca.Issue(pki.Spec{CN: "x", NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})), "has expired or is not valid yet; renew it, and compare the clocks (CN=x is valid from"},
		"none":                   {as(w.ca, nil), "the client has no certificate"},
		"client knows no server": {as(stranger, w.ca.Issue(pki.Spec{CN: "x"})), "the other side refuses this certificate"},
		"old version":            {&tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}, "no version of TLS in common"},
	} {
		m := w.meet(c.config)
		if m.serverErr == nil || !strings.Contains(m.serverErr.Error(), c.want) {
			t.Errorf("%s: %v", name, m.serverErr)
		}
		if m.clientErr == nil {
			t.Errorf("%s: the client noticed nothing", name)
		}
	}
	for name, c := range map[string]struct {
		change func(*Options)
		want   error
	}{
		"common name":         {func(o *Options) { o.AllowedCNs = []string{"bad", "good"} }, nil},
		"other common name":   {func(o *Options) { o.AllowedCNs = []string{"bad"} }, errNotAllowed},
		"hostname":            {func(o *Options) { o.AllowedHostnames = []string{"x.example", "db.example"} }, nil},
		"address as hostname": {func(o *Options) { o.AllowedHostnames = []string{"10.0.0.1"} }, nil},
		"other hostname":      {func(o *Options) { o.AllowedHostnames = []string{"x.example"} }, errNotAllowed},
		"other address":       {func(o *Options) { o.CheckAddress, o.Resolver = true, names{} }, errAddress},
		"name of the address": {func(o *Options) { o.CheckAddress, o.Resolver = true, names{addr: "db.example."} }, nil},
		"address of the name": {func(o *Options) { o.CheckAddress, o.Resolver = true, names{host: "127.0.0.1"} }, nil},
	} {
		w := newWorld(t, c.change)
		m := w.meet(as(w.ca, w.ca.Issue(pki.Spec{CN: "good", Hosts: []string{"db.example", "10.0.0.1"}})))
		if (c.want == nil) != (m.serverErr == nil) || !errors.Is(m.serverErr, c.want) {
			t.Errorf("%s: %v", name, m.serverErr)
		}
	}
}

// names resolves one name each way.
type names struct{ addr, host string }

func (n names) LookupAddr(context.Context, string) ([]string, error) {
	if n.addr == "" {
		return nil, errors.New("no such address")
	}
	return []string{n.addr}, nil
}

func (n names) LookupHost(context.Context, string) ([]string, error) {
	if n.host == "" {
		return nil, errors.New("no such host")
	}
	return []string{n.host}, nil
}
