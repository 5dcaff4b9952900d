package mvcc

import (
	"bytes"
	"context"
	"fmt"
	"math"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// minCorrections is how many changes a count at an older revision looks at in any case before it walks the keys instead.
const minCorrections = 4096

// total counts the live keys of r, which is not a single key, at the view's revision. At the current revision that is
// whole fences and two edges; at an older one, that count corrected by the changes since, if they are not too many; else
// the keys are walked.
func (v *view) total(ctx context.Context, r kv.Range) (int64, error) {
	if v.revision < v.current {
		now, err := v.totalNow(ctx)
		if err != nil {
			return 0, err
		}
		made, ok, err := v.madeSince(ctx, r, max(minCorrections, now))
		if err != nil {
			return 0, err
		}
		if ok {
			return now - made, nil
		}
	}
	if v.revision == v.current {
		return v.totalNow(ctx)
	}
	return v.walkAll(ctx, r, v.revision)
}

// totalNow counts at the current revision. It moves v.it, which is of no use for rows any more.
func (v *view) totalNow(ctx context.Context) (int64, error) {
	n := v.count.whole
	for i := range v.count.edges {
		inside, err := v.countEdge(ctx, &v.count.edges[i])
		if err != nil {
			return 0, err
		}
		n += inside
		if e := &v.count.edges[i]; v.known != nil && e.before == 0 {
			v.known.add(e.inside, inside, v.current)
		}
	}
	return n, nil
}

// startWalk is a walk up from the start of a range that learns on its way how many keys the edge there holds, so that a page
// does not walk twice over what it shows.
type startWalk struct {
	view *view
	edge *edge // the one that the walk began in and has not left; nil: none
}

// startEdge returns the walk of o, if that begins with an edge at the view's current revision.
func (v *view) startEdge(o *kv.RangeOptions, down bool) startWalk {
	w := startWalk{view: v}
	if e := v.count.edges; !down && v.revision == v.current && len(e) > 0 && bytes.Equal(e[0].inside.Key, o.Key) {
		w.edge = &e[0]
	}
	return w
}

// meet is told of each key, and how many came before it. The first behind the edge makes the count of it known.
func (w *startWalk) meet(key []byte, before int64) {
	if w.edge == nil || w.edge.inside.Contains(key) {
		return
	}
	w.view.count.whole += before
	w.view.count.edges = w.view.count.edges[1:]
	w.edge = nil
}

// walked ends the walk at key: the keys before it need not be counted any more.
func (w *startWalk) walked(key []byte, before int64) {
	if w.edge != nil {
		w.edge.before, w.edge.inside.Key = before, bytes.Clone(key)
	}
}

// countEdge counts the keys inside e. How many the whole fence has is known, so counting those outside does as well: both
// are walked by turns, in strides that grow, until one has come to its end. The bounds of a prefix mostly have nothing
// outside, and are counted by one look at it.
func (v *view) countEdge(ctx context.Context, e *edge) (int64, error) {
	outside := walk{view: v, revision: v.current, it: v.it}
	for _, r := range e.outside {
		if len(r.End) > 0 {
			outside.left = append(outside.left, r)
		}
	}
	inside := walk{view: v, revision: v.current, left: []kv.Range{e.inside}, n: e.before}
	defer inside.close()
	for stride := int64(8); ; stride *= 2 {
		if done, err := outside.step(ctx, stride); done || err != nil {
			if err == nil && outside.n > e.keys {
				err = fmt.Errorf("%w: fence %d has %d keys, walking found %d in a part of it", engine.ErrMalformed, e.fence, e.keys, outside.n)
			}
			return e.keys - outside.n, err
		}
		if done, err := inside.step(ctx, stride); done || err != nil {
			return inside.n, err
		}
	}
}

// walkAll counts the live keys of r one by one.
func (v *view) walkAll(ctx context.Context, r kv.Range, revision int64) (int64, error) {
	w := walk{view: v, revision: revision, left: []kv.Range{r}, it: v.it}
	_, err := w.step(ctx, math.MaxInt64)
	return w.n, err
}

// walk counts the live keys of some ranges at one revision, one by one.
type walk struct {
	view     *view
	revision int64
	left     []kv.Range   // not begun
	n        int64        // keys found so far
	it       *engine.Iter // another one than the view's is made when it is needed
	c        *cursor      // nil between two ranges
}

// step goes on for up to stride keys, and reports whether that was the end.
func (w *walk) step(ctx context.Context, stride int64) (done bool, err error) {
	for limit := w.n + min(stride, math.MaxInt64-w.n); w.n < limit; {
		var ok bool
		if w.c != nil {
			ok = w.c.next()
		} else if ok, err = w.begin(); w.c == nil {
			return err == nil, err
		}
		switch {
		case ok:
			w.n++
		case w.c.err != nil:
			return false, w.c.err
		default:
			w.c = nil
		}
		if w.n%checkEvery == 0 && ctx.Err() != nil {
			return false, ctx.Err()
		}
	}
	return false, nil
}

// begin moves to the first key of the next range, if one is left.
func (w *walk) begin() (ok bool, err error) {
	if len(w.left) == 0 {
		return false, nil
	}
	lower, upper := engine.VersionBounds(w.left[0])
	w.left = w.left[1:]
	if w.it == nil {
		if w.it, err = w.view.it.Clone(lower, upper); err != nil {
			return false, err
		}
	} else {
		w.it.SetBounds(lower, upper)
	}
	w.c = newKeyCursor(w.it, w.revision)
	return w.c.first(), nil
}

func (w *walk) close() {
	if w.it != nil && w.it != w.view.it {
		w.it.Close() // it only read: an error of it was returned where it happened
	}
}

// madeSince returns how many more keys r has at the current revision than at the view's, by the changes in between. It
// gives up, with ok false, after budget changes.
func (v *view) madeSince(ctx context.Context, r kv.Range, budget int64) (made int64, ok bool, err error) {
	lower := engine.AppendRevision(nil, kv.Revision{Main: v.revision + 1})
	upper := engine.AppendRevision(nil, kv.Revision{Main: v.current + 1})
	it, err := v.it.Clone(lower, upper)
	if err != nil {
		return 0, false, err
	}
	defer it.Close()
	seen := int64(0)
	for more := it.First(); more; more = it.Next() {
		if seen++; seen > budget {
			return 0, false, it.Err()
		}
		if seen%checkEvery == 0 && ctx.Err() != nil {
			return 0, false, ctx.Err()
		}
		c, err := engine.DecodeChange(it.Value())
		if err != nil {
			return 0, false, err
		}
		if bytes.Compare(c.Key, r.Key) < 0 || !r.Contains(c.Key) {
			continue
		}
		switch {
		case c.Type == kv.Delete:
			made--
		case c.Superseded.IsZero():
			made++
		}
	}
	return made, true, it.Err()
}
