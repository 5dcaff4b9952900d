package server

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

// smallFS is a disk that is full from some operation on: whatever makes, links or names a file, or writes to one, fails then,
// a write after its first half. Files that were written before can be overwritten only if grown is not set, as on a file
// system that writes in place. If late is set, writes succeed and syncs fail, of files and folders: and what a file's sync was to
// keep is lost, and called kept by the next one.
type smallFS struct {
	vfs.FS

	mu    sync.Mutex
	left  int // operations until it is full; negative: there is room
	grown bool
	late  bool
}

// fill lets so many operations pass and then none.
func (f *smallFS) fill(after int, grown, late bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left, f.grown, f.late = after, grown, late
}

func (f *smallFS) empty() { f.fill(-1, false, false) }

func (f *smallFS) refuse(sync bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if sync != f.late {
		return nil
	}
	if f.left > 0 {
		f.left--
	}
	if f.left == 0 {
		return &os.PathError{Op: "write", Path: "small disk", Err: syscall.ENOSPC}
	}
	return nil
}

func (f *smallFS) Unwrap() vfs.FS { return f.FS }

func (f *smallFS) open(name string, open func() (vfs.File, error)) (vfs.File, error) {
	if err := f.refuse(false); err != nil {
		return nil, err
	}
	file, err := open()
	if err != nil {
		return nil, err
	}
	return &smallFile{File: file, fs: f, inPlace: strings.HasSuffix(name, ".log")}, nil
}

func (f *smallFS) OpenDir(name string) (vfs.File, error) {
	d, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &smallFile{File: d, fs: f}, nil
}

func (f *smallFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.open(name, func() (vfs.File, error) { return f.FS.Create(name, c) })
}

func (f *smallFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return f.open(name, func() (vfs.File, error) { return f.FS.OpenReadWrite(name, c, o...) })
}

func (f *smallFS) Link(from, to string) error {
	if err := f.refuse(false); err != nil {
		return err
	}
	return f.FS.Link(from, to)
}

func (f *smallFS) Rename(from, to string) error {
	if err := f.refuse(false); err != nil {
		return err
	}
	return f.FS.Rename(from, to)
}

func (f *smallFS) MkdirAll(dir string, perm os.FileMode) error {
	if err := f.refuse(false); err != nil {
		return err
	}
	return f.FS.MkdirAll(dir, perm)
}

type smallFile struct {
	vfs.File
	fs      *smallFS
	inPlace bool // mostly written over

	mu    sync.Mutex
	end   int64      // of what was written in order
	dirty [][2]int64 // from, to: not synced
}

func (f *smallFile) wrote(from int64, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dirty = append(f.dirty, [2]int64{from, from + int64(n)})
}

func (f *smallFile) Write(p []byte) (int, error) {
	refused := f.fs.refuse(false)
	if refused != nil {
		p = p[:len(p)/2]
	}
	n, err := f.File.Write(p)
	f.wrote(f.end, n)
	f.end += int64(n)
	return n, errors.Join(refused, err)
}

func (f *smallFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	grown := f.fs.grown
	f.fs.mu.Unlock()
	var refused error
	if info, err := f.File.Stat(); grown || err != nil || off+int64(len(p)) > info.Size() {
		if refused = f.fs.refuse(false); refused != nil {
			p = p[:len(p)/2]
		}
	}
	n, err := f.File.WriteAt(p, off)
	f.wrote(off, n)
	return n, errors.Join(refused, err)
}

// synced is what a sync gives. If it is refused, what it was to keep is gone.
func (f *smallFile) synced(sync func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fs.refuse(true); err != nil {
		for _, d := range f.dirty {
			if _, err := f.File.WriteAt(make([]byte, d[1]-d[0]), d[0]); err != nil {
				panic(err)
			}
		}
		f.dirty = nil
		return err
	}
	f.dirty = nil
	return sync()
}

func (f *smallFile) Sync() error     { return f.synced(f.File.Sync) }
func (f *smallFile) SyncData() error { return f.synced(f.File.SyncData) }

// TestFullDisk lets the disk of a member fill up at some operation while its clients write, and empties it again. Meanwhile
// reads go on and writes are refused; the member never fails; afterwards it goes on by itself, with all that was acknowledged,
// also after a restart.
func TestFullDisk(t *testing.T) {
	seeds := uint64(24)
	if testing.Short() {
		seeds = 6
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) { fillDisk(t, seed) })
		})
	}
}

