package raftlog

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

var errCrashed = errors.New("crashed")

// universe is one log's life over several crashes, and what the model knows of it.
type universe struct {
	full          func(op string) bool // if set, whether the disk is full for the next operation
	begun, ending func()               // if set, called when a log has been opened and before it is closed
	t             *testing.T
	seed          uint64
	r             *rand.Rand
	fs            *vfs.MemFS
	opt           Options
	mu            sync.Mutex
	states        []model // states[k] is the log after k writes
	acked         int     // all writes up to this one must survive
	cut           uint64  // the largest Cut
	rigid         bool    // all writes have one entry of one size, so that what was torn off fits behind what is written anew
}

// crash makes the file system of a machine that lost power now: synced bytes, and of the others a random part, by blocks
// of 4096 bytes or by sectors of 512. Or only the process was killed, and everything written is still to be seen, though
// not yet on the disk.
func (u *universe) crash() *vfs.MemFS {
	if u.r.IntN(4) == 0 {
		return u.fs
	}
	percent := []int{0, 0, 20, 50, 80, 100}[u.r.IntN(6)]
	if u.r.IntN(3) > 0 {
		return losePower(u.fs, percent, u.r)
	}
	synced := losePower(u.fs, 0, u.r)
	latest := u.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: u.r})
	return u.mixSectors(synced, latest, percent)
}

// losePower is CrashClone, but a removal of a name that was not synced may have reached the disk or not, each on its own.
func losePower(fs *vfs.MemFS, percent int, r *rand.Rand) *vfs.MemFS {
	after := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: r})
	names, _ := after.List("log")
	slices.Sort(names)
	removed := false
	for _, name := range names {
		if _, err := fs.Stat("log/" + name); err != nil && r.IntN(100) < percent {
			_ = after.Remove("log/" + name)
			removed = true
		}
	}
	if removed {
		_ = syncDir(after, "log")
	}
	return after
}

// mixSectors overwrites a random part of a's sectors by b's, in files that both have with the same size.
func (u *universe) mixSectors(a, b *vfs.MemFS, percent int) *vfs.MemFS {
	names, _ := a.List("log")
	for _, name := range names {
		path := "log/" + name
		x, y := readFile(u.t, a, path), readFile(u.t, b, path)
		if len(x) != len(y) {
			continue
		}
		f, err := a.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
		if err != nil {
			u.t.Fatal(err)
		}
		for i := 0; i < len(x); i += 512 {
			if u.r.IntN(100) < percent {
				if _, err := f.WriteAt(y[i:min(i+512, len(y))], int64(i)); err != nil {
					u.t.Fatal(err)
				}
			}
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			u.t.Fatal(err)
		}
	}
	return a
}

