package mvcc

import (
	"bytes"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// patience is how many versions of a key a cursor steps over before it seeks.
const patience = 6

// cursor walks the live keys of an iterator over version rows as they were at one revision, up or down. key, rev and tail
// are those of the key it stands on, valid until the next move.
type cursor struct {
	it       *engine.Iter
	revision int64
	// keysOnly: tail is not wanted, and rows are not read for it. It is empty then. For walking up.
	keysOnly bool

	key  []byte
	rev  kv.Revision
	tail []byte
	err  error

	seek             []byte // scratch
	keyBuf, valueBuf []byte // walking down copies: the row is left behind before the key is known to be done
}

func newCursor(it *engine.Iter, revision int64) *cursor { return &cursor{it: it, revision: revision} }

// newKeyCursor returns a cursor for who wants to know which keys are live, and no more. The rows of large values lie in files
// of their own, so that it reads a small part of what a cursor does.
func newKeyCursor(it *engine.Iter, revision int64) *cursor {
	return &cursor{it: it, revision: revision, keysOnly: true}
}

// only moves to key, if it is live. No other move may follow.
func (c *cursor) only(key []byte) bool {
	c.seek = engine.AppendVersionAt(c.seek[:0], key, c.revision)
	if !c.it.SeekPrefix(c.seek) {
		c.err = c.it.Err()
		return false
	}
	_, rev, err := engine.DecodeVersion(c.it.Key())
	if err != nil {
		c.err = err
		return false
	}
	tail, tombstone, err := engine.DecodeVersionValue(c.it.Value())
	if err != nil || tombstone {
		c.err = err
		return false
	}
	c.key, c.rev, c.tail = key, rev, tail
	return true
}

func (c *cursor) first() bool { return c.settle(c.it.First()) }

// next moves up.
func (c *cursor) next() bool { return c.settle(c.it.NextPrefix()) }

// settle moves up to the first live key at or after the iterator's row, which is the newest version of its key.
func (c *cursor) settle(ok bool) bool {
	newer := 0
	for ok {
		key, rev, err := engine.DecodeVersion(c.it.Key())
		if err != nil {
			c.err = err
			return false
		}
		if rev.Main > c.revision {
			if newer++; newer < patience {
				ok = c.it.Next()
			} else {
				c.seek = engine.AppendVersionAt(c.seek[:0], key, c.revision)
				ok, newer = c.it.SeekGE(c.seek), 0
			}
			continue
		}
		tail, tombstone, err := c.value()
		if err != nil {
			c.err = err
			return false
		}
		if tombstone {
			ok, newer = c.it.NextPrefix(), 0
			continue
		}
		c.key, c.rev, c.tail = key, rev, tail
		return true
	}
	c.err = c.it.Err()
	return false
}

// value takes the row's value apart. One that is longer than a tombstone is that of a live version.
func (c *cursor) value() (tail []byte, tombstone bool, err error) {
	if c.keysOnly && c.it.ValueLen() > engine.TombstoneBytes {
		return nil, false, nil
	}
	return engine.DecodeVersionValue(c.it.Value())
}

func (c *cursor) last() bool { return c.settleDown(c.it.Last()) }

// prev moves down. The iterator stands before the key's rows already.
func (c *cursor) prev() bool { return c.settleDown(c.it.Valid()) }

// settleDown moves down to the first live key at or before the iterator's row, which is the oldest version of its key,
// and leaves the iterator on the oldest version of the key before.
func (c *cursor) settleDown(ok bool) bool {
	for ok {
		row := c.it.Key()
		n := engine.VersionPrefixLen(row)
		c.keyBuf = append(c.keyBuf[:0], row[:n]...)
		live := false
		for steps := 0; ; steps++ {
			key, rev, err := engine.DecodeVersion(c.it.Key())
			if err != nil {
				c.err = err
				return false
			}
			if rev.Main > c.revision || steps == patience {
				if rev.Main <= c.revision {
					if live, err = c.seekDown(key); err != nil {
						c.err = err
						return false
					}
				}
				ok = c.it.SeekLT(c.keyBuf)
				break
			}
			if live, err = c.keep(rev); err != nil {
				c.err = err
				return false
			}
			ok = c.it.Prev()
			if !ok || !c.sameKey() {
				break
			}
		}
		if live {
			c.key = c.keyBuf[1 : len(c.keyBuf)-1]
			return true
		}
	}
	c.err = c.it.Err()
	return false
}

func (c *cursor) sameKey() bool {
	row := c.it.Key()
	return bytes.Equal(row[:engine.VersionPrefixLen(row)], c.keyBuf)
}

// keep copies the version the iterator stands on and reports whether it is live.
func (c *cursor) keep(rev kv.Revision) (live bool, err error) {
	tail, tombstone, err := engine.DecodeVersionValue(c.it.Value())
	if err != nil || tombstone {
		return false, err
	}
	c.valueBuf = append(c.valueBuf[:0], tail...)
	c.rev, c.tail = rev, c.valueBuf
	return true, nil
}

// seekDown finds the version of a key with many of them.
func (c *cursor) seekDown(key []byte) (live bool, err error) {
	c.seek = engine.AppendVersionAt(c.seek[:0], key, c.revision)
	if !c.it.SeekGE(c.seek) {
		return false, c.it.Err()
	}
	_, rev, err := engine.DecodeVersion(c.it.Key())
	if err != nil {
		return false, err
	}
	return c.keep(rev)
}

func (c *cursor) row() Row { return Row{Key: c.key, ModRevision: c.rev.Main, Tail: c.tail} }
