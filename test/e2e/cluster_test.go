package e2e

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// cluster is a set of members, each a process of its own, on loopback.
type cluster struct {
	t       testing.TB
	members []*member
	tls     *tls.Config // of clients; nil: the cluster speaks plain http
}

// member is one member: its place on disk and on the network stays, its process comes and goes.
type member struct {
	t         testing.TB
	name      string
	dir       string
	clientURL string
	pages     string // where HTTP is served, if not at clientURL
	peerURL   string
	tls       *tls.Config
	args      []string
	binary    string   // empty: the one under test
	p         *process // nil before the first start
	starts    int
}

// handedOut has the ports that tests were given, some of which run side by side.
var handedOut sync.Map

// freePort returns a loopback port below those that the kernel hands out for outgoing connections, so that a member
// that is down for a moment cannot lose its port to somebody's dial. No port is returned twice.
func freePort(t testing.TB) int {
	t.Helper()
	for range 200 {
		port := 20000 + rand.IntN(12000)
		if _, taken := handedOut.LoadOrStore(port, true); taken {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free loopback port between 20000 and 32000")
	return 0
}

func loopback(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", port) }

// newCluster prepares n members without starting them. Extra flags go to every member.
func newCluster(t testing.TB, n int, flags ...string) *cluster {
	t.Helper()
	return newClusterOver(t, nil, n, flags...)
}

// newClusterOver is newCluster, over TLS if clients have a configuration for it.
func newClusterOver(t testing.TB, clients *tls.Config, n int, flags ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, tls: clients}
	dir := t.TempDir()
	var initial []string
	for i := range n {
		m := &member{t: t, name: fmt.Sprintf("m%d", i+1), clientURL: loopback(freePort(t)), peerURL: loopback(freePort(t)), tls: clients}
		if clients != nil {
			m.clientURL, m.peerURL = strings.Replace(m.clientURL, "http", "https", 1), strings.Replace(m.peerURL, "http", "https", 1)
		}
		m.dir = filepath.Join(dir, m.name)
		c.members = append(c.members, m)
		initial = append(initial, m.name+"="+m.peerURL)
	}
	for _, m := range c.members {
		m.args = append(m.flags(strings.Join(initial, ",")), flags...)
	}
	return c
}

func (m *member) flags(initial string) []string {
	return []string{
		"server", "--name", m.name, "--data-dir", m.dir,
		"--listen-client-urls", m.clientURL, "--advertise-client-urls", m.clientURL,
		"--listen-peer-urls", m.peerURL, "--initial-advertise-peer-urls", m.peerURL,
		"--initial-cluster", initial, "--initial-cluster-token", "e2e", "--initial-cluster-state", "new",
	}
}

// startCluster starts n members and waits until each is ready.
func startCluster(t testing.TB, n int, flags ...string) *cluster {
	t.Helper()
	c := newCluster(t, n, flags...)
	c.start(c.members...)
	return c
}

// start starts the members given and waits until each is ready.
func (c *cluster) start(members ...*member) {
	c.t.Helper()
	for _, m := range members {
		m.start()
	}
	for _, m := range members {
		m.ready(30 * time.Second)
	}
}

func (m *member) start() {
	m.t.Helper()
	m.starts++
	m.p = spawn(m.t, m.name, nil, cmp.Or(m.binary, trivet(m.t)), m.args...)
}

// ready waits until the member can serve linearizable reads.
func (m *member) ready(within time.Duration) {
	m.t.Helper()
	deadline := time.Now().Add(within)
	transport := &http.Transport{TLSClientConfig: m.tls, DisableKeepAlives: true}
	client := http.Client{Timeout: 2 * time.Second, Transport: transport}
	pages := cmp.Or(m.pages, m.clientURL)
	last := "no answer"
	for time.Now().Before(deadline) {
		answer, err := client.Get(pages + "/readyz")
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return
			}
			last = answer.Status
		} else {
			last = err.Error()
		}
		select {
		case <-m.p.done:
			m.t.Fatalf("%s ended before it was ready: %v\n%s", m.name, m.p.err, tail(m.p.output(), 40))
		case <-time.After(20 * time.Millisecond):
		}
	}
	m.t.Fatalf("%s is not ready within %v: %s\n%s", m.name, within, last, tail(m.p.output(), 40))
}

// kill ends the members given with SIGKILL, all at once.
func (c *cluster) kill(members ...*member) {
	for _, m := range members {
		m.p.sendKill()
	}
	for _, m := range members {
		<-m.p.done
	}
}

// endpoints of the members given, or of all.
func (c *cluster) endpoints(members ...*member) []string {
	if len(members) == 0 {
		members = c.members
	}
	var urls []string
	for _, m := range members {
		urls = append(urls, m.clientURL)
	}
	return urls
}

// client returns a client of the members given, or of all.
func (c *cluster) client(members ...*member) *clientv3.Client {
	c.t.Helper()
	client, err := clientv3.New(clientv3.Config{
		Endpoints:          c.endpoints(members...),
		DialTimeout:        10 * time.Second,
		MaxCallRecvMsgSize: 64 << 20,
		TLS:                c.tls,
		Logger:             zap.NewNop(),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { client.Close() })
	return client
}

// leader waits until a member says that it leads, and returns it.
func (c *cluster) leader() *member {
	c.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		for _, m := range c.members {
			if status, err := m.status(); err == nil && status.Leader == status.Header.MemberId {
				return m
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	c.t.Fatal("no member leads within 20 s")
	return nil
}

// others are the members other than those given.
func (c *cluster) others(not ...*member) []*member {
	var rest []*member
	for _, m := range c.members {
		keep := true
		for _, n := range not {
			keep = keep && m != n
		}
		if keep {
			rest = append(rest, m)
		}
	}
	return rest
}

// status asks the member alone, with a short timeout.
func (m *member) status() (*clientv3.StatusResponse, error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{m.clientURL}, Logger: zap.NewNop(), TLS: m.tls})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return client.Status(ctx, m.clientURL)
}

// agree waits until all members hold the same data at the same revision, and returns that revision.
func (c *cluster) agree(within time.Duration) int64 {
	c.t.Helper()
	deadline := time.Now().Add(within)
	for {
		revision, state := c.hashes()
		if revision != 0 {
			return revision
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("the members do not agree within %v: %s", within, state)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// hashes returns the revision at which all members have the same hash, or 0 and what each said.
func (c *cluster) hashes() (revision int64, state string) {
	type answer struct {
		hash              uint32
		compact, revision int64
	}
	var first answer
	same := true
	for i, m := range c.members {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{m.clientURL}, Logger: zap.NewNop(), TLS: m.tls})
		if err != nil {
			return 0, err.Error()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		got, err := client.HashKV(ctx, m.clientURL, 0)
		cancel()
		client.Close()
		if err != nil {
			return 0, m.name + ": " + err.Error()
		}
		a := answer{got.Hash, got.CompactRevision, got.Header.Revision}
		state += fmt.Sprintf("%s: hash %08x, compacted %d, revision %d; ", m.name, a.hash, a.compact, a.revision)
		if i == 0 {
			first = a
		}
		same = same && a == first
	}
	if !same {
		return 0, state
	}
	return first.revision, state
}
