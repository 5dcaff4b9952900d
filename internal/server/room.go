package server

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/raftlog"
)

// What a member does on a full disk: it waits until there is room, and goes on. Nothing that it has begun fails, so nothing
// is left half done, neither a table nor the manifest, after whose failure the state engine could not go on.
//
// The log waits by itself (raftlog). The state engine and the data directory stand on a file system that waits here: a write
// that the disk refuses is made again, from where it came to, until the disk takes it. What is read meanwhile needs no room.
// Checkpoints of other members are received on the plain file system: what has arrived of one is removed again, for it may be
// what the room is missing for.
//
// While anything waits, this member refuses what would make the state grow. A leader that cannot go on hands over (see package
// replica): to whom the log or the state machine is stuck with, it does not matter why.

// roomPause is how long a write waits before it is tried again.
const roomPause = 100 * time.Millisecond

// room knows whether anything waits for room on the disk. It is impatient, and every operation gets its error, before open
// and when life has ended: a start on a full disk fails with a sentence.
type room struct {
	life   context.Context
	logger *slog.Logger
	tell   func(full bool) // of each change; may be nil

	mu      sync.Mutex
	patient bool
	waiting int // writes
	since   time.Time
}

func (r *room) open() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.patient = true
}

// full reports whether something waits for room.
func (r *room) full() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting > 0
}

// wait notes that something began to wait for room because of err, or that it has ended, with nil.
func (r *room) wait(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		if r.waiting++; r.waiting == 1 {
			r.since = time.Now()
			r.logger.Error("the disk is full: reads go on, writes through this member are refused until there is room", "error", err)
			r.told(true)
		}
		return
	}
	if r.waiting--; r.waiting == 0 {
		r.logger.Info("there is room on the disk again", "waited", time.Since(r.since))
		r.told(false)
	}
}

func (r *room) told(full bool) {
	if r.tell != nil {
		r.tell(full)
	}
}

// retry does f until it ends with something else than a full disk.
func (r *room) retry(f func() error) error {
	err := f()
	if !raftlog.IsNoRoom(err) {
		return err
	}
	r.mu.Lock()
	patient := r.patient
	r.mu.Unlock()
	if !patient {
		return err
	}
	r.wait(err)
	defer r.wait(nil)
	for raftlog.IsNoRoom(err) && r.pause() {
		err = f()
	}
	return err
}

// pause reports whether to try once more.
func (r *room) pause() bool {
	select {
	case <-r.life.Done():
		return false
	case <-time.After(roomPause):
		return true
	}
}

// roomFS is a file system whose writes wait for room.
type roomFS struct {
	vfs.FS
	room *room
}

func (f roomFS) Unwrap() vfs.FS { return f.FS }

func (f roomFS) file(open func() (vfs.File, error), unsynced *unsynced) (file vfs.File, err error) {
	err = f.room.retry(func() error {
		file, err = open()
		return err
	})
	if err != nil {
		return nil, err
	}
	return roomFile{file, f.room, unsynced}, nil
}

func (f roomFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	var u *unsynced
	if !engine.IsTable(name) {
		u = &unsynced{}
	}
	return f.file(func() (vfs.File, error) { return f.FS.Create(name, c) }, u)
}

func (f roomFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return f.file(func() (vfs.File, error) { return f.FS.OpenReadWrite(name, c, o...) }, nil)
}

func (f roomFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.file(func() (vfs.File, error) { return f.FS.ReuseForWrite(oldname, newname, c) }, nil)
}

func (f roomFS) OpenDir(name string) (vfs.File, error) {
	d, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return roomDir{d, f, name}, nil
}

func (f roomFS) Link(oldname, newname string) error {
	return f.room.retry(func() error { return f.FS.Link(oldname, newname) })
}

func (f roomFS) Rename(oldname, newname string) error {
	return f.room.retry(func() error { return f.FS.Rename(oldname, newname) })
}

func (f roomFS) MkdirAll(dir string, perm os.FileMode) error {
	return f.room.retry(func() error { return f.FS.MkdirAll(dir, perm) })
}

// A sync that failed cannot simply be made again: what it was to keep may be gone from the page cache, and pass for kept. So what
// was written since the last good one is written anew first. Of tables, which may be long, nothing is remembered: a flush or a
// compaction that fails begins anew, after a pause. Mostly all this does not matter, because file systems take their space when a
// file is written, but for some (NFS, Btrfs, quotas).
type roomFile struct {
	vfs.File
	room     *room
	unsynced *unsynced // nil: a table, or a file that is not written from its beginning on
}

// unsynced is what was written to a file since it was last synced. The files are the engine's manifest, synced after each edit,
// and small ones.
type unsynced struct {
	from  int64
	bytes []byte
}

// Write writes all of p, in as many parts as the disk makes of it.
func (f roomFile) Write(p []byte) (done int, err error) {
	var before int
	if u := f.unsynced; u != nil {
		// Kept before it is written: the file system in memory spoils p when Pebble's invariants are checked.
		before, u.bytes = len(u.bytes), append(u.bytes, p...)
	}
	err = f.room.retry(func() error {
		n, err := f.File.Write(p[done:])
		done += n
		return err
	})
	if u := f.unsynced; u != nil {
		u.bytes = u.bytes[:before+done]
	}
	return done, err
}

func (f roomFile) WriteAt(p []byte, off int64) (done int, err error) {
	err = f.room.retry(func() error {
		n, err := f.File.WriteAt(p[done:], off+int64(done))
		done += n
		return err
	})
	return done, err
}

func (f roomFile) sync(sync func() error) error {
	u := f.unsynced
	if u == nil {
		return f.paused(sync())
	}
	again := false
	err := f.room.retry(func() error {
		if again {
			if _, err := f.File.WriteAt(u.bytes, u.from); err != nil {
				return err
			}
		}
		again = true
		return sync()
	})
	if err == nil {
		u.from, u.bytes = u.from+int64(len(u.bytes)), nil
	}
	return err
}

func (f roomFile) Sync() error     { return f.sync(f.File.Sync) }
func (f roomFile) SyncData() error { return f.sync(f.File.SyncData) }

func (f roomFile) SyncTo(length int64) (bool, error) {
	full, err := f.File.SyncTo(length)
	return full, f.paused(err)
}

func (f roomFile) paused(err error) error {
	if raftlog.IsNoRoom(err) {
		f.room.pause()
	}
	return err
}

// roomDir is a folder whose names are made durable when there is room. Before another attempt it is changed, by a name that
// comes and goes, so that nothing in it passes for durable.
type roomDir struct {
	vfs.File
	fs   roomFS
	name string
}

const roomName = "room.tmp"

func (d roomDir) Sync() error {
	again := false
	return d.fs.room.retry(func() error {
		if again {
			path := d.fs.FS.PathJoin(d.name, roomName)
			f, err := d.fs.FS.Create(path, vfs.WriteCategoryUnspecified)
			if err != nil {
				return err
			}
			if err := errors.Join(f.Close(), d.fs.FS.Remove(path)); err != nil {
				return err
			}
		}
		again = true
		return d.File.Sync()
	})
}
