package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/trivet-kv/trivet/test/pki"
)

// keys are what the members of a cluster with TLS hold in their files, and what its clients show.
type keys struct {
	dir   string
	shown atomic.Pointer[tls.Certificate]
	pool  *x509.CertPool
}

func newKeys(t *testing.T, trusted ...*pki.CA) *keys {
	k := &keys{dir: t.TempDir(), pool: x509.NewCertPool()}
	for _, ca := range trusted {
		k.pool.AddCert(ca.Cert)
	}
	return k
}

// show makes clients show another certificate from now on.
func (k *keys) show(p *pki.Pair) {
	pair, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		panic(err)
	}
	k.shown.Store(&pair)
}

func (k *keys) config() *tls.Config {
	return &tls.Config{RootCAs: k.pool, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return k.shown.Load(), nil }}
}

// as is a client's configuration with a certificate of its own.
func (k *keys) as(p *pki.Pair) *tls.Config {
	pair, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		panic(err)
	}
	return &tls.Config{RootCAs: k.pool, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }}
}

// mutual are the flags for TLS both ways between members and to clients.
func (k *keys) mutual() []string {
	at := func(name string) string { return filepath.Join(k.dir, name) }
	return []string{
		"--cert-file=" + at("server.pem"), "--key-file=" + at("server-key.pem"), "--trusted-ca-file=" + at("ca.pem"), "--client-cert-auth", "--client-crl-file=" + at("crl.der"),
		"--peer-cert-file=" + at("server.pem"), "--peer-key-file=" + at("server-key.pem"), "--peer-trusted-ca-file=" + at("ca.pem"), "--peer-client-cert-auth", "--peer-crl-file=" + at("crl.der"),
		"--peer-cert-allowed-cn=member",
	}
}

// tryPut is one put with a configuration of its own.
func tryPut(m *member, c *tls.Config) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{m.clientURL}, TLS: c, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = client.Put(ctx, "try", "it")
	return err
}

// refusal is what a member's listener says to a client that it does not want.
func refusal(url string, c *tls.Config) error {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", strings.TrimPrefix(url, "https://"), c)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = conn.Read(make([]byte, 1))
	return err
}

