package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"

	"github.com/trivet-kv/trivet/test/pki"
)

// grpcProxy is a running proxy.
type grpcProxy struct {
	*process
	url string
}

// startProxy starts a proxy in front of a cluster and waits until it serves.
func startProxy(t testing.TB, c *cluster, flags ...string) *grpcProxy {
	t.Helper()
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	args := append([]string{
		"grpc-proxy", "start", "--listen-addr=" + address, "--advertise-client-url=" + address, "--endpoints=" + strings.Join(c.endpoints(), ","),
		"--data-dir=" + filepath.Join(t.TempDir(), "proxy"),
	}, flags...)
	p := &grpcProxy{process: spawn(t, "grpc-proxy", nil, trivet(t), args...), url: "http://" + address}
	p.expect(30*time.Second, 0, `"started gRPC proxy","address":"`+address)
	p.expect(30*time.Second, 0, "ready to serve client requests")
	return p
}

// page gets a page of the proxy.
func (p *grpcProxy) page(path string, c *tls.Config) (int, string) {
	p.t.Helper()
	client := http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{TLSClientConfig: c, DisableKeepAlives: true}}
	a, err := client.Get(p.url + path)
	if err != nil {
		p.t.Fatalf("%s: %v", path, err)
	}
	defer a.Body.Close()
	body, err := io.ReadAll(a.Body)
	if err != nil {
		p.t.Fatalf("%s: %v", path, err)
	}
	return a.StatusCode, string(body)
}

func (p *grpcProxy) client(c *tls.Config, user string) *clientv3.Client {
	p.t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{p.url}, TLS: c, Logger: zap.NewNop(), DialTimeout: 10 * time.Second, Username: user, Password: user})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { client.Close() })
	return client
}

// TestGRPCProxy uses everything that etcd's client offers through a proxy in front of three members, while one of these is
// killed, and stops the proxy in order.
func TestGRPCProxy(t *testing.T) {
	c := startCluster(t, 3)
	p := startProxy(t, c)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	client := p.client(nil, "")

	// Two watchers of one range get the same events.
	watchers := []clientv3.WatchChan{client.Watch(ctx, "k", clientv3.WithPrefix(), clientv3.WithCreatedNotify()), p.client(nil, "").Watch(ctx, "k", clientv3.WithPrefix(), clientv3.WithCreatedNotify())}
	for _, w := range watchers {
		if a := <-w; a.Err() != nil || !a.Created {
			t.Fatalf("watch: %+v %v", a, a.Err())
		}
	}
	put := func(key, value string) {
		t.Helper()
		for ctx.Err() == nil {
			if _, err := client.Put(ctx, key, value); err == nil {
				return
			}
		}
		t.Fatalf("put %s: %v", key, ctx.Err())
	}
	put("k1", "a")
	victim := c.leader()
	c.kill(victim)
	put("k2", "b")
	for i, w := range watchers {
		var keys []string
		for !slices.Contains(keys, "k2") {
			a, ok := <-w
			if !ok || a.Err() != nil {
				t.Fatalf("watcher %d ended: %v", i, a.Err())
			}
			for _, e := range a.Events {
				keys = append(keys, string(e.Kv.Key))
			}
		}
		if !slices.Contains(keys, "k1") {
			t.Errorf("watcher %d saw %q", i, keys)
		}
	}
	if a, err := client.Get(ctx, "k", clientv3.WithPrefix()); err != nil || a.Count != 2 || string(a.Kvs[1].Value) != "b" {
		t.Errorf("get: %v %v", a, err)
	}
	txn, err := client.Txn(ctx).If(clientv3.Compare(clientv3.Value("k1"), "=", "a")).Then(clientv3.OpPut("k1", "c"), clientv3.OpGet("k2")).Commit()
	if err != nil || !txn.Succeeded || len(txn.Responses) != 2 {
		t.Errorf("txn: %v %v", txn, err)
	}
	if n := len(streamAll(ctx, t, client)); n != 2 {
		t.Errorf("a stream of %d keys", n)
	}
	if _, err := client.Get(ctx, "k1", clientv3.WithRev(1<<40)); !errors.Is(err, rpctypes.ErrFutureRev) {
		t.Errorf("a revision to come: %v", err)
	}
	proxyLeases(ctx, t, client)
	proxyLocks(ctx, t, client)

	list, err := client.MemberList(ctx)
	if err != nil || len(list.Members) != 1 || list.Members[0].ClientURLs[0] != strings.TrimPrefix(p.url, "http://") {
		t.Errorf("members: %v %v", list, err)
	}
	if status, body := p.page("/health", nil); status != http.StatusOK || !strings.Contains(body, `"health":"true"`) {
		t.Errorf("/health: %d %s", status, body)
	}
	if status, body := p.page("/proxy/health", nil); status != http.StatusOK || !strings.Contains(body, `"health":"true"`) {
		t.Errorf("/proxy/health: %d %s", status, body)
	}
	// The page comes from a member that runs, also where the first one asked does not.
	for range 4 {
		if status, body := p.page("/metrics", nil); status != http.StatusOK || !strings.Contains(body, "etcd_server_has_leader 1") {
			t.Fatalf("/metrics: %d %.200s", status, body)
		}
	}
	if _, body := p.page("/proxy/metrics", nil); !strings.Contains(body, "etcd_grpc_proxy_watchers_coalescing_total") ||
		!strings.Contains(body, `grpc_server_handled_total{grpc_code="OK",grpc_method="Put"`) {
		t.Errorf("/proxy/metrics says nothing of the calls made")
	}

	// A stop ends open watches at once and takes no longer for them.
	open := client.Watch(ctx, "never", clientv3.WithCreatedNotify())
	<-open
	if status := p.stop(30 * time.Second); status != 0 {
		t.Errorf("the proxy ended with status %d", status)
	}
}

