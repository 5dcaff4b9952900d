package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/trivet-kv/trivet/internal/kv"
)

// crasher takes the picture of a crash before one operation of the file system.
type crasher struct {
	fs      *vfs.MemFS
	at      int64 // the operation before which it crashes; 0: never
	percent int   // of unsynced data that survives
	seen    atomic.Int64
	links   sync.Mutex // held while a file is linked, and while the picture is taken; see linkFS

	mu     sync.Mutex
	left   *vfs.MemFS
	before func() promise // what was promised before the crash
	made   promise
}

// promise is what must hold after a crash: the batch said to be durable, and whether the checkpoint was made.
type promise struct {
	durable    uint64
	checkpoint bool
}

func (c *crasher) String() string { return "crasher" }

func (c *crasher) MaybeError(op errorfs.Op) error {
	switch op.Kind {
	case errorfs.OpFileRead, errorfs.OpFileReadAt, errorfs.OpStat, errorfs.OpFileStat, errorfs.OpList, errorfs.OpGetDiskUsage:
		return nil // changes nothing
	}
	if n := c.seen.Add(1); n != c.at {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// What is promised is read first: it may only grow until the picture is taken.
	c.made = c.before()
	c.links.Lock()
	defer c.links.Unlock()
	c.left = c.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: c.percent, RNG: rand.New(rand.NewPCG(uint64(c.at), 7))})
	return nil
}

// linkFS keeps links and CrashClone apart: MemFS takes its two locks in another order for a link than for whatever else changes it, and
// a picture that is taken between the two leaves all three waiting for one another.
type linkFS struct {
	vfs.FS
	links *sync.Mutex
}

func (f linkFS) Link(oldname, newname string) error {
	f.links.Lock()
	defer f.links.Unlock()
	return f.FS.Link(oldname, newname)
}

// crashScript commits batches, flushes and makes a checkpoint, and returns how many operations that took.
func crashScript(t *testing.T, c *crasher) (operations int64) {
	t.Helper()
	var durable atomic.Uint64
	var made atomic.Bool
	c.before = func() promise { return promise{durable.Load(), made.Load()} }
	fs := errorfs.Wrap(linkFS{c.fs, &c.links}, c)
	e, err := Open(Options{FS: fs, Dir: "state", MemTableBytes: 64 << 10, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const batches = 300
	for i := uint64(1); i <= batches; i++ {
		b := e.NewBatch()
		check(b.Set(crashRow(i), crashValue(i)))
		check(b.Set([]byte("ulast"), binary.BigEndian.AppendUint64(nil, i)))
		check(b.Set(AppendVersion(nil, []byte("same"), kv.Revision{Main: int64(i)}), AppendTombstoneValue(nil)))
		if i > 5 {
			check(b.Delete(crashRow(i - 5)))
		}
		check(b.Set(MetaApplied(), AppendApplied(nil, i, 1)))
		check(b.Commit())
		check(b.Close())
		switch i {
		case 60, 140, 141, 250:
			check(e.Flush())
			durable.Store(i)
		case 200:
			check(e.Checkpoint("copy"))
			durable.Store(i)
			made.Store(true)
		default:
			if i%10 == 0 {
				n, err := e.DurableApplied()
				check(err)
				durable.Store(n)
			}
		}
	}
	check(e.Close())
	return c.seen.Load()
}

func crashRow(i uint64) []byte { return fmt.Appendf(nil, "urow%06d", i) }

// crashValue is a large one now and then, which gets into a file of its own kind.
func crashValue(i uint64) []byte {
	if i%12 == 0 {
		return bytes.Repeat(crashRow(i), largeValue/8)
	}
	return make([]byte, 600)
}

// Whatever operation of the file system a crash comes before, and whatever part of unsynced data it spares, what is left
// is the state after one batch, no older than what was said to be durable; and a checkpoint that was made is whole.
func TestCrashBeforeEveryOperation(t *testing.T) {
	total := crashScript(t, &crasher{fs: vfs.NewCrashableMem()})
	step := int64(1)
	if testing.Short() {
		step = 13
	}
	rng := rand.New(rand.NewPCG(8, 8))
	crashed := 0
	for at := int64(1); at <= total; at += step {
		var c *crasher
		for range 5 { // background work may take fewer operations this time
			c = &crasher{fs: vfs.NewCrashableMem(), at: at, percent: []int{0, 50, 100}[rng.IntN(3)]}
			if crashScript(t, c); c.left != nil {
				break
			}
		}
		if c.left == nil {
			continue
		}
		crashed++
		last := verifyCrashed(t, c.left, "state", at)
		if last < c.made.durable {
			t.Fatalf("operation %d: batch %d was durable, the state is at %d", at, c.made.durable, last)
		}
		if c.made.checkpoint {
			if last := verifyCrashed(t, c.left, "copy", at); last != 200 {
				t.Fatalf("operation %d: the checkpoint is at %d", at, last)
			}
		}
	}
	t.Logf("%d operations, crashed before %d", total, crashed)
	if crashed < int(total/step)*8/10 {
		t.Fatalf("crashed before %d of %d operations", crashed, total/step)
	}
}

// verifyCrashed opens what is left and returns the batch that it is the state after.
func verifyCrashed(t *testing.T, fs vfs.FS, dir string, at int64) uint64 {
	t.Helper()
	e, err := Open(Options{FS: fs, Dir: dir, MemTableBytes: 64 << 10, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatalf("operation %d: %v", at, err)
	}
	defer e.Close()
	last, err := e.DurableApplied()
	if err != nil {
		t.Fatal(err)
	}
	if last == 0 {
		return 0
	}
	value, _, err := e.Get([]byte("ulast"))
	if err != nil || binary.BigEndian.Uint64(value) != last {
		t.Fatalf("operation %d: applied %d, last row %x, %v", at, last, value, err)
	}
	count := func(lower, upper []byte) (n uint64) {
		it, err := e.NewIter(lower, upper)
		if err != nil {
			t.Fatal(err)
		}
		for ok := it.First(); ok; ok = it.Next() {
			n++
		}
		if err := it.Close(); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count([]byte("urow"), []byte("urox")); n != min(last, 5) {
		t.Fatalf("operation %d: %d rows left at batch %d", at, n, last)
	}
	for i := last; i > last-min(last, 5); i-- {
		if value, found, err := e.Get(crashRow(i)); err != nil || !found || !bytes.Equal(value, crashValue(i)) {
			t.Fatalf("operation %d: row of batch %d found %t, %d bytes, %v", at, i, found, len(value), err)
		}
	}
	if n := count([]byte{PrefixVersion}, []byte{PrefixVersion + 1}); n != last {
		t.Fatalf("operation %d: %d versions at batch %d", at, n, last)
	}
	return last
}
