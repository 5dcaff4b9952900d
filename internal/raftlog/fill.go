package raftlog

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	fillChunkBytes = 1 << 20
	// fillBelow is how many bytes the groups of a segment have, on the average, below which the next segment is filled with
	// zeros. That saves each sync some metadata, and writes every byte twice: larger groups pay less by the metadata.
	fillBelow = 256 << 10
	// fillPause after each chunk keeps the filler's syncs from standing in the way of the writer's.
	fillPause = 5 * time.Millisecond
)

// filler makes the next segment's file in a goroutine of its own, slowly while nobody waits for it. At most one spare is
// being made or waits to be taken.
type filler struct {
	fs    vfs.FS
	dir   string
	size  int64
	want  chan bool  // whether to fill it with zeros; capacity 1, closed by stop
	got   chan spare // capacity 1
	done  chan struct{}
	hurry atomic.Bool // the writer waits
	quit  atomic.Bool
}

type spare struct {
	freeFile
	err error
}

var errQuit = errors.New("raft log is closing")

// startFiller starts the goroutine; its owner, the Log, stops it.
func startFiller(fs vfs.FS, dir string, size int64) *filler {
	f := &filler{fs: fs, dir: dir, size: size, want: make(chan bool, 1), got: make(chan spare, 1),
		done: make(chan struct{})}
	go f.run()
	return f
}

func (f *filler) run() {
	defer close(f.done)
	for fill := range f.want {
		s := spare{freeFile: freeFile{path: f.fs.PathJoin(f.dir, spareName), size: f.size}}
		if fill {
			s.file, s.err = zeroFill(f.fs, s.path, f.size, f.pace)
		} else {
			s.file, s.err = makeFile(f.fs, s.path, f.size, reserveFile)
		}
		f.got <- s
	}
}

// pace is called between chunks. While nobody waits it syncs in small portions, because one large sync would hold up the
// writer's, and lets the disk go for a moment.
func (f *filler) pace(file vfs.File) error {
	if f.quit.Load() {
		return errQuit
	}
	if f.hurry.Load() {
		return nil
	}
	err := file.SyncData()
	time.Sleep(fillPause)
	return err
}

// ask starts a spare. Only the writer calls it, and not again before take.
func (f *filler) ask(fill bool) { f.want <- fill }

// take waits for the spare that was asked for.
func (f *filler) take() (freeFile, error) {
	f.hurry.Store(true)
	s := <-f.got
	f.hurry.Store(false)
	return s.freeFile, s.err
}

// stop ends the goroutine and removes a spare that nobody took. The writer has ended.
func (f *filler) stop() {
	f.quit.Store(true)
	close(f.want)
	<-f.done
	select {
	case s := <-f.got:
		if s.err == nil {
			_ = s.file.Close()
			_ = f.fs.Remove(s.path) // else the next Open does it
		}
	default:
	}
}

// zeroFill makes a synced file of the given size, all zeros written, so that later writes extend nothing and need no new
// blocks. pace, if given, runs between chunks and may stop it.
func zeroFill(fs vfs.FS, path string, size int64, pace func(vfs.File) error) (vfs.File, error) {
	return makeFile(fs, path, size, func(file vfs.File, size int64) error { return fillFile(file, size, pace) })
}

// makeFile makes a file, in the place of one that is left over, and gives it its size with fill.
func makeFile(fs vfs.FS, path string, size int64, fill func(vfs.File, int64) error) (vfs.File, error) {
	if err := fs.Remove(path); err != nil && !isNotExist(err) {
		return nil, fmt.Errorf("remove left-over file: %w", err)
	}
	file, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fmt.Errorf("make raft log segment file: %w", err)
	}
	if err := fill(file, size); err != nil {
		return nil, fmt.Errorf("fill raft log segment file %s: %w", path, errors.Join(err, file.Close(), fs.Remove(path)))
	}
	return file, nil
}

func fillFile(file vfs.File, size int64, pace func(vfs.File) error) error {
	// Only asks for adjacent blocks: a file system that cannot do it is no error, and one that is full says so below.
	_ = file.Preallocate(0, size)
	zeros := make([]byte, min(size, fillChunkBytes))
	for off := int64(0); off < size; off += int64(len(zeros)) {
		if off > 0 && pace != nil {
			if err := pace(file); err != nil {
				return err
			}
		}
		if _, err := file.WriteAt(zeros[:min(size-off, int64(len(zeros)))], off); err != nil {
			return err
		}
	}
	return file.Sync() // here, so that the writer's sync of the header has nothing else to do
}

// reserveFile gives a file its size and, where the file system can do that, its blocks. All of it reads as zeros.
func reserveFile(file vfs.File, size int64) error {
	if err := file.Preallocate(0, size); IsNoRoom(err) {
		return err
	}
	if _, err := file.WriteAt(make([]byte, recordAlign), size-recordAlign); err != nil {
		return err
	}
	return file.Sync()
}