// TestTLS: three members with TLS both ways. Under writers, and watchers that stay connected, everything is replaced: the
// certificates, the CA, the revocation list; then the leader is killed and comes back under the new CA.
func TestTLS(t *testing.T) {
	old, next := pki.NewCA("old"), pki.NewCA("next")
	k := newKeys(t, old, next)
	server := func(ca *pki.CA) {
		ca.Issue(pki.Spec{CN: "member", Hosts: []string{"127.0.0.1"}}).WriteTo(k.dir, "server")
	}
	server(old)
	pki.Write(k.dir, "ca.pem", old.PEM)
	pki.Write(k.dir, "crl.der", old.Revoke())
	alice := old.Issue(pki.Spec{CN: "alice"})
	k.show(alice)
	c := newClusterOver(t, k.config(), 3, k.mutual()...)
	first := c.members[0]
	var metrics string
	first.pages, metrics = strings.Replace(loopback(freePort(t)), "http", "https", 1), strings.Replace(loopback(freePort(t)), "http", "https", 1)
	first.args = append(first.args, "--listen-client-http-urls="+first.pages, "--listen-metrics-urls="+metrics)
	c.start(c.members...)

	// A client of one member that is not killed must keep its one connection.
	leader := c.leader()
	stays := c.others(leader)[0]
	var dials atomic.Int64
	steady, err := clientv3.New(clientv3.Config{
		Endpoints: []string{stays.clientURL}, TLS: k.as(alice), Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			dials.Add(1)
			var d net.Dialer
			return d.DialContext(ctx, "tcp", strings.TrimPrefix(addr, "https://"))
		})},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer steady.Close()
	watcher := audit(t, "the steady client", steady, 2)
	writers, each := 20, 400
	if testing.Short() {
		writers, each = 10, 200
	}
	l := startLoad(t, c.client(), writers, each)

	l.reach(10)
	pki.Write(k.dir, "ca.pem", append(append([]byte{}, old.PEM...), next.PEM...)) // first both, so that nobody is shut out
	bob := next.Issue(pki.Spec{CN: "bob"})
	if err := tryPut(stays, k.as(bob)); err != nil {
		t.Error("a client of the CA that was added:", err)
	}
	l.reach(20)
	server(next)
	k.show(bob)
	l.reach(30)
	carol := next.Issue(pki.Spec{CN: "carol"})
	pki.Write(k.dir, "ca.pem", next.PEM)
	pki.Write(k.dir, "crl.der", next.Revoke(carol))
	for _, m := range c.members {
		if err := refusal(m.clientURL, k.as(alice)); err == nil || !strings.Contains(err.Error(), "unknown certificate authority") {
			t.Errorf("a client of the CA that is gone, at %s: %v", m.name, err)
		}
		listeners := []string{m.clientURL}
		if m == first {
			listeners = append(listeners, first.pages, metrics)
		}
		for _, url := range listeners {
			if err := refusal(url, k.as(carol)); err == nil || !strings.Contains(err.Error(), "bad certificate") {
				t.Errorf("a client that was revoked, at %s, %s: %v", m.name, url, err)
			}
		}
		m.p.expect(10*time.Second, 0, "rejected connection on client endpoint: the certificate is of an unknown authority", "127.0.0.1:", "CN=alice")
		m.p.expect(10*time.Second, 0, "rejected connection on client endpoint: the certificate is revoked", "CN=carol")
		if got := shownBy(t, m, k.as(bob)); got.Issuer.CommonName != "next" {
			t.Errorf("%s shows a certificate of %q", m.name, got.Issuer.CommonName)
		}
	}
	l.reach(50)
	c.kill(leader)
	l.reach(70)
	// Half a certificate, and a member that starts nevertheless with what the others hold.
	c.start(leader)
	l.reach(80)
	if _, err := exec.Command("cp", filepath.Join(k.dir, "crl.der"), filepath.Join(k.dir, "server.pem")).CombinedOutput(); err != nil {
		t.Fatal(err)
	}
	if err := tryPut(stays, k.as(bob)); err != nil {
		t.Error("while the certificate's file is broken:", err)
	}
	stays.p.expect(10*time.Second, 0, "a certificate file cannot be used; what was read before stays in use", "server.pem")
	server(next)
	l.reach(100)
	l.writers.Wait()
	for _, m := range c.members {
		l.verify(t, m.name, c.client(m))
	}
	watcher.reach(t, c.agree(30*time.Second), 60*time.Second)
	if n := dials.Load(); n != 1 {
		t.Errorf("the steady client has dialled %d times", n)
	}
	ctl(t, k, bob, c.endpoints())
}

// TestJoinOverTLS joins members to a cluster that speaks TLS alone, with certificates both ways and with those that members
// make themselves: by a peer URL, by a client URL, and by host and port; one more is added in etcd's way. The first comes back
// with the same command line.
func TestJoinOverTLS(t *testing.T) {
	for _, how := range []string{"mutual", "auto"} {
		t.Run(how, func(t *testing.T) {
			flags, clients := []string{"--auto-tls", "--peer-auto-tls"}, &tls.Config{InsecureSkipVerify: true}
			if how == "mutual" {
				ca := pki.NewCA("ca")
				k := newKeys(t, ca)
				ca.Issue(pki.Spec{CN: "member", Hosts: []string{"127.0.0.1"}}).WriteTo(k.dir, "server")
				pki.Write(k.dir, "ca.pem", ca.PEM)
				pki.Write(k.dir, "crl.der", ca.Revoke())
				k.show(ca.Issue(pki.Spec{CN: "client"}))
				flags, clients = k.mutual(), k.config()
			}
			c := newClusterOver(t, clients, 1, flags...)
			c.start(c.members...)
			first := c.members[0]
			for i, endpoint := range []string{first.peerURL, first.clientURL, strings.TrimPrefix(first.peerURL, "https://"), strings.TrimPrefix(first.clientURL, "https://")} {
				m := c.newMember(fmt.Sprintf("m%d", i+2))
				m.args = append(m.joining(endpoint), flags...)
				c.members = append(c.members, m)
				m.start()
				m.ready(60 * time.Second)
				if i == 0 {
					c.kill(m)
					c.start(m)
				}
			}
			c.add(c.client(), "added", flags...)
			put := retry(t, func(ctx context.Context) (*clientv3.PutResponse, error) { return c.client().Put(ctx, "k", "v") })
			if revision := c.agree(30 * time.Second); revision != put.Header.Revision {
				t.Errorf("revision %d, want %d", revision, put.Header.Revision)
			}
		})
	}
}

