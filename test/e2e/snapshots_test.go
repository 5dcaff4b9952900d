package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/trivet-kv/trivet/test/pki"
)

// savers is a cluster with TLS and authentication that is written to all the while, and root's clients of it.
type savers struct {
	*cluster
	k       *keys
	ca      *pki.CA
	root    []string // flags of ctl
	clients []*clientv3.Client
	wrote   atomic.Int64 // revision of the newest write that was acknowledged
}

const saverPassword = "a word of root"

func newSavers(t *testing.T, ctx context.Context) *savers {
	ca := pki.NewCA("only")
	s := &savers{k: newKeys(t, ca), ca: ca}
	ca.Issue(pki.Spec{CN: "member", Hosts: []string{"127.0.0.1"}}).WriteTo(s.k.dir, "server")
	pki.Write(s.k.dir, "ca.pem", ca.PEM)
	pki.Write(s.k.dir, "crl.der", ca.Revoke())
	nameless := ca.Issue(pki.Spec{}) // a name of the certificate would be the user
	s.k.show(nameless)
	cert, key := nameless.WriteTo(s.k.dir, "ctl")
	s.root = []string{"--cacert", filepath.Join(s.k.dir, "ca.pem"), "--cert", cert, "--key", key, "--user", "root:" + saverPassword}
	s.cluster = newClusterOver(t, s.k.config(), 3, s.k.mutual()...)
	s.start(s.members...)
	first := s.client(s.members[0])
	for _, err := range []error{
		second(first.UserAdd(ctx, "root", saverPassword)), second(first.UserGrantRole(ctx, "root", "root")), second(first.AuthEnable(ctx)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range s.members {
		s.clients = append(s.clients, s.as(m))
	}
	return s
}

func second[T any](_ T, err error) error { return err }

// as logs root in at one member.
func (s *savers) as(m *member) *clientv3.Client {
	s.t.Helper()
	client := retry(s.t, func(context.Context) (*clientv3.Client, error) { // on a busy machine the leader may change
		return clientv3.New(clientv3.Config{
			Endpoints: []string{m.clientURL}, TLS: s.k.config(), Username: "root", Password: saverPassword, DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
		})
	})
	s.t.Cleanup(func() { client.Close() })
	return client
}

// write fills the store with what does not compress, so that a snapshot is longer than what a connection holds of it, and
// then overwrites it until ctx ends, with compactions and calls of Defragment beside.
func (s *savers) write(ctx context.Context, filled chan<- struct{}) {
	value := make([]byte, 100_000)
	source := rand.NewChaCha8([32]byte{7})
	for i := 0; ctx.Err() == nil; i++ {
		_, _ = source.Read(value)
		r, err := s.clients[0].Put(ctx, fmt.Sprintf("k%03d", i%120), string(value))
		if err != nil {
			i-- // a busy machine; what counts is that there are writes
			continue
		}
		s.wrote.Store(r.Header.Revision)
		if i == 119 {
			close(filled)
		}
		if i > 120 && i%10 == 0 {
			_, _ = s.clients[0].Compact(ctx, s.wrote.Load()-100)
			_, _ = s.clients[0].Defragment(ctx, s.members[0].clientURL)
		}
	}
}

// save saves a snapshot with etcdctl.
func (s *savers) save(m *member, file string, flags []string) (string, error) {
	out, err := exec.Command(trivet(s.t), append([]string{"ctl", "--endpoints", m.clientURL, "snapshot", "save", file}, flags...)...).CombinedOutput()
	return string(out), err
}

// revisionOf has etcdutl check a file.
func revisionOf(t *testing.T, file string) int64 {
	t.Helper()
	out, err := exec.Command(trivet(t), "utl", "snapshot", "status", file, "-w", "json").Output()
	var told struct{ Revision int64 }
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if err := json.Unmarshal(out, &told); err != nil {
		t.Fatal(err)
	}
	return told.Revision
}

// TestSnapshotsBesideEverything saves snapshots over TLS with authentication on, of each member and of a learner, beside
// writes, compactions and Defragment: each is whole, and holds what its member had applied before. Two may be under way; a third
// is refused until one of them has ended. One whose member dies never looks whole, and nothing of any is left at the members.
func TestSnapshotsBesideEverything(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	s := newSavers(t, ctx)
	writing, stop := context.WithCancel(ctx)
	filled := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() { s.write(writing, filled) })
	defer writer.Wait()
	defer stop()
	select {
	case <-filled:
	case <-ctx.Done():
		t.Fatal("the store could not be filled in two minutes")
	}
	dir := t.TempDir()
	for _, m := range append(s.members, s.learner(ctx)) {
		client := s.as(m)
		r := retry(t, func(ctx context.Context) (*clientv3.GetResponse, error) { return client.Get(ctx, "k000") }) // it has applied what it shows
		file := filepath.Join(dir, m.name)
		retry(t, func(context.Context) (string, error) {
			out, err := s.save(m, file, s.root)
			if err != nil {
				err = fmt.Errorf("%w\n%s", err, out)
			}
			return out, err
		})
		if got := revisionOf(t, file); got < r.Header.Revision {
			t.Errorf("the snapshot of %s is of revision %d, and it had shown %d", m.name, got, r.Header.Revision)
		}
	}
	if out, err := s.save(s.members[0], filepath.Join(dir, "nobody"), s.root[:6]); err == nil || !strings.Contains(out, "user name is empty") {
		t.Errorf("without a user: %v\n%s", err, out)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "nobody*")); err != nil || len(left) > 0 {
		t.Errorf("without a user %v is left", left)
	}
	s.several(ctx)
	stop()
	writer.Wait()
	s.dying(ctx)
}