// readOnFullDisk reads what is applied. Where so much was committed that the state has no memory left for it, a read that must
// show all of it cannot be answered.
func readOnFullDisk(t *testing.T, m *Member) {
	t.Helper()
	if err := m.ReadBarrier(t.Context()); err != nil && !errors.Is(err, kv.ErrTimeout) {
		t.Fatal(err)
	}
	r, _, err := m.Store().Range(kv.RangeOptions{Range: kv.Range{Key: []byte("k1")}})
	if err != nil || len(r.KVs) != 1 {
		t.Fatalf("a read gives %d pairs, %v", len(r.KVs), err)
	}
}

func fillDisk(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 11))
	c := newCluster(t, 1)
	defer c.network.Close()
	small := &smallFS{FS: c.disks[0], left: -1}
	c.change = func(o *Options) { o.FS, o.SlowDisk = small, 500*time.Millisecond }
	one := c.start(0)
	acked := map[string]string{}
	n := 0
	write := func() error {
		n++
		key, value := fmt.Sprint("k", n%97), fmt.Sprint(n, strings.Repeat("x", 1+r.IntN(4000)))
		_, err := tryPut(t, one, key, value)
		if err == nil {
			acked[key] = value
		} else {
			delete(acked, key) // it may be the one or the other
		}
		return err
	}
	for range 20 {
		if err := write(); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		small.fill(1+r.IntN(60), r.IntN(2) == 0, seed%3 == 2)
		refused := 0
		for tries := 0; refused < 3; tries++ {
			err := write()
			switch {
			case errors.Is(err, kv.ErrNoSpace):
				refused++
			case err != nil && !errors.Is(err, kv.ErrTimeout):
				t.Fatalf("a put on a full disk gives %v", err)
			}
			if tries > 2000 {
				t.Fatal("nothing is ever refused")
			}
			if tries%50 == 0 {
				readOnFullDisk(t, one)
			}
		}
		readOnFullDisk(t, one)
		if _, err := try(t, one, &command.Command{LeaseGrant: &command.LeaseGrant{ID: 1, TTL: 100}}); !errors.Is(err, kv.ErrNoSpace) {
			t.Errorf("a lease on a full disk gives %v", err)
		}
		time.Sleep(time.Duration(r.IntN(20)) * time.Second)
		small.empty()
		time.Sleep(time.Second)
		for range 30 {
			if err := write(); err != nil {
				t.Fatalf("with room again a put gives %v", err)
			}
		}
	}
	check := func() {
		t.Helper()
		for key, value := range acked {
			if got := get(t, one, key); got != value {
				t.Errorf("%s is %.20s, and %.20s was acknowledged", key, got, value)
			}
		}
	}
	check()
	select {
	case err := <-one.Failed():
		t.Errorf("the member failed: %v", err)
	default:
	}
	c.stop(0)
	one = c.start(0)
	check()
	c.stop(0)
}

// TestCheckpointOnFullDisk brings a member that was away up to date with a checkpoint, while its disk, or that of the others,
// fills up at some operation: it is up to date when there is room again, and nobody has failed.
func TestCheckpointOnFullDisk(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) { checkpointOnFullDisk(t, seed) })
		})
	}
}

func checkpointOnFullDisk(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 12))
	c := newCluster(t, 3)
	defer c.network.Close()
	var small []*smallFS
	for _, d := range c.disks {
		small = append(small, &smallFS{FS: d, left: -1})
	}
	installed := 0
	c.change = func(o *Options) {
		o.FS, o.SlowDisk, o.CatchupEntries = small[o.Name[1]-'0'], 500*time.Millisecond, 10
		o.Observer.Replica.Installed = func(uint64, time.Duration) { installed++ }
	}
	c.startAll()
	put(t, c.members[2], "before", "1")
	c.members[2].Kill()
	for i := range 500 {
		put(t, c.members[0], fmt.Sprintf("k%d", i%100), strings.Repeat("x", 600))
	}
	put(t, c.members[0], "last", "1")
	time.Sleep(2 * flushEvery) // so that the log is cut
	m := c.start(2)
	full := []int{2}
	if seed%2 == 1 {
		full = []int{0, 1}
	}
	for _, i := range full {
		small[i].fill(r.IntN(20), r.IntN(2) == 0, seed%4 > 1)
	}
	time.Sleep(time.Duration(1+r.IntN(60)) * time.Second)
	for _, i := range full {
		small[i].empty()
	}
	time.Sleep(time.Minute) // the checkpoint may have to be made again
	if got := get(t, m, "last"); got != "1" || installed == 0 {
		t.Fatalf("last is %q after %d checkpoints", got, installed)
	}
	for i, m := range c.members {
		select {
		case err := <-m.Failed():
			t.Errorf("member %d failed: %v", i, err)
		default:
		}
		put(t, m, fmt.Sprint("after", i), "1")
	}
	c.stopAll()
}
