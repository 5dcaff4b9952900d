package e2e

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
)

// TestGatewayStart puts etcd's TCP proxy in front of a cluster: a client that knows only the proxy goes on when the member
// that it was passed on to dies.
func TestGatewayStart(t *testing.T) {
	c := startCluster(t, 3)
	addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	var ends string
	for _, e := range c.endpoints(c.members...) {
		ends += "," + e
	}
	p := spawn(t, "gateway", nil, trivet(t), "gateway", "start", "--listen-addr="+addr, "--endpoints="+ends[1:], "--retry-delay=200ms")
	p.expect(20*time.Second, 0, "ready to proxy client requests")
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{addr}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	watch := client.Watch(ctx, "k")
	for i, dying := range []*member{nil, c.members[0]} {
		if dying != nil {
			c.kill(dying)
		}
		for {
			once, cancel := context.WithTimeout(ctx, 5*time.Second)
			_, err := client.Put(once, "k", fmt.Sprint(i))
			cancel()
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
		for seen := false; !seen; { // an attempt that failed may have been written too
			w, ok := <-watch
			if !ok || w.Err() != nil {
				t.Fatal(w.Err())
			}
			for _, e := range w.Events {
				seen = seen || string(e.Kv.Value) == fmt.Sprint(i)
			}
		}
	}
	if status := p.stop(20 * time.Second); status != 0 {
		t.Errorf("the proxy ended with status %d", status)
	}
}

// TestConcurrencyPackage uses etcd's own locks and elections through each of three members at once.
func TestConcurrencyPackage(t *testing.T) {
	c := startCluster(t, 3)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	var holders atomic.Int32
	for _, m := range c.members {
		client := c.client(m)
		all.Go(func() {
			for range 5 {
				s, err := concurrency.NewSession(client)
				if err != nil {
					t.Error(err)
					return
				}
				lock := concurrency.NewMutex(s, "lock")
				if err := lock.Lock(ctx); err != nil {
					t.Error(err)
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d hold the lock", n)
				}
				holders.Add(-1)
				if err := lock.Unlock(ctx); err != nil {
					t.Error(err)
				}
				e := concurrency.NewElection(s, "election")
				if err := e.Campaign(ctx, m.name); err != nil {
					t.Error(err)
					return
				}
				if l, err := e.Leader(ctx); err != nil || string(l.Kvs[0].Value) != m.name {
					t.Errorf("%s leads, and reads %v, %v", m.name, l, err)
				}
				if err := e.Resign(ctx); err != nil {
					t.Error(err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}
