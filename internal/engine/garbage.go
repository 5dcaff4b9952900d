package engine

import (
	"bytes"
	"context"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// A deleted row takes space until the engine has rewritten the files that hold it. Pebble does so by itself once the
// deletion is in a file, because a file counts as larger by what its deletions free; what it does not do is flush for their sake,
// and it leaves alone what is small beside the bounds of its levels, which are made for large stores. Garbage says
// how much there is, Flush and Reclaim do what is missing; when is the owner's choice.
//
// A large value lies in a file of values (shape.go), and stays there when its row is gone. Of these files the engine rewrites by itself
// those with the most such values, as long as their share of all is above a bound, which Short lowers.

// Garbage is about how many bytes of Size are rows that were deleted, as of the last Measure: in files by what the engine
// knows of its deletions, and by deletions that are not flushed yet, at most as much as there is in files.
func (e *Engine) Garbage() (files, unflushed int64) {
	m := e.sizes.measured.Load()
	return m.garbage + m.values, min(e.sizes.dropped.all.Load()-m.dropped, m.live)
}

// Busy reports whether the engine was compacting files by itself, or looking into new ones, at the last Measure.
func (e *Engine) Busy() bool { return e.sizes.measured.Load().busy }

// reclaimBytes is about how much Reclaim rewrites at once of one level.
const reclaimBytes = 16 << 20

// Reclaim rewrites the part of the state where the most garbage lies close together, and measures anew. It takes the
// time of rewriting some ten times reclaimBytes at the most; of the whole state if that is not much more. The context
// ends the waiting for it.
func (e *Engine) Reclaim(ctx context.Context) error {
	if err := e.gate.enter(); err != nil {
		return err
	}
	defer e.gate.leave()
	levels, err := e.db.SSTables()
	if err != nil {
		return fmt.Errorf("list the files of %s: %w", e.dir, err)
	}
	lower, upper := worstPart(levels)
	if lower == nil {
		return e.rewriteValues()
	}
	if bytes.Equal(lower, upper) {
		upper = append(bytes.Clone(upper), 0)
	}
	if err := e.db.Compact(ctx, lower, upper, false); err != nil {
		return fmt.Errorf("compact the files of %s: %w", e.dir, err)
	}
	e.Measure()
	return nil
}

// Short tells the engine whether its owner is short of room. Then it rewrites files of values for little.
func (e *Engine) Short(short bool) { e.short.Store(short) }

// rewriteValues has the engine look for files of values to rewrite, as it does after each flush. It goes on by itself then.
func (e *Engine) rewriteValues() error {
	err := e.Flush()
	e.Measure()
	return err
}

// worstPart finds the file with the most garbage and its neighbours in the same level, and returns the keys that these
// lie between; nil if there is no garbage.
func worstPart(levels [][]pebble.SSTableInfo) (lower, upper []byte) {
	var most uint64
	level, at := -1, 0
	for l, files := range levels[:len(levels)-1] { // the last level has nothing below it that its deletions would free
		for i := range files {
			if g := garbageOf(&files[i]); g > most {
				most, level, at = g, l, i
			}
		}
	}
	switch {
	case level < 0:
		return nil, nil
	case level == 0:
		// A file here may reach over all keys, and goes down whole however small the part asked for. The levels below
		// must not be rewritten from end to end for it.
		key := levels[0][at].Smallest.UserKey
		return key, key
	}
	files := levels[level]
	first, last, size := at, at, files[at].Size
	for ; last+1 < len(files) && size < reclaimBytes && garbageOf(&files[last+1]) > 0; last++ {
		size += files[last+1].Size
	}
	for ; first > 0 && size < reclaimBytes && garbageOf(&files[first-1]) > 0; first-- {
		size += files[first-1].Size
	}
	return files[first].Smallest.UserKey, files[last].Largest.UserKey
}

func garbageOf(f *pebble.SSTableInfo) uint64 {
	return f.TableStats.PointDeletionsBytesEstimate + f.TableStats.RangeDeletionsBytesEstimate
}