// learner adds one that is up to date.
func (s *savers) learner(ctx context.Context) *member {
	s.t.Helper()
	m := s.newMember("m4")
	m.tls = s.k.config()
	m.clientURL, m.peerURL = strings.Replace(m.clientURL, "http:", "https:", 1), strings.Replace(m.peerURL, "http:", "https:", 1)
	if _, err := s.clients[0].MemberAddAsLearner(ctx, []string{m.peerURL}); err != nil {
		s.t.Fatal(err)
	}
	var all []string
	for _, other := range append(s.members[:3:3], m) {
		all = append(all, other.name+"="+other.peerURL)
	}
	m.args = append(m.flags(strings.Join(all, ",")), append(s.k.mutual(), "--initial-cluster-state=existing")...)
	m.start()
	m.p.expect(60*time.Second, 0, "ready to serve client requests")
	return m
}

// open begins a snapshot and waits for its first byte.
func (s *savers) open(ctx context.Context, client *clientv3.Client) (io.ReadCloser, error) {
	r, err := client.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// several has two snapshots of a member under way.
func (s *savers) several(ctx context.Context) {
	s.t.Helper()
	var under []io.ReadCloser
	one, cancel := context.WithCancel(ctx)
	defer cancel()
	for range 2 {
		r, err := s.open(one, s.clients[1])
		if err != nil {
			s.t.Fatal(err)
		}
		under = append(under, r)
	}
	if _, err := s.open(ctx, s.clients[1]); err == nil || !strings.Contains(err.Error(), "too many requests") {
		s.t.Fatalf("a third snapshot: %v", err)
	}
	// Their client goes away in the middle of both.
	cancel()
	for _, r := range under {
		r.Close()
	}
	for {
		r, err := s.open(ctx, s.clients[1])
		if err == nil {
			n, err := io.Copy(io.Discard, r)
			if err != nil || n < 10_000_000 {
				s.t.Errorf("a snapshot of %d bytes, %v", n, err)
			}
			r.Close()
			return
		}
		if !strings.Contains(err.Error(), "too many requests") || ctx.Err() != nil {
			s.t.Fatalf("a snapshot after two that were given up: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// dying kills a member in the middle of a snapshot.
func (s *savers) dying(ctx context.Context) {
	s.t.Helper()
	m := s.members[2]
	r, err := s.open(ctx, s.clients[2])
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close()
	s.kill(m)
	if n, err := io.Copy(io.Discard, r); err == nil {
		s.t.Errorf("a snapshot of a dead member ended well after %d bytes", n)
	}
	m.start()
	m.ready(30 * time.Second)
	for _, m := range s.members {
		if _, err := os.Stat(filepath.Join(m.dir, "snapshots")); !os.IsNotExist(err) {
			s.t.Errorf("%s has a folder of snapshots (%v), which are made on no disk", m.name, err)
		}
	}
}
