package gateway_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/trivet-kv/trivet/internal/certs"
	"github.com/trivet-kv/trivet/internal/gateway"
	"github.com/trivet-kv/trivet/test/pki"
)

// secured is a member whose door speaks TLS both ways, and no TLS on the same port if plain is set.
type secured struct {
	*member
	addr string
	ca   *pki.CA
}

func startSecured(t *testing.T, plain bool, change func(*gateway.Options)) *secured {
	t.Helper()
	dir, ca := t.TempDir(), pki.NewCA("ca")
	s := &secured{ca: ca}
	cert, key := ca.Issue(pki.Spec{CN: "server", Hosts: []string{"127.0.0.1"}}).WriteTo(dir, "server")
	set, err := certs.New(certs.Options{
		Kind: "client", CertFile: cert, KeyFile: key, TrustedCAFile: pki.Write(dir, "ca.pem", ca.PEM), CRLFile: pki.Write(dir, "crl", ca.Revoke()),
		NextProtos: []string{"h2", "http/1.1"}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.member = start(t, func(o *gateway.Options) {
		s.addr = o.Clients[0].Addr().String()
		o.Clients[0].TLS, o.Clients[0].Plain, o.ClientCertAuth = set, plain, true
		if change != nil {
			change(o)
		}
	})
	return s
}

// as is the configuration of a client with a name.
func (s *secured) as(name string, protos ...string) *tls.Config {
	p := s.ca.Issue(pki.Spec{CN: name})
	pair, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(s.ca.Cert)
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, NextProtos: protos}
}

func (s *secured) grpc(t *testing.T, c credentials.TransportCredentials) pb.KVClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+s.addr, grpc.WithTransportCredentials(c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return pb.NewKVClient(conn)
}

func fetch(t *testing.T, c *tls.Config, http2 bool, method, url, body string) (status int, proto int, text string) {
	t.Helper()
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: http2, DisableKeepAlives: true}}
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, answer.ProtoMajor, string(b)
}

// TestSecure: gRPC, pages and the JSON gateway share a port under TLS, whichever protocols a client offers; and, if both are
// wanted, with clients without TLS.
func TestSecure(t *testing.T) {
	for _, plain := range []bool{false, true} {
		s := startSecured(t, plain, nil)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := s.grpc(t, credentials.NewTLS(s.as("alice"))).Put(ctx, &pb.PutRequest{Key: []byte("foo"), Value: []byte("bar")}); err != nil {
			t.Error(err)
		}
		for _, http2 := range []bool{false, true} {
			status, proto, body := fetch(t, s.as("alice"), http2, "POST", "https://"+s.addr+"/v3/kv/range", `{"key":"Zm9v"}`)
			if status != http.StatusOK || !strings.Contains(body, `"value":"YmFy"`) || http2 != (proto == 2) {
				t.Errorf("HTTP/%d: %d %s", proto, status, body)
			}
			if status, _, body := fetch(t, s.as("alice"), http2, "GET", "https://"+s.addr+"/health", ""); status != http.StatusOK {
				t.Errorf("%d %s", status, body)
			}
		}
		status, _, body := fetch(t, nil, false, "GET", "http://"+s.addr+"/health", "")
		if want := map[bool]int{true: http.StatusOK, false: http.StatusBadRequest}[plain]; status != want {
			t.Errorf("without TLS: %d %s", status, body)
		}
		// A client without a certificate is told so in the handshake.
		c := s.as("alice")
		c.Certificates = nil
		conn, err := tls.Dial("tcp", s.addr, c)
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "certificate required") {
			t.Errorf("without a certificate: %v", err)
		}
	}
}

// TestProxiedGRPC: gRPC calls over a connection that could have spoken HTTP/1 too, as those of proxies, reach the services.
func TestProxiedGRPC(t *testing.T) {
	s := startSecured(t, false, nil)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	kv := s.grpc(t, proxied{credentials.NewTLS(s.as("alice")), s.as("alice", "h2", "http/1.1")})
	if _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("a")}); err != nil {
		t.Error(err)
	}
	stream, err := kv.RangeStream(ctx, &pb.RangeRequest{Key: []byte("a")})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); err != nil || len(r.RangeResponse.Kvs) != 1 {
		t.Error(r, err)
	}
}

// proxied offers both protocols.
type proxied struct {
	credentials.TransportCredentials
	config *tls.Config
}

func (p proxied) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c := p.config.Clone()
	c.ServerName = "127.0.0.1"
	conn := tls.Client(raw, c)
	err := conn.HandshakeContext(ctx)
	return conn, credentials.TLSInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, err
}

// TestSecureSplit: with ports of their own for HTTP, each port refuses the other's clients.
func TestSecureSplit(t *testing.T) {
	var pages string
	s := startSecured(t, false, func(o *gateway.Options) {
		l := listen(t)
		pages = l.Addr().String()
		o.HTTP = []gateway.Door{{Listener: l, TLS: o.Clients[0].TLS}}
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := s.grpc(t, credentials.NewTLS(s.as("alice"))).Put(ctx, &pb.PutRequest{Key: []byte("a")}); err != nil {
		t.Error(err)
	}
	if status, _, body := fetch(t, s.as("alice"), true, "GET", "https://"+pages+"/health", ""); status != http.StatusOK {
		t.Errorf("%d %s", status, body)
	}
	conn, err := tls.Dial("tcp", s.addr, func() *tls.Config { c := s.as("alice", "http/1.1"); c.ServerName = "127.0.0.1"; return c }())
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		_, _ = conn.Write([]byte("GET /health HTTP/1.1\r\nHost: x\r\n\r\n"))
		if b, err := io.ReadAll(conn); len(b) > 0 {
			t.Errorf("the port for gRPC alone answered HTTP: %q, %v", b, err)
		}
		conn.Close()
	}
}

// TestSlowHandshake: a client that begins with TLS and stops is closed when its time is up, and holds nobody up.
func TestSlowHandshake(t *testing.T) {
	s := startSecured(t, false, func(o *gateway.Options) { o.SilentTimeout = 200 * time.Millisecond })
	slow, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := slow.Write([]byte{0x16, 3, 1, 2}); err != nil {
		t.Fatal(err)
	}
	// And one that does its handshake and says nothing then.
	c := s.as("alice", "h2")
	c.ServerName = "127.0.0.1"
	silent, err := tls.Dial("tcp", s.addr, c)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, conn := range []net.Conn{slow, silent} {
		_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.ReadAll(conn); err != nil && strings.Contains(err.Error(), "i/o timeout") {
			t.Error("a client that stopped in the middle was not closed")
		}
	}
}
