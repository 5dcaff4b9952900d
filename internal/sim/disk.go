package sim

import (
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// DiskOptions are the manners of a Disk.
type DiskOptions struct {
	// Slow files are those whose path holds one of these words.
	Slow []string
	// SyncDelay is how long a sync of a slow file takes, chosen evenly between zero and this; one of a hundred takes
	// twenty times as long.
	SyncDelay time.Duration
	// SyncsLate, if not zero, is a lie: a sync of a slow file returns at once and happens so much later. That is the
	// planted bug: it is what a log does that acknowledges before the fsync, and a run over such disks must be found to
	// break its promises.
	SyncsLate time.Duration
}

// Disk is the disk of one member. It outlives the member's processes: each Crash loses what was not synced.
type Disk struct {
	o DiskOptions

	mu  sync.Mutex // guards what follows
	rng *rand.Rand
	mem *vfs.MemFS
	// slower multiplies SyncDelay; failing disks fail every sync of a slow file.
	slower  time.Duration
	failing bool
	room    int           // how much more is done that needs room; negative: anything
	hung    chan struct{} // syncs of slow files wait until it is closed; nil: none does
	crashed chan struct{} // closed by the next Crash: syncs of slow files wait no longer

	// links is held while a file is linked and while a crash takes its picture: MemFS takes its two locks in another order for a
	// link than for whatever else changes it, and a picture between the two leaves all three waiting for one another.
	links sync.Mutex

	late sync.WaitGroup // syncs that are still to come
}

// NewDisk makes an empty disk.
func NewDisk(seed uint64, o DiskOptions) *Disk {
	return &Disk{o: o, rng: rand.New(rand.NewPCG(seed, 0xd15c)), mem: vfs.NewCrashableMem(), slower: 1, room: -1, crashed: make(chan struct{})}
}

// FS is the file system that the disk holds now, for one life of the member: after a Crash it still works, as far as
// the life before it can tell, but nothing done to it has any effect on the disk.
func (d *Disk) FS() vfs.FS {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &diskFS{FS: d.mem, disk: d}
}

// Crash loses what was not synced, but for a share in percent of the blocks and directory entries, chosen by the seed.
func (d *Disk) Crash(keepPercent int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	cfg := vfs.CrashCloneCfg{UnsyncedDataPercent: keepPercent}
	if keepPercent > 0 {
		cfg.RNG = rand.New(rand.NewPCG(d.rng.Uint64(), 0xc4a5))
	}
	d.links.Lock()
	d.mem = d.mem.CrashClone(cfg)
	d.links.Unlock()
	d.room = -1
	// The new life finds another disk, and what the old one waits for must end.
	d.setHung(false)
	close(d.crashed)
	d.crashed = make(chan struct{})
}

// delay waits for as long as the next sync of a slow file takes, and returns how that ends.
func (d *Disk) delay() error {
	took, crashed, err := d.next()
	if took > 0 {
		select {
		case <-time.After(took):
		case <-crashed:
		}
	}
	return err
}

func (d *Disk) next() (took time.Duration, crashed <-chan struct{}, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failing {
		return 0, nil, errDisk
	}
	if d.o.SyncDelay == 0 {
		return 0, nil, nil
	}
	t := time.Duration(d.rng.Int64N(int64(d.o.SyncDelay) + 1))
	if d.rng.IntN(100) == 0 {
		t *= 20
	}
	return t * d.slower, d.crashed, nil
}

// SetSlower makes syncs take so many times as long from now on.
func (d *Disk) SetSlower(times int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slower = time.Duration(times)
}

// SetFailing makes syncs fail from now on, or succeed again. What a failed sync was to keep is lost with the next crash.
func (d *Disk) SetFailing(failing bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failing = failing
}

// SetHung makes every sync of a slow file wait from now on, those that have begun too, until it is called again or the
// member crashes.
func (d *Disk) SetHung(hung bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setHung(hung)
}

func (d *Disk) setHung(hung bool) {
	switch {
	case hung && d.hung == nil:
		d.hung = make(chan struct{})
	case !hung && d.hung != nil:
		close(d.hung)
		d.hung = nil
	}
}

// SetRoom makes everything fail for want of room that writes to a file, or makes, links or names one, after so many more of
// these; a negative number, nothing. What is synced was written before.
func (d *Disk) SetRoom(operations int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room = operations
}

// take takes the room for one operation.
func (d *Disk) take() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.room == 0 {
		return syscall.ENOSPC
	}
	d.room = max(d.room-1, -1)
	return nil
}