// TestJoinByClientURLsOverTLS joins members whose own URLs are without TLS at the client URL of a cluster that has TLS for
// clients alone: with the cluster's CA, and a certificate where one is asked for, they come in. Without, or where authentication
// is on, they are told why, and what to do; by the peer URL they come in nevertheless.
func TestJoinByClientURLsOverTLS(t *testing.T) {
	ca := pki.NewCA("ca")
	k := newKeys(t, ca)
	ca.Issue(pki.Spec{CN: "server", Hosts: []string{"127.0.0.1"}}).WriteTo(k.dir, "server")
	ca.Issue(pki.Spec{CN: "root"}).WriteTo(k.dir, "root")
	trust := "--trusted-ca-file=" + pki.Write(k.dir, "ca.pem", ca.PEM)
	show := []string{"--cert-file=" + filepath.Join(k.dir, "root.pem"), "--key-file=" + filepath.Join(k.dir, "root-key.pem")}
	c := newClusterOver(t, k.config(), 1)
	first := c.members[0]
	first.peerURL = strings.Replace(first.peerURL, "https", "http", 1)
	first.args = append(first.flags("m1="+first.peerURL), "--cert-file="+filepath.Join(k.dir, "server.pem"), "--key-file="+filepath.Join(k.dir, "server-key.pem"), trust, "--client-cert-auth")
	open := loopback(freePort(t)) // to anybody
	first.args = append(first.args, "--listen-client-urls="+first.clientURL+","+open)
	k.show(ca.Issue(pki.Spec{CN: "root"}))
	c.start(first)

	plain := c.tls
	join := func(endpoint string, flags ...string) *member {
		c.tls = nil // its own URLs
		m := c.newMember(fmt.Sprintf("m%d", len(c.members)+1))
		c.tls = plain
		m.args = append(m.joining(endpoint), flags...)
		m.start()
		return m
	}
	comesIn := func(m *member) {
		t.Helper()
		m.ready(60 * time.Second)
		c.members = append(c.members, m)
	}
	refused := func(m *member, words ...string) {
		t.Helper()
		if status := m.p.wait(60 * time.Second); status != 1 {
			t.Errorf("it ended with %d", status)
		}
		m.p.expect(time.Second, 0, words...)
	}
	refused(join(first.clientURL), "no cluster answers there", "x509: ", "--peer-trusted-ca-file")
	refused(join(first.clientURL, trust), "no cluster answers there", "shows its --cert-file")
	comesIn(join(first.clientURL, append(show, trust)...))
	comesIn(join(strings.TrimPrefix(first.clientURL, "https://"), append(show, trust)...))

	client := c.client(first)
	for _, call := range []func(context.Context) error{
		func(ctx context.Context) error { _, err := client.UserAdd(ctx, "root", "pw"); return err },
		func(ctx context.Context) error { _, err := client.UserGrantRole(ctx, "root", "root"); return err },
		func(ctx context.Context) error { _, err := client.AuthEnable(ctx); return err },
	} {
		if err := call(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	comesIn(join(first.clientURL, append(show, trust)...)) // as the user that its certificate names
	refused(join(open, trust), "authentication is on", "give peer URLs")
	comesIn(join(first.peerURL))
}

// shownBy is the certificate that a member shows.
func shownBy(t *testing.T, m *member, c *tls.Config) *x509.Certificate {
	t.Helper()
	conn, err := tls.Dial("tcp", strings.TrimPrefix(m.clientURL, "https://"), c)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

// ctl uses etcdctl over TLS.
func ctl(t *testing.T, k *keys, p *pki.Pair, endpoints []string) {
	t.Helper()
	cert, key := p.WriteTo(k.dir, "ctl")
	args := []string{"ctl", "--endpoints", strings.Join(endpoints, ","), "--cacert", filepath.Join(k.dir, "ca.pem"), "--cert", cert, "--key", key}
	for _, c := range []struct{ args, want string }{
		{"put by ctl", "OK"}, {"get by", "ctl"}, {"endpoint health", "is healthy"}, {"endpoint status", "3.7."},
	} {
		out, err := exec.Command(trivet(t), append(args, strings.Fields(c.args)...)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), c.want) {
			t.Errorf("ctl %s: %v\n%s", c.args, err, out)
		}
	}
}

// TestPeersWithoutTrust: a member whose certificate the others do not know, or whose name is not allowed, stays outside, and
// both sides say why.
func TestPeersWithoutTrust(t *testing.T) {
	ca, other := pki.NewCA("ca"), pki.NewCA("other")
	k, stranger := newKeys(t, ca), newKeys(t, ca)
	for dir, p := range map[string]*pki.Pair{
		k.dir: ca.Issue(pki.Spec{CN: "member", Hosts: []string{"127.0.0.1"}}), stranger.dir: other.Issue(pki.Spec{CN: "member", Hosts: []string{"127.0.0.1"}}),
	} {
		p.WriteTo(dir, "server")
		pki.Write(dir, "ca.pem", ca.PEM)
		pki.Write(dir, "crl.der", ca.Revoke())
	}
	k.show(ca.Issue(pki.Spec{CN: "client"}))
	c := newClusterOver(t, k.config(), 3)
	for i, m := range c.members {
		if i < 2 {
			m.args = append(m.args, k.mutual()...)
		} else {
			m.args = append(m.args, stranger.mutual()...)
		}
		m.start()
	}
	for _, m := range c.members[:2] {
		m.ready(30 * time.Second)
		m.p.expect(30*time.Second, 0, "rejected connection on peer endpoint: the certificate is of an unknown authority", `"kind":"peer"`, "CN=member")
		m.p.expect(30*time.Second, 0, "cannot reach a peer", "the certificate is of an unknown authority")
	}
	c.members[2].p.expect(30*time.Second, 0, "cannot reach a peer", "the other side does not know the authority of this certificate")
	if err := tryPut(c.members[0], k.config()); err != nil {
		t.Error(err)
	}
}

// TestAutoTLS: members make their certificates, keep them over a restart, and serve http and https on one port, unix
// sockets, and metrics over TLS.
func TestAutoTLS(t *testing.T) {
	c := newClusterOver(t, &tls.Config{InsecureSkipVerify: true}, 3, "--auto-tls", "--peer-auto-tls", "--socket-reuse-port")
	m := c.members[0]
	sockets := t.TempDir()
	metrics := strings.Replace(loopback(freePort(t)), "http", "https", 1)
	plain := strings.Replace(m.clientURL, "https", "http", 1)
	m.args = append(m.args, "--listen-client-urls="+strings.Join([]string{m.clientURL, plain, "unix://" + sockets + "/a", "unixs://" + sockets + "/b"}, ","), "--listen-metrics-urls="+metrics)
	c.start(c.members...)
	first := shownBy(t, m, c.tls)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, e := range []string{m.clientURL, plain, "unix://" + sockets + "/a", "unixs://" + sockets + "/b"} {
		var secure *tls.Config
		if strings.HasPrefix(e, "https") || strings.HasPrefix(e, "unixs") {
			secure = c.tls
		}
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{e}, TLS: secure, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Put(ctx, "key", e); err != nil {
			t.Errorf("%s: %v", e, err)
		}
		client.Close()
	}
	for _, http2 := range []bool{false, true} {
		transport := &http.Transport{TLSClientConfig: c.tls.Clone(), ForceAttemptHTTP2: http2, DisableKeepAlives: true}
		for _, u := range []string{m.clientURL + "/health", plain + "/health", metrics + "/metrics"} {
			answer, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get(u)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			if answer.StatusCode != http.StatusOK || err != nil || len(body) == 0 || strings.HasPrefix(u, "https") && http2 != (answer.ProtoMajor == 2) {
				t.Errorf("%s: %s %s %v", u, answer.Proto, answer.Status, err)
			}
		}
	}
	// A second process may listen on the same port when both ask for it; the lock on the data keeps them apart.
	second := spawn(t, "second", nil, trivet(t), append(append([]string{}, m.args...), "--listen-client-urls="+m.clientURL)...)
	if status := second.wait(30 * time.Second); status != 1 {
		t.Errorf("a second process on the same data ended with %d", status)
	}
	second.expect(time.Second, 0, "in use by another process")
	c.kill(m) // which leaves the sockets
	c.start(m)
	if again := shownBy(t, m, c.tls); !again.Equal(first) {
		t.Error("the certificate that the member made was not kept over a restart")
	}
	answer, err := (&http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sockets+"/a")
	}}}).Get("http://x/version")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	// Without TLS to a port that has it alone.
	answer, err = http.Get(strings.Replace(metrics, "https", "http", 1) + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(answer.Body)
	answer.Body.Close()
	if answer.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), "This port speaks TLS") || err != nil {
		t.Errorf("%s %q %v", answer.Status, body, err)
	}
}