func streamAll(ctx context.Context, t *testing.T, client *clientv3.Client) []string {
	t.Helper()
	stream, err := client.GetStream(ctx, "k", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	a, err := clientv3.GetStreamToGetResponse(stream)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, kv := range a.Kvs {
		keys = append(keys, string(kv.Key))
	}
	return keys
}

func proxyLeases(ctx context.Context, t *testing.T, client *clientv3.Client) {
	t.Helper()
	l, err := client.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Put(ctx, "leased", "", clientv3.WithLease(l.ID)); err != nil {
		t.Error(err)
	}
	if a, err := client.KeepAliveOnce(ctx, l.ID); err != nil || a.TTL != 60 {
		t.Errorf("keepalive: %v %v", a, err)
	}
	if a, err := client.TimeToLive(ctx, l.ID, clientv3.WithAttachedKeys()); err != nil || len(a.Keys) != 1 {
		t.Errorf("time to live: %v %v", a, err)
	}
	if a, err := client.Leases(ctx); err != nil || !slices.ContainsFunc(a.Leases, func(s clientv3.LeaseStatus) bool { return s.ID == l.ID }) {
		t.Errorf("leases: %v %v", a, err)
	}
	if _, err := client.Revoke(ctx, l.ID); err != nil {
		t.Error(err)
	}
	if a, err := client.Get(ctx, "leased"); err != nil || a.Count != 0 {
		t.Errorf("a key whose lease is gone: %v %v", a, err)
	}
}

func proxyLocks(ctx context.Context, t *testing.T, client *clientv3.Client) {
	t.Helper()
	session, err := concurrency.NewSession(client)
	if err != nil {
		t.Fatal(err)
	}
	m := concurrency.NewMutex(session, "lock")
	if err := m.Lock(ctx); err != nil {
		t.Errorf("lock: %v", err)
	}
	other, err := concurrency.NewSession(client)
	if err != nil {
		t.Fatal(err)
	}
	if err := concurrency.NewMutex(other, "lock").TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
		t.Errorf("the lock twice: %v", err)
	}
	if err := m.Unlock(ctx); err != nil {
		t.Error(err)
	}
	e := concurrency.NewElection(session, "election")
	if err := e.Campaign(ctx, "me"); err != nil {
		t.Errorf("campaign: %v", err)
	}
	if a, err := e.Leader(ctx); err != nil || string(a.Kvs[0].Value) != "me" {
		t.Errorf("leader: %v %v", a, err)
	}
	if err := e.Resign(ctx); err != nil {
		t.Error(err)
	}
}

