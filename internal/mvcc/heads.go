package mvcc

import "github.com/trivet-kv/trivet/internal/kv"

// head is what a write must know of a key's newest version. It does not hold the value.
type head struct {
	mod     kv.Revision
	create  int64
	version int64
	lease   kv.LeaseID
	live    bool // false: deleted, or never written

	// The change that made it, if the writer that is open now did: then its value is in that writer's events.
	writer uint64
	event  int32
}

// headCost is about what an entry takes beside its key, in bytes.
const headCost = 160

// headCache keeps the heads of the keys used last, in two generations: when the young one is full it becomes the old one,
// and what is used from the old one comes back into the young one. It belongs to the writer. Generations turn only
// between writers, so that a head written by an open writer is always found.
type headCache struct {
	young, old map[string]*head
	youngBytes int
	limit      int // bytes of one generation
}

func newHeadCache(bytes int) headCache {
	return headCache{young: map[string]*head{}, old: map[string]*head{}, limit: bytes / 2}
}

// get returns the key's head if it is known. The caller may change it.
func (c *headCache) get(key []byte) (*head, bool) {
	if h, ok := c.young[string(key)]; ok {
		return h, true
	}
	h, ok := c.old[string(key)]
	if ok {
		c.put(key, h)
	}
	return h, ok
}

func (c *headCache) put(key []byte, h *head) {
	c.young[string(key)] = h
	c.youngBytes += len(key) + headCost
}

// turn ends a generation if it is full.
func (c *headCache) turn() {
	if c.youngBytes > c.limit {
		c.old, c.young, c.youngBytes = c.young, make(map[string]*head, len(c.young)), 0
	}
}

// forget drops everything: the heads of a batch that was never committed are wrong.
func (c *headCache) forget() {
	clear(c.young)
	clear(c.old)
	c.youngBytes = 0
}