// TestNameFromCertificate: with authentication on, the common name of a client's certificate is its user, but not for calls
// of the JSON gateway, which are refused as etcd refuses them.
func TestNameFromCertificate(t *testing.T) {
	ca := pki.NewCA("ca")
	k := newKeys(t, ca)
	ca.Issue(pki.Spec{CN: "member", Hosts: []string{"127.0.0.1"}}).WriteTo(k.dir, "server")
	pki.Write(k.dir, "ca.pem", ca.PEM)
	pki.Write(k.dir, "crl.der", ca.Revoke())
	root := k.as(ca.Issue(pki.Spec{CN: "root"}))
	c := newClusterOver(t, root, 1, k.mutual()...)
	c.start(c.members...)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := c.client()
	if _, err := client.UserAdd(ctx, "root", "secret"); err != nil {
		t.Fatal(err)
	}
	if _, err := client.UserGrantRole(ctx, "root", "root"); err != nil {
		t.Fatal(err)
	}
	if _, err := client.AuthEnable(ctx); err != nil {
		t.Fatal(err)
	}
	m := c.members[0]
	if err := tryPut(m, root); err != nil {
		t.Error("root by its certificate:", err)
	}
	if err := tryPut(m, k.as(ca.Issue(pki.Spec{CN: "nobody"}))); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Error("a name that is no user:", err)
	}
	if err := tryPut(m, k.as(ca.Issue(pki.Spec{}))); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Error("a certificate without a name:", err)
	}
	for _, http2 := range []bool{false, true} {
		transport := &http.Transport{TLSClientConfig: root.Clone(), ForceAttemptHTTP2: http2, DisableKeepAlives: true}
		answer, err := (&http.Client{Transport: transport}).Post(m.clientURL+"/v3/kv/range", "application/json", strings.NewReader(`{"key":"AA=="}`))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode != http.StatusBadRequest || err != nil ||
			string(body) != "CommonName of client sending a request against gateway will be ignored and not used as expected\n" {
			t.Errorf("the JSON gateway: %s %q %v", answer.Status, body, err)
		}
	}
}
