package engine

import (
	"bytes"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
)

const (
	// tableBytes is about how large a table of level 0 and of the level that it is merged into is, with the values that it refers
	// to; each level below has twice that.
	tableBytes = 8 << 20
	// largeValue is from where on the value of a row is written to a file of values, once, to which its table refers, so that
	// merging tables does not write it again. Reading it costs one more look into a file, which is little beside its bytes.
	largeValue = 16 << 10
	// maxValueFiles is how many files of values may lie beside each other in a table before a merge writes the values anew, in
	// the order of their keys.
	maxValueFiles = 64
	// The share of values that nothing refers to from which on their files are rewritten. The second is for when the owner is
	// short of room: what is rewritten for a byte that comes back grows as the share falls.
	valueGarbage      = 0.2
	valueGarbageShort = 0.02
)

// shape says how rows lie in files.
func (e *Engine) shape(p *pebble.Options) {
	p.Experimental.SpanPolicyFunc = tablesFor
	p.Experimental.ValueSeparationPolicy = func() pebble.ValueSeparationPolicy {
		v := pebble.ValueSeparationPolicy{
			Enabled: true, MinimumSize: largeValue, MaxBlobReferenceDepth: maxValueFiles, TargetGarbageRatio: valueGarbage,
		}
		if e.short.Load() {
			v.TargetGarbageRatio = valueGarbageShort
		}
		return v
	}
	p.TargetFileSizes[0], p.TargetFileSizes[1] = tableBytes, tableBytes
	for i := range p.Levels {
		p.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		p.Levels[i].BlockSize = 8 << 10
		p.Levels[i].IndexBlockSize = 64 << 10
	}
}

// tablesFor ends a table where revision rows begin and where they end. They are written in order and deleted from the oldest
// on, so that a table of them alone overlaps with no other and need not be rewritten: it stays, or is moved down as it
// is. Beside rows of other keys it would be part of each compaction of these.
func tablesFor(start []byte) (pebble.SpanPolicy, []byte, error) {
	revisions := []byte{PrefixRevision}
	behind := []byte{PrefixRevision + 1}
	switch {
	case bytes.Compare(start, revisions) < 0:
		return pebble.SpanPolicy{}, revisions, nil
	case bytes.Compare(start, behind) < 0:
		return pebble.SpanPolicy{}, behind, nil
	}
	return pebble.SpanPolicy{}, nil, nil
}
