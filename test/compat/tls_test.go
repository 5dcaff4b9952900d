package compat

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/test/pki"
)

// certificates are those of a run with -tls; both systems have the same.
type certificates struct {
	dir        string
	ca         *pki.CA
	good       *pki.Pair
	revoked    *pki.Pair
	clientTLS  *tls.Config
	httpClient *http.Transport
}

var pairs *certificates // nil without -tls

func makePairs(dir string) (*certificates, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	c := &certificates{dir: dir, ca: pki.NewCA("compat")}
	c.ca.Issue(pki.Spec{CN: "member", Hosts: []string{"127.0.0.1", "localhost"}}).WriteTo(dir, "server")
	pki.Write(dir, "ca.pem", c.ca.PEM)
	c.good, c.revoked = c.ca.Issue(pki.Spec{CN: "client"}), c.ca.Issue(pki.Spec{CN: "revoked"})
	pki.Write(dir, "crl.der", c.ca.Revoke(c.revoked))
	c.clientTLS = c.as(c.good)
	c.clientTLS.ServerName = "127.0.0.1"
	c.httpClient = &http.Transport{TLSClientConfig: c.as(c.good), ForceAttemptHTTP2: true}
	return c, nil
}

// as is what a client with a certificate has.
func (c *certificates) as(p *pki.Pair) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(c.ca.Cert)
	config := &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}
	if p != nil {
		pair, err := tls.X509KeyPair(p.Cert, p.Key)
		if err != nil {
			panic(err)
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return config
}

func clientTLS() *tls.Config {
	if pairs == nil {
		return nil
	}
	return pairs.clientTLS
}

// secureFlags are for mutual TLS with clients and between members.
func secureFlags() []string {
	if pairs == nil {
		return nil
	}
	at := func(name string) string { return filepath.Join(pairs.dir, name) }
	var all []string
	for _, prefix := range []string{"--", "--peer-"} {
		all = append(all, prefix+"cert-file="+at("server.pem"), prefix+"key-file="+at("server-key.pem"), prefix+"trusted-ca-file="+at("ca.pem"), prefix+"client-cert-auth")
	}
	return append(all, "--client-crl-file="+at("crl.der"), "--peer-crl-file="+at("crl.der"), "--peer-cert-allowed-cn=member")
}

func urlScheme() string {
	if pairs != nil {
		return "https://"
	}
	return "http://"
}

// url is where a member's pages are, transport how a client gets there.
func (t *target) url(member int) string {
	return urlScheme() + t.cluster.Members[member].Client
}

func (t *target) transport() http.RoundTripper {
	if pairs != nil {
		return pairs.httpClient
	}
	return http.DefaultTransport
}

// TestCertificateUser makes calls in the name of the user whose name the client's certificate has.
func TestCertificateUser(t *testing.T) {
	if pairs == nil {
		t.Skip("no -tls")
	}
	guardedFile(t, "testdata/tls/certificate.txt")
}

// TestHandshakes compares what becomes of good and bad beginnings of a connection, as far as the client sees it.
func TestHandshakes(t *testing.T) {
	if pairs == nil {
		t.Skip("no -tls")
	}
	other := pki.NewCA("other")
	with := func(p *pki.Pair, change func(*tls.Config)) *tls.Config {
		c := pairs.as(p)
		if change != nil {
			change(c)
		}
		return c
	}
	protos := func(p ...string) func(*tls.Config) { return func(c *tls.Config) { c.NextProtos = p } }
	for _, c := range []struct {
		name   string
		config *tls.Config
		listed string // where docs/compat.md says that Trivet differs: its own class
	}{
		{"HTTP/2", with(pairs.good, protos("h2")), ""},
		{"HTTP/1.1", with(pairs.good, protos("http/1.1")), `TLS 1.3 "http/1.1" CN=member, HTTP/1`},
		{"both", with(pairs.good, protos("h2", "http/1.1")), ""},
		{"no protocol named", with(pairs.good, nil), ""},
		{"another protocol", with(pairs.good, protos("spdy/1")), ""},
		{"TLS 1.2", with(pairs.good, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), ""},
		{"TLS 1.1", with(pairs.good, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }), ""},
		{"another server name", with(pairs.good, func(c *tls.Config) { c.ServerName = "elsewhere" }), ""},
		{"an unknown server name, not verified", with(pairs.good, func(c *tls.Config) { c.ServerName, c.InsecureSkipVerify = "elsewhere", true }), ""},
		{"a client that trusts another CA", with(pairs.good, func(c *tls.Config) { c.RootCAs = x509.NewCertPool() }), ""},
		{"no certificate", with(nil, nil), ""},
		{"a certificate of another CA", with(other.Issue(pki.Spec{CN: "x"}), nil), ""},
		{"an expired certificate", with(pairs.ca.Issue(pki.Spec{CN: "x", NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}), nil), ""},
		{"a certificate for servers", with(pairs.ca.Issue(pki.Spec{CN: "x", Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}), nil), ""},
		{"a revoked certificate", with(pairs.revoked, nil), "remote error: tls: bad certificate"},
	} {
		if err := systems.begin(false); err != nil {
			t.Fatal(err)
		}
		a, b := class(systems.etcd, c.config), class(systems.trivet, c.config)
		want := a
		if c.listed != "" {
			want = c.listed
		}
		if b != want || a == "" {
			t.Errorf("%s: etcd %q, Trivet %q", c.name, a, b)
		}
		t.Logf("%s: %s", c.name, a)
	}
}

