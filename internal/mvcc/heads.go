package mvcc

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"unsafe"

	"github.com/trivet-kv/trivet/internal/kv"
)

// head is what a write must know of a key's newest version. It does not hold the value. It holds no pointer either, so
// that the garbage collector passes the cache by.
type head struct {
	main    int64 // revision of the version
	create  int64
	version int64 // 0: deleted, or never written
	lease   kv.LeaseID
	sub     uint32
	size    uint32 // of the value of the version's row
	event   uint32 // index of its change in the events of the writer that is open, if that made it

	hash  uint32 // of the key
	keyAt uint32 // where headTable has the key
}

func (h *head) live() bool { return h.version != 0 }

func (h *head) mod() kv.Revision { return kv.Revision{Main: h.main, Sub: int64(h.sub)} }

// superseded is the version that a change of the key replaces.
func (h *head) superseded() kv.Revision {
	if !h.live() {
		return kv.Revision{}
	}
	return h.mod()
}

// pair returns the head as a KeyValue without its value.
func (h *head) pair(key []byte) kv.KeyValue {
	return kv.KeyValue{Key: key, CreateRevision: h.create, ModRevision: h.main, Version: h.version, Lease: h.lease}
}

// headCache keeps the heads of the keys used last, in two generations: when the young one is full it becomes the old one,
// and what is used from the old one comes back into the young one. It belongs to the writer. Generations turn only
// between writers, so that a head written by an open writer is always found.
//
// Of every key that was written after revision since it has the head. So a key that it does not have can be looked up in
// any state at revision since or later, for instance in the durable one, where a memtable need not be searched.
type headCache struct {
	young, old *headTable
	oldEnd     int64 // the newest revision of a change that may be in old
	since      int64
	limit      int // bytes of one generation
	seed       maphash.Seed
}

func newHeadCache(bytes int, revision int64) headCache {
	return headCache{
		young: &headTable{}, old: &headTable{}, oldEnd: revision, since: revision, limit: bytes / 2, seed: maphash.MakeSeed(),
	}
}

func (c *headCache) hash(key []byte) uint32 { return uint32(maphash.Bytes(c.seed, key)) }

// get returns the key's head, nil if it is not known. The caller may change it until the generation turns.
func (c *headCache) get(key []byte) *head {
	hash := c.hash(key)
	if h := c.young.find(hash, key); h != nil {
		return h
	}
	old := c.old.find(hash, key)
	if old == nil {
		return nil
	}
	h := c.young.add(hash, key)
	at := h.keyAt
	*h = *old
	h.keyAt = at
	return h
}

// add returns a new head, of a key that was never written, for a key that get does not know.
func (c *headCache) add(key []byte) *head { return c.young.add(c.hash(key), key) }

// turn ends a generation if it is full. revision is that of the newest change.
func (c *headCache) turn(revision int64) {
	if c.young.bytes() <= c.limit {
		return
	}
	c.since, c.oldEnd = c.oldEnd, revision
	c.young, c.old = c.old, c.young
	c.young.clear()
}

// forget drops everything: the heads of a batch that was never committed are wrong. revision is that of the newest change
// that was.
func (c *headCache) forget(revision int64) {
	c.young.clear()
	c.old.clear()
	c.since, c.oldEnd = revision, revision
}

const (
	headBytes = int(unsafe.Sizeof(head{}))
	headPage  = 1 << 10  // heads that are allocated at once
	keyChunk  = 64 << 10 // bytes of keys that are, at the least
)

// headTable is a hash table of heads with linear probing. Heads and keys are added and never removed one by one; what
// was allocated serves again after clear.
type headTable struct {
	index []uint32 // number of a head plus 1; 0: none. A power of two, at most three quarters full
	pages [][]head
	n     int
	keys  [][]byte // chunks of lengths (uvarint) and keys
	full  int      // bytes in the chunks before the last
	chunk int      // the last
}

func (t *headTable) bytes() int {
	n := headBytes*t.n + 4*len(t.index) + t.full
	if t.chunk < len(t.keys) {
		n += len(t.keys[t.chunk])
	}
	return n
}

func (t *headTable) at(i uint32) *head { return &t.pages[i/headPage][i%headPage] }

func (t *headTable) find(hash uint32, key []byte) *head {
	if t.n == 0 {
		return nil
	}
	mask := uint32(len(t.index) - 1)
	for i := hash & mask; t.index[i] != 0; i = (i + 1) & mask {
		if h := t.at(t.index[i] - 1); h.hash == hash && bytes.Equal(t.key(h), key) {
			return h
		}
	}
	return nil
}

// key returns the key of a head.
func (t *headTable) key(h *head) []byte {
	b := t.keys[h.keyAt/keyChunk][h.keyAt%keyChunk:]
	n, used := binary.Uvarint(b)
	return b[used : used+int(n)]
}

// add adds a head for a key that is not there.
func (t *headTable) add(hash uint32, key []byte) *head {
	if 4*(t.n+1) > 3*len(t.index) {
		t.grow()
	}
	if t.n == len(t.pages)*headPage {
		t.pages = append(t.pages, make([]head, headPage))
	}
	h := t.at(uint32(t.n))
	*h = head{hash: hash, keyAt: t.addKey(key)}
	t.link(uint32(t.n))
	t.n++
	return h
}

// link enters head i into the index.
func (t *headTable) link(i uint32) {
	mask := uint32(len(t.index) - 1)
	at := t.at(i).hash & mask
	for t.index[at] != 0 {
		at = (at + 1) & mask
	}
	t.index[at] = i + 1
}

func (t *headTable) grow() {
	t.index = make([]uint32, max(2*len(t.index), 64))
	for i := range uint32(t.n) {
		t.link(i)
	}
}

// addKey returns where the key is. A key longer than a chunk has one of its own; every key begins within the first
// keyChunk bytes of its chunk.
func (t *headTable) addKey(key []byte) uint32 {
	need := binary.MaxVarintLen32 + len(key)
	if t.chunk < len(t.keys) && len(t.keys[t.chunk])+need > cap(t.keys[t.chunk]) {
		t.full += len(t.keys[t.chunk])
		t.chunk++
	}
	switch {
	case t.chunk == len(t.keys):
		t.keys = append(t.keys, make([]byte, 0, max(need, keyChunk)))
	case cap(t.keys[t.chunk]) < need: // left from before clear, and empty
		t.keys[t.chunk] = make([]byte, 0, need)
	}
	c := t.keys[t.chunk]
	at := uint32(t.chunk*keyChunk + len(c))
	c = binary.AppendUvarint(c, uint64(len(key)))
	t.keys[t.chunk] = append(c, key...)
	return at
}

// clear empties the table and keeps what it has allocated, but for the chunks of long keys.
func (t *headTable) clear() {
	clear(t.index)
	for i, c := range t.keys {
		if cap(c) > keyChunk {
			c = make([]byte, 0, keyChunk)
		}
		t.keys[i] = c[:0]
	}
	t.n, t.full, t.chunk = 0, 0, 0
}
