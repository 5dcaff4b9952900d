package replica

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/transport"
)

// TestChaos lets clients write and read through all members while members crash, lose unsynced data, restart, are cut off,
// paused and asked to hand leadership over, on a network that loses, doubles and delays. In the end all members hold the
// same commands, each once, and all that were acknowledged; and no read ever missed what was acknowledged before it.
func TestChaos(t *testing.T) {
	seeds, first := uint64(4), uint64(1)
	if testing.Short() {
		seeds = 1
	}
	if text := os.Getenv("TRIVET_TEST_SEEDS"); text != "" { // such as 100+20: twenty from 100 on
		if _, err := fmt.Sscanf(text, "%d+%d", &first, &seeds); err != nil {
			t.Fatal(err)
		}
	}
	for seed := first; seed < first+seeds; seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) { runChaos(t, seed) })
		})
	}
}

// chaos guards the members against clients while one is being restarted.
type chaos struct {
	*cluster
	mu      sync.Mutex
	acked   []string
	nodes   map[uint64]*node
	writes  int
	reads   int
	refused int
}

func (c *chaos) node(id uint64) *node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[id]
}

func (c *chaos) set(id uint64, n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[id] = n
}

func runChaos(t *testing.T, seed uint64) {
	voters := []int{3, 5}[seed%2]
	cl := newCluster(t, voters, int(seed%3)%2, transport.NetworkOptions{
		Seed: seed, MinDelay: 200 * time.Microsecond, MaxDelay: 5 * time.Millisecond, Loss: 0.02, Duplicate: 0.05,
	}, Config{CatchupEntries: 100, MaxEntryBytes: 2048, MaxInflightBatches: 16})
	defer cl.close()
	c := &chaos{cluster: cl, nodes: map[uint64]*node{}}
	for id, m := range cl.members {
		c.nodes[id] = m.node
	}
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for i := range 6 {
		clients.Go(func() { c.client(ctx, i, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
	end := time.Now().Add(40 * time.Second)
	for time.Now().Before(end) {
		c.trouble(voters)
		time.Sleep(time.Duration(cl.rng.IntN(3000)) * time.Millisecond)
	}
	cl.net.Heal()
	for _, id := range cl.ids() {
		cl.net.Resume(id)
		if c.node(id) == nil {
			cl.start(id)
			c.set(id, cl.members[id].node)
		}
	}
	time.Sleep(5 * time.Second)
	stop()
	clients.Wait()
	cl.acked = c.acked
	if err := cl.check(60 * time.Second); err != nil {
		t.Error(err)
	}
	for _, id := range cl.ids() {
		if err := cl.read(id, 5*time.Second); err != nil {
			t.Errorf("in the end a read on member %d: %v", id, err)
		}
	}
	t.Logf("%d writes acknowledged, %d not; %d reads", c.writes, c.refused, c.reads)
	if c.writes < 1000 || c.reads < 1000 {
		t.Errorf("only %d writes and %d reads got through", c.writes, c.reads)
	}
}

// client writes and reads through members at random until ctx ends.
func (c *chaos) client(ctx context.Context, name int, rng *rand.Rand) {
	for i := 0; ctx.Err() == nil; i++ {
		n := c.node(rng.Uint64N(uint64(len(c.members))) + 1)
		if n == nil {
			time.Sleep(time.Millisecond)
			continue
		}
		limit, cancel := context.WithTimeout(ctx, 4*time.Second)
		if rng.IntN(2) == 0 {
			c.write(limit, n, fmt.Sprintf("%d-%d", name, i))
		} else {
			c.readOne(limit, n)
		}
		cancel()
		time.Sleep(time.Duration(rng.IntN(5)) * time.Millisecond)
	}
}

func (c *chaos) write(ctx context.Context, n *node, cmd string) {
	err := n.r.Propose(ctx, nil, []byte(cmd))
	for err == nil && !n.machine.has(cmd) {
		if err = ctx.Err(); err == nil && n.r.ctx.Err() != nil {
			err = context.Canceled
		}
		time.Sleep(500 * time.Microsecond)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.refused++
		return
	}
	c.writes++
	c.acked = append(c.acked, cmd)
}

func (c *chaos) readOne(ctx context.Context, n *node) {
	c.mu.Lock()
	acked := len(c.acked)
	c.mu.Unlock()
	if n.r.ReadBarrier(ctx, nil) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reads++
	for _, cmd := range c.acked[max(0, acked-50):acked] {
		if !n.machine.has(cmd) {
			c.t.Errorf("stale read: %q was acknowledged before and is not there", cmd)
		}
	}
}

// trouble does one bad thing, or ends one.
func (c *chaos) trouble(voters int) {
	ids := c.ids()
	id := ids[c.rng.IntN(len(ids))]
	down := len(ids) - len(c.alive())
	switch c.rng.IntN(8) {
	case 0, 1:
		if c.node(id) != nil && down < voters/2+c.rng.IntN(2) {
			c.set(id, nil)
			c.crash(id)
		}
	case 2, 3:
		for _, id := range ids {
			if c.node(id) == nil {
				c.start(id)
				c.set(id, c.members[id].node)
				break
			}
		}
	case 4:
		c.net.Partition([]uint64{id})
	case 5:
		c.net.Cut(id, ids[c.rng.IntN(len(ids))])
	case 6:
		c.net.Heal()
		for _, id := range ids {
			c.net.Resume(id)
		}
	case 7:
		if n := c.node(id); n != nil && c.rng.IntN(2) == 0 {
			c.net.Pause(id)
			return
		} else if n != nil {
			ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
			_ = n.r.TransferLeadership(ctx, ids[c.rng.IntN(len(ids))])
			cancel()
		}
	}
}