// TestVersionsAndCiphers compares which versions of TLS and which cipher suites both take after the flags that choose them.
func TestVersionsAndCiphers(t *testing.T) {
	if pairs == nil {
		t.Skip("no -tls")
	}
	version := func(low, high uint16) func(*tls.Config) {
		return func(c *tls.Config) { c.MinVersion, c.MaxVersion = low, high }
	}
	suites := func(of ...uint16) func(*tls.Config) {
		return func(c *tls.Config) { c.MaxVersion, c.CipherSuites = tls.VersionTLS12, of }
	}
	for _, flags := range [][]string{
		{"--tls-min-version=TLS1.3"},
		{"--tls-min-version=TLS1.2", "--tls-max-version=TLS1.2", "--cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"},
	} {
		back := systems.with(flags...)
		if err := systems.begin(true); err != nil {
			t.Fatal(err)
		}
		taken, refused := 0, 0
		for name, change := range map[string]func(*tls.Config){
			"TLS 1.2 and 1.3": version(tls.VersionTLS12, tls.VersionTLS13), "TLS 1.2": version(tls.VersionTLS12, tls.VersionTLS12),
			"TLS 1.3": version(tls.VersionTLS13, tls.VersionTLS13), "AES 128": suites(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
			"AES 256": suites(tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384), "ChaCha20": suites(tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
			"RSA": suites(tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
		} {
			config := pairs.as(pairs.good)
			change(config)
			a, b := class(systems.etcd, config), class(systems.trivet, config)
			if a != b {
				t.Errorf("%v, a client with %s: etcd %q, Trivet %q", flags, name, a, b)
			}
			if t.Logf("%v, a client with %s: %s", flags, name, a); strings.HasPrefix(a, "TLS") {
				taken++
			} else {
				refused++
			}
		}
		if taken < 2 || refused < 3 {
			t.Errorf("%v: %d clients were taken, %d refused", flags, taken, refused)
		}
		back()
		_ = systems.both(func(s *target) error { s.stop(); return nil }) // they have these flags
	}
}

// class is what a client sees of a handshake, and of a request after it.
func class(s *target, c *tls.Config) string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.cluster.Members[0].Client)
	if err != nil {
		return "not reached: " + err.Error()
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(patience))
	conn := tls.Client(raw, c)
	if err := conn.HandshakeContext(ctx); err != nil {
		return wordsOf(err)
	}
	state := conn.ConnectionState()
	suite := ""
	if state.Version < tls.VersionTLS13 { // 1.3 chooses by what the processor does fast
		suite = " " + tls.CipherSuiteName(state.CipherSuite)
	}
	agreed := fmt.Sprintf("%s%s %q %s", tls.VersionName(state.Version), suite, state.NegotiatedProtocol, state.PeerCertificates[0].Subject)
	hello := "GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	if state.NegotiatedProtocol == "h2" {
		hello = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	}
	if _, err := conn.Write([]byte(hello)); err != nil {
		return wordsOf(err)
	}
	first := make([]byte, 4)
	if _, err := io.ReadFull(conn, first); err != nil {
		return wordsOf(err)
	}
	if string(first) == "HTTP" {
		return agreed + ", HTTP/1"
	}
	if first[3] == 4 { // a frame of settings, of whatever length
		return agreed + ", HTTP/2"
	}
	return fmt.Sprintf("%s, %q", agreed, first)
}

// wordsOf an error without addresses and times.
func wordsOf(err error) string {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return "closed"
	}
	text, _, _ := strings.Cut(err.Error(), ": current time")
	return text
}
