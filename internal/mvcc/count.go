package mvcc

import (
	"bytes"
	"context"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// minCorrections is how many changes a count at an older revision looks at in any case before it walks the keys instead.
const minCorrections = 4096

// total counts the live keys of r at the view's revision. At the current revision that is whole fences and two edges; at
// an older one, that count corrected by the changes since, if they are not too many; else the keys are walked.
func (v *view) total(ctx context.Context, r kv.Range) (int64, error) {
	if !r.Single() && v.revision < v.current {
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
	return v.walk(ctx, r, v.revision)
}

func (v *view) totalNow(ctx context.Context) (int64, error) {
	n := v.count.whole
	for _, edge := range v.count.edges {
		if len(edge.Key) == 0 {
			continue
		}
		walked, err := v.walk(ctx, edge, v.current)
		if err != nil {
			return 0, err
		}
		n += walked
	}
	return n, nil
}

// walk counts the live keys of r one by one.
func (v *view) walk(ctx context.Context, r kv.Range, revision int64) (n int64, err error) {
	lower, upper := engine.VersionBounds(r)
	it, err := v.it.Clone(lower, upper)
	if err != nil {
		return 0, err
	}
	defer it.Close()
	c := newCursor(it, revision)
	for ok := c.first(); ok; ok = c.next() {
		if n++; n%checkEvery == 0 && ctx.Err() != nil {
			return 0, ctx.Err()
		}
	}
	return n, c.err
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
