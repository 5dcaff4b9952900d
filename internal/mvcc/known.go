package mvcc

import (
	"slices"
	"sync"

	"github.com/trivet-kv/trivet/internal/kv"
)

// knownEdges remembers how many keys walks have found in edges, since the same bounds come again and again: whoever counts a
// prefix does so every minute, and all pages of a list end at one bound. What is known of an edge holds until a key of its fence
// comes or goes.
type knownEdges struct {
	mu sync.Mutex
	of map[edgeBounds]knownEdge
}

type edgeBounds struct{ key, end string }

// knownEdge is how many live keys an edge held at a revision.
type knownEdge struct{ keys, at int64 }

// When more are known than maxKnownEdges all are forgotten. Those with longer bounds than maxKnownBytes are not remembered.
const maxKnownEdges, maxKnownBytes = 1024, 512

// settle adds what is known of c's edges to what c counts, and leaves it the others.
func (k *knownEdges) settle(c *fenceCount) {
	if len(c.edges) == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	c.edges = slices.DeleteFunc(c.edges, func(e edge) bool {
		x, known := k.of[edgeBounds{string(e.inside.Key), string(e.inside.End)}]
		if known = known && x.at >= e.changed; known {
			c.whole += x.keys
		}
		return known
	})
}

// add remembers that there were so many keys inside an edge at a revision.
func (k *knownEdges) add(inside kv.Range, keys, at int64) {
	if len(inside.Key)+len(inside.End) > maxKnownBytes {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	b := edgeBounds{string(inside.Key), string(inside.End)}
	x, known := k.of[b]
	if known && x.at > at {
		return // of somebody who began later and was quicker
	}
	if k.of == nil || !known && len(k.of) == maxKnownEdges {
		k.of = map[edgeBounds]knownEdge{}
	}
	k.of[b] = knownEdge{keys, at}
}