// TestGRPCProxySecure has TLS on both sides, users, a namespace, leasing and ordering, and finds itself registered.
func TestGRPCProxySecure(t *testing.T) {
	ca := pki.NewCA("ca")
	k := newKeys(t, ca)
	ca.Issue(pki.Spec{CN: "member", Hosts: []string{"127.0.0.1"}}).WriteTo(k.dir, "server")
	ca.Issue(pki.Spec{Hosts: []string{"127.0.0.1"}}).WriteTo(k.dir, "proxy")
	pki.Write(k.dir, "ca.pem", ca.PEM)
	pki.Write(k.dir, "crl.der", ca.Revoke())
	k.show(ca.Issue(pki.Spec{CN: "client"}))
	c := newClusterOver(t, k.config(), 1, k.mutual()...)
	c.start(c.members...)
	at := func(name string) string { return filepath.Join(k.dir, name) }
	named := spawn(t, "named", nil, trivet(t), "grpc-proxy", "start", "--listen-addr=127.0.0.1:0", "--endpoints="+c.members[0].clientURL, "--cacert="+at("ca.pem"), "--cert="+at("server.pem"), "--key="+at("server-key.pem"))
	if status := named.wait(30 * time.Second); status != 1 || !strings.Contains(strings.Join(named.output(), "\n"), `the common name "member"`) {
		t.Errorf("a certificate with a name: status %d %q", status, named.output())
	}
	p := startProxy(t, c, "--cacert="+at("ca.pem"), "--cert="+at("proxy.pem"), "--key="+at("proxy-key.pem"),
		"--cert-file="+at("proxy.pem"), "--key-file="+at("proxy-key.pem"), "--trusted-ca-file="+at("ca.pem"), "--client-crl-file="+at("crl.der"),
		"--namespace=ns/", "--experimental-serializable-ordering", "--experimental-leasing-prefix=leasing/", "--resolver-prefix=proxies", "--resolver-ttl=60")
	p.url = strings.Replace(p.url, "http", "https", 1)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	direct, through := c.client(), p.client(k.config(), "")
	if _, err := through.Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time under a lease
		if a, err := through.Get(ctx, "k"); err != nil || a.Count != 1 || string(a.Kvs[0].Key) != "k" {
			t.Errorf("get: %v %v", a, err)
		}
	}
	if a, err := direct.Get(ctx, "ns/k"); err != nil || a.Count != 1 {
		t.Errorf("in the namespace: %v %v", a, err)
	}
	if a, err := direct.Get(ctx, "ns/leasing/", clientv3.WithPrefix()); err != nil || a.Count == 0 {
		t.Errorf("no lease on a key was noted: %v %v", a, err)
	}
	for path, want := range map[string]string{"/health": `"health":"true"`, "/proxy/health": `"health":"true"`, "/metrics": "etcd_server_has_leader 1"} {
		if status, body := p.page(path, k.config()); status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.200s", path, status, body)
		}
	}
	if _, err := tls.Dial("tcp", strings.TrimPrefix(p.url, "https://"), &tls.Config{RootCAs: k.pool, MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("a client without a certificate was let in")
	}
	registered := func() int64 {
		a, err := direct.Get(ctx, "ns/proxies/", clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		return a.Count
	}
	for registered() == 0 {
		time.Sleep(20 * time.Millisecond)
	}
	if status := p.stop(30 * time.Second); status != 0 {
		t.Errorf("status %d", status)
	}
	if registered() != 0 {
		t.Error("a proxy that has stopped is registered still")
	}
}

// TestGRPCProxyUsers: what one user has read is not given to another, and what a member refuses is refused.
func TestGRPCProxyUsers(t *testing.T) {
	c := startCluster(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p := startProxy(t, c, "--experimental-enable-grpc-logging")
	admin := p.client(nil, "")
	for _, user := range []string{"root", "alice", "bob"} {
		if _, err := admin.UserAdd(ctx, user, user); err != nil {
			t.Fatal(err)
		}
		if _, err := admin.RoleAdd(ctx, user); err != nil {
			t.Fatal(err)
		}
		if _, err := admin.UserGrantRole(ctx, user, user); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := admin.RoleGrantPermission(ctx, "alice", "a", "b", clientv3.PermissionType(clientv3.PermReadWrite)); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.AuthEnable(ctx); err != nil {
		t.Fatal(err)
	}
	alice, bob := p.client(nil, "alice"), p.client(nil, "bob")
	if _, err := alice.Put(ctx, "a", "secret value"); err != nil {
		t.Fatal(err)
	}
	for _, opts := range [][]clientv3.OpOption{nil, {clientv3.WithSerializable()}} {
		if a, err := alice.Get(ctx, "a", opts...); err != nil || a.Count != 1 {
			t.Errorf("alice: %v %v", a, err)
		}
		if _, err := bob.Get(ctx, "a", opts...); !errors.Is(err, rpctypes.ErrPermissionDenied) {
			t.Errorf("bob: %v", err)
		}
		if _, err := admin.Get(ctx, "a", opts...); !errors.Is(err, rpctypes.ErrUserEmpty) {
			t.Errorf("nobody: %v", err)
		}
	}
	if a := <-bob.Watch(ctx, "a", clientv3.WithCreatedNotify()); a.Err() == nil {
		t.Error("bob may watch")
	}
	w := alice.Watch(ctx, "a", clientv3.WithCreatedNotify())
	if a := <-w; a.Err() != nil {
		t.Fatal(a.Err())
	}
	l, err := alice.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := alice.Put(ctx, "a", "next", clientv3.WithLease(l.ID)); err != nil {
		t.Fatal(err)
	}
	if a, ok := <-w; !ok || len(a.Events) != 1 {
		t.Errorf("alice's watch: %v", a)
	}
	if a, err := alice.KeepAliveOnce(ctx, l.ID); err != nil || a.TTL != 60 {
		t.Errorf("alice's keepalive: %v %v", a, err)
	}
	if status, body := p.page("/health", nil); status != http.StatusOK {
		t.Errorf("/health: %d %s", status, body)
	}
	p.expect(10*time.Second, 0, `"grpc.method":"Authenticate"`)
	out := strings.Join(p.output(), "\n")
	if !strings.Contains(out, "grpc.request.content") || strings.Contains(out, "password") {
		t.Error("the log has no requests, or has passwords")
	}
}

// TestGRPCProxyFollowsMembers starts a proxy that knows one member only. It goes on by those that it was told of, when the
// one it began with has left.
func TestGRPCProxyFollowsMembers(t *testing.T) {
	c := startCluster(t, 1)
	p := startProxy(t, c, "--endpoints-auto-sync-interval=200ms")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	client := p.client(nil, "")
	first := c.members[0]
	second := c.add(c.client(first), "m2")
	for metric(t, second, `grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"}`) == 0 {
		if _, err := client.Put(ctx, "k", "through the proxy"); err != nil {
			t.Fatalf("the proxy does not find the member that was added: %v", err)
		}
	}
	c.remove(first)
	r := retry(t, func(ctx context.Context) (*clientv3.GetResponse, error) { return client.Get(ctx, "k") })
	if len(r.Kvs) != 1 || string(r.Kvs[0].Value) != "through the proxy" {
		t.Errorf("read through the proxy: %v", r.Kvs)
	}
	p.stop(30 * time.Second)
}
