package watch

import (
	"bytes"
	"hash/maphash"

	"github.com/trivet-kv/trivet/internal/kv"
)

// index finds the watchers of a key: those of that single key by hash, those of ranges in an interval tree. A watcher is
// in one index at a time, and its fields group and slot say where.
type index struct {
	keys   map[string]*group
	ranges *node
	seed   maphash.Seed
}

// group is the watchers of one and the same range, in no order.
type group struct {
	watchers []*watcher
}

func (g *group) add(w *watcher) {
	w.group, w.slot = g, len(g.watchers)
	g.watchers = append(g.watchers, w)
}

// remove takes w out and reports whether the group is empty.
func (g *group) remove(w *watcher) bool {
	last := len(g.watchers) - 1
	moved := g.watchers[last]
	g.watchers[w.slot], moved.slot = moved, w.slot
	g.watchers[last] = nil
	g.watchers = g.watchers[:last]
	w.group = nil
	return last == 0
}

func newIndex() index { return index{keys: make(map[string]*group), seed: maphash.MakeSeed()} }

func (x *index) add(w *watcher) {
	if w.Single() {
		g := x.keys[string(w.Key)]
		if g == nil {
			g = &group{}
			x.keys[string(w.Key)] = g
		}
		g.add(w)
		return
	}
	var n *node
	x.ranges, n = x.ranges.insert(w.Range, x.priority(w.Range))
	n.group.add(w)
}

func (x *index) remove(w *watcher) {
	if !w.group.remove(w) {
		return
	}
	if w.Single() {
		delete(x.keys, string(w.Key))
	} else {
		x.ranges = x.ranges.delete(w.Range)
	}
}

// visit calls f for each watcher of key. f must not change the index.
func (x *index) visit(key []byte, f func(*watcher)) {
	if g := x.keys[string(key)]; g != nil {
		for _, w := range g.watchers {
			f(w)
		}
	}
	x.ranges.stab(key, f)
}

// node is a node of a treap ordered by (Key, End) that knows the greatest end below it. Priorities are hashes of the
// range, so the tree is balanced as a random one is, whatever ranges clients choose. A nil node is the empty tree.
type node struct {
	kv.Range
	max         []byte // the greatest End below, and itself; meaningless if unbounded
	unbounded   bool   // some range below has no end
	priority    uint64
	left, right *node
	group       group
}

func (x *index) priority(r kv.Range) uint64 {
	var h maphash.Hash
	h.SetSeed(x.seed)
	h.Write(r.Key)
	h.WriteByte(0)
	h.Write(r.End)
	return h.Sum64()
}

func compareRanges(a, b kv.Range) int {
	if c := bytes.Compare(a.Key, b.Key); c != 0 {
		return c
	}
	return bytes.Compare(a.End, b.End)
}

// insert returns the tree with a node for r, and that node.
func (n *node) insert(r kv.Range, priority uint64) (tree, at *node) {
	if n == nil {
		n = &node{Range: r, priority: priority}
		n.update()
		return n, n
	}
	switch c := compareRanges(r, n.Range); {
	case c == 0:
		return n, n
	case c < 0:
		n.left, at = n.left.insert(r, priority)
		if n.left.priority > n.priority {
			l := n.left
			n.left, l.right = l.right, n
			n.update()
			n = l
		}
	default:
		n.right, at = n.right.insert(r, priority)
		if n.right.priority > n.priority {
			t := n.right
			n.right, t.left = t.left, n
			n.update()
			n = t
		}
	}
	n.update()
	return n, at
}

// delete returns the tree without the node for r.
func (n *node) delete(r kv.Range) *node {
	if n == nil {
		return nil
	}
	switch c := compareRanges(r, n.Range); {
	case c < 0:
		n.left = n.left.delete(r)
	case c > 0:
		n.right = n.right.delete(r)
	default:
		return join(n.left, n.right)
	}
	n.update()
	return n
}

// join makes one tree of two, all of whose ranges in a come before those of b.
func join(a, b *node) *node {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.priority > b.priority:
		a.right = join(a.right, b)
		a.update()
		return a
	default:
		b.left = join(a, b.left)
		b.update()
		return b
	}
}

func (n *node) update() {
	n.max, n.unbounded = n.End, n.FromKey()
	for _, c := range []*node{n.left, n.right} {
		if c == nil {
			continue
		}
		n.unbounded = n.unbounded || c.unbounded
		if bytes.Compare(c.max, n.max) > 0 {
			n.max = c.max
		}
	}
}

// stab visits the watchers of all ranges that contain key.
func (n *node) stab(key []byte, f func(*watcher)) {
	for n != nil && (n.unbounded || bytes.Compare(key, n.max) < 0) {
		n.left.stab(key, f)
		if bytes.Compare(key, n.Key) < 0 {
			return
		}
		if n.FromKey() || bytes.Compare(key, n.End) < 0 {
			for _, w := range n.group.watchers {
				f(w)
			}
		}
		n = n.right
	}
}