func readFile(t testing.TB, fs vfs.FS, path string) []byte {
	t.Helper()
	f, err := fs.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// live runs the log until it crashes at the given step (counted from Open on) or has made the given number of writes and
// ended cleanly, and reports which.
func (u *universe) live(crashAt, writes int) (clean bool) {
	var after *vfs.MemFS
	var ackedAtCrash int
	steps := 0
	sfs := &stepFS{FS: u.fs, step: func(op string) error {
		if after != nil {
			return errCrashed
		}
		if steps++; steps == crashAt {
			u.mu.Lock()
			ackedAtCrash = u.acked
			after = u.crash()
			u.mu.Unlock()
			return errCrashed
		}
		if u.full != nil && u.full(op) {
			return syscall.ENOSPC
		}
		return nil
	}}
	opt := u.opt
	opt.FS, opt.Dir = sfs, "log"
	l, err := Open(opt)
	if err != nil {
		if !errors.Is(err, errCrashed) {
			u.t.Fatalf("open after a crash: %v", err)
		}
		u.fs = after
		return false
	}
	u.check(l)
	if u.begun != nil {
		u.begun()
	}
	for n := 0; n < writes && l.Err() == nil; n++ {
		u.write(l)
	}
	if u.ending != nil {
		u.ending()
	}
	if err := l.Close(); err != nil && !errors.Is(err, errCrashed) {
		u.t.Fatal(err)
	}
	clean = after == nil
	if clean { // a clean end makes everything durable
		u.acked = len(u.states) - 1
		after = u.crash()
		ackedAtCrash = u.acked
	}
	u.fs, u.acked = after, ackedAtCrash
	return clean
}

// check finds the write after which l stands, which must be acked or later, and goes on from there.
func (u *universe) check(l *Log) {
	u.t.Helper()
	u.mu.Lock() // the filler is at work already, and it may be the one who crashes
	defer u.mu.Unlock()
	why := ""
	for k := u.acked; k < len(u.states); k++ {
		d := diff(l, u.states[k], u.cut)
		if d == "" {
			u.states, u.acked = u.states[:k+1], k
			return
		}
		why += fmt.Sprintf("after write %d: %s\n", k, d)
	}
	u.t.Fatalf("seed %d: the log is in no state between the last acknowledged write %d and the last write %d:\n%s", u.seed,
		u.acked, len(u.states)-1, why)
}

// write appends one random write, sometimes waits for it, sometimes cuts.
func (u *universe) write(l *Log) {
	u.mu.Lock()
	k := len(u.states)
	m := u.states[k-1]
	w := randomWrite(u.r, m, u.cut)
	if u.rigid {
		w = Write{Entries: entriesFrom(m.last()+1, 1, 300, 1), Sync: u.r.IntN(4) == 0}
		w.Entries[0].Data[0] = byte(u.r.Uint32())
	}
	u.states = append(u.states, m.after(w))
	done := make(chan struct{})
	w.Done = func() {
		defer close(done)
		u.mu.Lock()
		defer u.mu.Unlock()
		if w.Sync || w.Reset != nil {
			u.acked = k
		}
	}
	wait := u.r.IntN(3) == 0
	var cut uint64
	if u.r.IntN(10) == 0 {
		// What may be cut is applied, hence acknowledged, and never overwritten.
		low := u.states[u.acked]
		for _, s := range u.states[u.acked:] {
			if s.last() < low.last() {
				low = s
			}
		}
		cut = low.last()
		for _, s := range u.states[u.acked:] {
			for i := low.before.Index; i <= cut; i++ {
				if i >= s.before.Index && i >= low.before.Index && s.term(i) != low.term(i) {
					cut = i - 1
					break
				}
			}
		}
		cut = max(cut, u.cut)
		u.cut = cut
	}
	u.mu.Unlock()
	l.Append(w)
	if cut > 0 {
		l.Cut(cut)
	}
	if wait {
		select {
		case <-done:
			u.mu.Lock()
			if d := diff(l, u.states[k], u.cut); d != "" {
				u.t.Errorf("while running, after write %d: %s", k, d)
			}
			u.mu.Unlock()
		case <-l.done: // failed
		}
	}
}

func newUniverse(t *testing.T, seed uint64) *universe {
	u := &universe{t: t, seed: seed, r: rand.New(rand.NewPCG(seed, 1)), fs: vfs.NewCrashableMem(), states: []model{{}}}
	u.opt.SegmentBytes = 8<<10 + 4096*int64(u.r.IntN(4))
	u.opt.CacheBytes = []int64{-1, 2000, 1 << 20}[u.r.IntN(3)]
	u.rigid = u.r.IntN(4) == 0
	return u
}

func seeds(t *testing.T, short, long uint64) (from, to uint64) {
	if s := os.Getenv("RAFTLOG_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n, n + 1
	}
	if testing.Short() {
		return 0, short
	}
	return 0, long
}

// TestCrashRandom crashes at random steps, over several lives of one log: during writes, segment switches, recycling,
// cuts, resets and recovery itself. RAFTLOG_SEED=n runs one seed.
func TestCrashRandom(t *testing.T) {
	from, to := seeds(t, 60, 400)
	for seed := from; seed < to; seed++ {
		u := newUniverse(t, seed)
		for life := 0; life < 8 && !t.Failed(); life++ {
			u.live(1+u.r.IntN(20+u.r.IntN(200)), 150)
		}
		u.live(-1, 5) // and once to the end
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// TestCrashEveryStep runs one history again and again and crashes it at each of its steps in turn.
func TestCrashEveryStep(t *testing.T) {
	from, to := seeds(t, 1, 6)
	for seed := from; seed < to; seed++ {
		for step := 1; ; step++ {
			u := newUniverse(t, seed)
			u.opt.SegmentBytes = 12 << 10
			ended := u.live(step, 60)
			u.live(1+u.r.IntN(10), 10) // crash soon again: in recovery, or in the first writes after it
			u.live(-1, 10)
			if t.Failed() {
				t.Fatalf("seed %d step %d", seed, step)
			}
			if ended {
				break
			}
		}
	}
}

// TestCrashInLargeCut cuts many segments at once, recycled ones and removed ones, and crashes at each step of that.
func TestCrashInLargeCut(t *testing.T) {
	for step := 1; ; step++ {
		steps := 0
		for seed := range uint64(10) {
			r := rand.New(rand.NewPCG(seed, uint64(step)))
			var armed bool
			var after *vfs.MemFS
			mem := vfs.NewCrashableMem()
			sfs := &stepFS{FS: mem}
			steps = 0
			sfs.step = func(string) error {
				if armed {
					if steps++; steps == step {
						after = losePower(mem, 50, r)
					}
				}
				return nil
			}
			o := memOptions()
			o.FS, o.SegmentBytes = sfs, minSegmentBytes
			l := mustOpen(t, o)
			all := entriesFrom(1, 30, 1000, 1)
			for i := range all {
				appendWait(t, l, Write{Entries: all[i : i+1], Sync: true})
			}
			sfs.mu.Lock()
			armed = true
			sfs.mu.Unlock()
			l.Cut(28)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if after == nil {
				continue
			}
			o.FS = after
			l = mustOpen(t, o)
			if d := diff(l, model{entries: all}, 28); d != "" {
				t.Fatalf("step %d seed %d: %s", step, seed, d)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if steps < step {
			return
		}
	}
}

// TestTornRemainsStayDead loses the first block of a group that was not synced, keeps the blocks behind it, then writes
// records of the same size over the hole: what is behind must not follow them.
func TestTornRemainsStayDead(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := memOptions()
	o.FS = mem
	l := mustOpen(t, o)
	appendWait(t, l, Write{Entries: entriesFrom(1, 1, 1000, 1), Sync: true})
	for i := range uint64(8) {
		appendWait(t, l, Write{Entries: entriesFrom(2+i, 1, 1000, 1)})
	}
	path := "log/" + segmentName(1, liveSuffix)
	latest := readFile(t, mem, path)
	torn := mem.CrashClone(vfs.CrashCloneCfg{})
	f, err := torn.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(latest[8192:], 8192); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	_ = l.Close()
	o.FS = torn
	for i := range uint64(4) {
		l = mustOpen(t, o)
		want := uint64(1)
		if i > 0 {
			want = 3 + i
		}
		if last, _ := l.LastIndex(); last != want {
			t.Fatalf("life %d: last index is %d, want %d", i, last, want)
		}
		if i == 0 { // fills the hole with the records that were there, but for their term
			appendWait(t, l, Write{Entries: entriesFrom(2, 1, 1000, 2), Sync: true})
			appendWait(t, l, Write{Entries: entriesFrom(3, 1, 1000, 2), Sync: true})
		}
		appendWait(t, l, Write{Entries: entriesFrom(4+i, 1, 1000, 2), Sync: true})
		o.FS = torn.CrashClone(vfs.CrashCloneCfg{})
		torn = o.FS.(*vfs.MemFS)
		_ = l.Close()
	}
}

// TestKilledBeforeNameIsSynced kills the process between the naming of a segment and the sync of the directory; the next
// process writes to that segment, and then the power goes.
func TestKilledBeforeNameIsSynced(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := memOptions()
	var armed bool
	sfs := &stepFS{FS: mem, step: func(op string) error {
		if armed && op == "sync log" {
			return errCrashed
		}
		return nil
	}}
	o.FS = sfs
	l := mustOpen(t, o)
	sfs.mu.Lock()
	armed = true
	sfs.mu.Unlock()
	n := uint64(0)
	for ; l.Err() == nil; n++ {
		done := make(chan struct{})
		l.Append(Write{Entries: entriesFrom(n+1, 1, 3000, 1), Sync: true, Done: func() { close(done) }})
		select {
		case <-done:
		case <-l.done:
			n-- // was not done
		}
	}
	_ = l.Close()
	o.FS = mem
	l = mustOpen(t, o)
	appendWait(t, l, Write{Entries: entriesFrom(n+1, 1, 3000, 1), Sync: true})
	o.FS = mem.CrashClone(vfs.CrashCloneCfg{})
	_ = l.Close()
	l = mustOpen(t, o)
	if last, _ := l.LastIndex(); last != n+1 {
		t.Errorf("last index is %d, want %d", last, n+1)
	}
	_ = l.Close()
}

// TestTwoNamesOfOneFile leaves a segment's file with the name of a free one too, as a crash in the middle of a renaming may:
// it must not be written to as if it were free.
func TestTwoNamesOfOneFile(t *testing.T) {
	for _, free := range []uint64{2, 1000} {
		mem := vfs.NewMem()
		m := sampleLog(t, mem, true)
		if err := mem.Link("log/"+segmentName(2, liveSuffix), "log/"+segmentName(free, freeSuffix)); err != nil {
			t.Fatal(err)
		}
		o := Options{FS: mem, Dir: "log", SegmentBytes: minSegmentBytes}
		l := mustOpen(t, o)
		for range 12 {
			w := Write{Entries: entriesFrom(m.last()+1, 1, 1000, 9), Sync: true}
			m = m.after(w)
			appendWait(t, l, w)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = mustOpen(t, o)
		if d := diff(l, m, 0); d != "" {
			t.Error(d)
		}
		_ = l.Close()
	}
}
