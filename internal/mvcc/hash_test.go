package mvcc

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// The same writes and compactions give the hash that etcd gives. What etcd answered is in testdata; it does not matter
// when the garbage of a compaction is deleted, nor whether it took place here if it is asked as if it had.
func TestHashKVEqualsEtcd(t *testing.T) {
	for _, compaction := range []string{"swept", "garbage", "elsewhere"} {
		f, err := os.Open("testdata/hashkv.txt")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		h := hashScript{t: t, compaction: compaction}
		for lines := bufio.NewScanner(f); lines.Scan(); h.line++ {
			h.run(strings.Split(lines.Text(), " "))
		}
		h.close()
		if h.hashes < 100 {
			t.Fatalf("only %d hashes compared", h.hashes)
		}
	}
}

type hashScript struct {
	t            *testing.T
	compaction   string // what becomes of one
	compacted    int64  // elsewhere
	e            *engine.Engine
	s            *Store
	line, hashes int
}

func (h *hashScript) check(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("line %d: %v", h.line+1, err)
	}
}

func (h *hashScript) hex(s string) []byte {
	b, err := hex.DecodeString(s)
	h.check(err)
	return b
}

func (h *hashScript) number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	h.check(err)
	return n
}

func (h *hashScript) close() {
	if h.e != nil {
		h.check(h.e.Close())
	}
}

func (h *hashScript) write(f func(w *Writer)) {
	b := h.e.NewBatch()
	defer b.Close()
	w := h.s.NewWriter(b)
	f(w)
	_, err := w.Publish()
	h.check(err)
}

func (h *hashScript) txn(f func(t *Txn)) {
	h.write(func(w *Writer) {
		t := w.Begin()
		f(t)
		t.End()
	})
}

func (h *hashScript) put(t *Txn, key, value, lease string) {
	_, err := t.Put(h.hex(key), h.hex(value), kv.LeaseID(h.number(lease)))
	h.check(err)
}

func (h *hashScript) delete(t *Txn, key, end string) {
	_, err := t.Delete(kv.Range{Key: h.hex(key), End: h.hex(end)}, false, nil)
	h.check(err)
}

func (h *hashScript) run(words []string) {
	switch words[0] {
	case "#":
	case "store":
		h.close()
		var err error
		h.e, err = engine.Open(engine.Options{FS: vfs.NewMem(), Dir: "state"})
		h.check(err)
		h.s, err = Open(h.e, Options{})
		h.check(err)
		h.compacted = -1
	case "put":
		h.txn(func(t *Txn) { h.put(t, words[1], words[2], words[3]) })
	case "delete":
		h.txn(func(t *Txn) { h.delete(t, words[1], words[2]) })
	case "txn":
		h.txn(func(t *Txn) {
			for _, op := range words[1:] {
				if key, value, ok := strings.Cut(op[1:], "="); ok {
					h.put(t, key, value, "0")
				} else {
					h.delete(t, key, "")
				}
			}
		})
	case "compact":
		if h.compaction == "elsewhere" {
			h.compacted = max(h.compacted, h.number(words[1]))
			return
		}
		h.write(func(w *Writer) { h.check(w.Compact(h.number(words[1]))) })
		for h.compaction == "swept" {
			_, done, err := h.s.CompactStep(context.Background(), 3)
			h.check(err)
			if done {
				break
			}
		}
	case "hash":
		h.compare(words[1:])
	default:
		h.t.Fatalf("line %d: %q", h.line+1, words)
	}
}

func (h *hashScript) compare(words []string) {
	hash, compact, rev, err := h.s.HashKVCompacted(context.Background(), h.number(words[0]), h.compacted)
	if words[1] == "error" {
		if !errors.Is(err, kv.ErrCompacted) {
			h.t.Fatalf("line %d: got error %v", h.line+1, err)
		}
		return
	}
	if h.number(words[2]) < max(h.s.CompactRevision(), h.compacted) {
		// etcd remembers the hashes that it computed while it compacted, ten of them, and answers those until it is
		// started again, even for revisions that are compacted since. Here a hash depends on the state alone.
		return
	}
	h.check(err)
	h.hashes++
	if int64(hash) != h.number(words[1]) || compact != h.number(words[2]) || rev != h.number(words[3]) {
		h.t.Errorf("line %d: hash %d compacted %d at %d, etcd says %v", h.line+1, hash, compact, rev, words[1:])
	}
}

// A negative revision lies before all history: the hash is etcd's over nothing, and it is there at once, however many
// versions a key has.
func TestHashKVNegativeRevision(t *testing.T) {
	e, s := openMem(t)
	x := script{t, e, s}
	for range 3 * patience {
		x.put("a", "value")
	}
	for _, at := range []int64{-1, -3, math.MinInt64} {
		hash, _, rev, err := x.s.HashKV(context.Background(), at)
		if hash != 1084519789 || rev != at || err != nil {
			t.Errorf("at %d: hash %d at %d, %v", at, hash, rev, err)
		}
	}
}
