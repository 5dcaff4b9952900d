package e2e

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// counter is one key that counts up, and readers of it through single members. No answer may be older than what was
// acknowledged before it was asked for, nor newer than what was tried; that a call fails is no fault.
type counter struct {
	t            *testing.T
	acknowledged atomic.Int64
	tried        atomic.Int64

	cancel context.CancelFunc
	ctx    context.Context
	calls  sync.WaitGroup

	mu      sync.Mutex
	answers map[string]int // by member
	fault   string
}

const counterKey = "counter"

// startCounter counts through the client and reads through the members.
func startCounter(t *testing.T, client *clientv3.Client, members ...*member) *counter {
	t.Helper()
	n := &counter{t: t, answers: map[string]int{}}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.calls.Go(func() { n.write(client) })
	for _, m := range members {
		n.read(m)
	}
	t.Cleanup(n.end)
	return n
}

func (n *counter) end() {
	n.cancel()
	n.calls.Wait()
}

func (n *counter) write(client *clientv3.Client) {
	for next := int64(1); n.ctx.Err() == nil; {
		n.tried.Store(next)
		ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
		_, err := client.Put(ctx, counterKey, strconv.FormatInt(next, 10))
		cancel()
		if err == nil {
			n.acknowledged.Store(next)
			next++
		}
		n.pause()
	}
}

func (n *counter) pause() {
	select {
	case <-n.ctx.Done():
	case <-time.After(2 * time.Millisecond):
	}
}

// read starts a reader through a member, beside those that there are.
func (n *counter) read(m *member) {
	n.t.Helper()
	client := m.alone()
	n.calls.Go(func() {
		defer client.Close()
		for n.ctx.Err() == nil {
			least := n.acknowledged.Load()
			ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
			answer, err := client.Get(ctx, counterKey)
			cancel()
			if err == nil {
				n.answered(m, valueOf(answer), least)
			}
			n.pause()
		}
	})
}

func (n *counter) answered(m *member, found, least int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers[m.name]++
	if most := n.tried.Load(); (found < least || found > most) && n.fault == "" {
		n.fault = fmt.Sprintf("%s answered %d; %d was acknowledged before it was asked, and %d was tried last", m.name, found, least, most)
	}
}

// sees waits until the member has answered a call that began after this one.
func (n *counter) sees(m *member) {
	n.t.Helper()
	count := func() int {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.answers[m.name]
	}
	before := count()
	for deadline := time.Now().Add(patience); count() < before+2; time.Sleep(5 * time.Millisecond) { // the first may have been asked before
		if time.Now().After(deadline) {
			n.t.Fatalf("%s has answered no reader within %v", m.name, patience)
		}
	}
}

// verify ends the counter and fails the test if an answer was wrong.
func (n *counter) verify() {
	n.t.Helper()
	n.end()
	if n.fault != "" {
		n.t.Error(n.fault)
	}
	n.t.Logf("counted to %d; answers: %v", n.acknowledged.Load(), n.answers)
}

// alone returns a client of this member only, to be closed by the caller.
func (m *member) alone() *clientv3.Client {
	m.t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{m.clientURL}, Logger: zap.NewNop(), TLS: m.tls})
	if err != nil {
		m.t.Fatal(err)
	}
	return client
}
