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

// write counts up. Each number is put where the one before is, so that an attempt whose answer was lost, and which takes effect
// late, cannot take the count back.
func (n *counter) write(client *clientv3.Client) {
	for next := int64(1); n.ctx.Err() == nil; {
		n.tried.Store(next)
		ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
		answer, err := client.Txn(ctx).If(clientv3.Compare(clientv3.Version(counterKey), "=", next-1)).
			Then(clientv3.OpPut(counterKey, strconv.FormatInt(next, 10))).Else(clientv3.OpGet(counterKey)).Commit()
		cancel()
		if err == nil {
			if !answer.Succeeded { // an earlier attempt did it, and nobody else writes the key
				if got := (*clientv3.GetResponse)(answer.Responses[0].GetResponseRange()); valueOf(got) != next {
					n.failed("the writer found %v where %d was acknowledged and %d tried", got.Kvs, next-1, next)
					return
				}
			}
			n.acknowledged.Store(next)
			next++
		}
		n.pause()
	}
}

func (n *counter) failed(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fault == "" {
		n.fault = fmt.Sprintf(format, args...)
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
	n.answers[m.name]++
	n.mu.Unlock()
	if most := n.tried.Load(); found < least || found > most {
		n.failed("%s answered %d; %d was acknowledged before it was asked, and %d was tried last", m.name, found, least, most)
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

// goesOn waits until something that is tried after this call is acknowledged.
func (n *counter) goesOn() {
	n.t.Helper()
	before := n.tried.Load()
	for deadline := time.Now().Add(patience); n.acknowledged.Load() <= before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("%d was tried, and nothing after %d was acknowledged within %v", n.tried.Load(), before, patience)
		}
	}
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