// answers waits while the disk hangs.
func (d *Disk) answers() {
	d.mu.Lock()
	hung := d.hung
	d.mu.Unlock()
	if hung != nil {
		<-hung
	}
}

var errDisk = errors.New("sim: input/output error")

// Wait returns when no late sync is left to come.
func (d *Disk) Wait() { d.late.Wait() }

// diskFS is one life's view of a Disk.
type diskFS struct {
	vfs.FS
	disk *Disk
}

// Unwrap lets the wrapped file system be found.
func (f *diskFS) Unwrap() vfs.FS { return f.FS }

func (f *diskFS) wrap(name string, file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	d := &diskFile{File: file, disk: f.disk}
	for _, word := range f.disk.o.Slow {
		d.slow = d.slow || strings.Contains(name, word)
	}
	return d, nil
}

func (f *diskFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.disk.take(); err != nil {
		return nil, err
	}
	file, err := f.FS.Create(name, c)
	return f.wrap(name, file, err)
}

func (f *diskFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	if err := f.disk.take(); err != nil {
		return nil, err
	}
	file, err := f.FS.OpenReadWrite(name, c, opts...)
	return f.wrap(name, file, err)
}

func (f *diskFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.ReuseForWrite(oldname, newname, c)
	return f.wrap(newname, file, err)
}

func (f *diskFS) Link(oldname, newname string) error {
	if err := f.disk.take(); err != nil {
		return err
	}
	f.disk.links.Lock()
	defer f.disk.links.Unlock()
	return f.FS.Link(oldname, newname)
}

func (f *diskFS) Rename(oldname, newname string) error {
	if err := f.disk.take(); err != nil {
		return err
	}
	return f.FS.Rename(oldname, newname)
}

func (f *diskFS) MkdirAll(dir string, perm os.FileMode) error {
	if err := f.disk.take(); err != nil {
		return err
	}
	return f.FS.MkdirAll(dir, perm)
}

// diskFile is a file whose syncs, if it is slow, take time, or come late.
type diskFile struct {
	vfs.File
	disk *Disk
	slow bool

	mu     sync.Mutex // guards closed, for late syncs
	closed bool
}

// Close closes the file; syncs that are late come before that.
func (f *diskFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.slow && f.disk.o.SyncsLate > 0 && !f.closed {
		_ = f.File.Sync()
	}
	f.closed = true
	return f.File.Close()
}

func (f *diskFile) Write(p []byte) (int, error) {
	if err := f.disk.take(); err != nil {
		n, _ := f.File.Write(p[:len(p)/2])
		return n, err
	}
	return f.File.Write(p)
}

func (f *diskFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.disk.take(); err != nil {
		n, _ := f.File.WriteAt(p[:len(p)/2], off)
		return n, err
	}
	return f.File.WriteAt(p, off)
}

func (f *diskFile) sync(really func() error) error {
	if !f.slow {
		return really()
	}
	if late := f.disk.o.SyncsLate; late > 0 {
		f.disk.late.Go(func() {
			time.Sleep(late)
			f.mu.Lock()
			defer f.mu.Unlock()
			if !f.closed {
				_ = really()
			}
		})
		return nil
	}
	if err := f.disk.delay(); err != nil {
		return err
	}
	f.disk.answers()
	return really()
}

func (f *diskFile) Sync() error     { return f.sync(f.File.Sync) }
func (f *diskFile) SyncData() error { return f.sync(f.File.SyncData) }

func (f *diskFile) SyncTo(length int64) (fullSync bool, err error) {
	if !f.slow {
		return f.File.SyncTo(length)
	}
	return true, f.sync(func() error {
		_, err := f.File.SyncTo(length)
		return err
	})
}
