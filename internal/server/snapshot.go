package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/backup"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/replica"
	"github.com/trivet-kv/trivet/internal/rpc"
)

const (
	// maxSnapshots is how many snapshots are made or sent at once; each takes the disk space of its file.
	maxSnapshots = 2
	// spareBytes is what a snapshot leaves free on the disk: the member itself needs room for its log.
	spareBytes = 256 << 20
	// lookEvery is how often the free space is looked at.
	lookEvery = 50 * time.Millisecond
	// A piece of a snapshot takes minPiece or a little longer. While there are writers a rest of restFactor times what it took
	// follows, maxRest at most.
	minPiece   = time.Millisecond
	restFactor = 2
	maxRest    = 10 * time.Millisecond
)

// snapshots is what the member knows of the snapshots that clients are sent.
type snapshots struct {
	open atomic.Int32
	made atomic.Uint64 // for the names of their files
}

// Snapshot makes a file of the state of one moment; see rpc.Backend. It is made in the data directory, and its name is taken
// away before it is sent, so that nothing is left of it however the sending ends.
func (m *Member) Snapshot(ctx context.Context) (rpc.Snapshot, error) {
	if m.snapshots.open.Add(1) > maxSnapshots {
		m.snapshots.open.Add(-1)
		return nil, kv.ErrTooManyRequests
	}
	f, err := m.makeSnapshot(ctx)
	if err != nil {
		m.snapshots.open.Add(-1)
		return nil, err
	}
	return f, nil
}

func (m *Member) makeSnapshot(ctx context.Context) (*snapshotFile, error) {
	path := filepath.Join(m.dir.Snapshots(), strconv.FormatUint(m.snapshots.made.Add(1), 10)+".db")
	begin := time.Now()
	for {
		state := m.machine.state.Load()
		rows, err := state.Engine.NewSnapshot()
		if err == nil {
			_, err = backup.Export(ctx, rows, path, backup.Options{
				StorageVersion: rpc.StorageVersion, Members: replica.DecodeConfState,
				Pause: m.pause(ctx),
			})
			err = errors.Join(err, rows.Close())
		}
		if errors.Is(err, engine.ErrClosed) && state != m.machine.state.Load() {
			continue // a checkpoint of another member took its place
		}
		if err != nil {
			return nil, err
		}
		break
	}
	f, err := os.Open(path)
	if err = errors.Join(err, os.Remove(path)); err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	m.logger.Info("made a snapshot for a client", "bytes", info.Size(), "took", time.Since(begin))
	return &snapshotFile{File: f, size: info.Size(), done: func() { m.snapshots.open.Add(-1) }}, nil
}

// pause is called between two pieces of a snapshot. While there are writers it rests for some times as long as the piece
// took, by the clock: where others want the processors, pieces take longer and so do the rests. It also ends a snapshot that would
// fill the disk.
func (m *Member) pause(ctx context.Context) func() error {
	p := &pacer{m: m, begin: time.Now()}
	return func() error {
		if took := time.Since(p.begin); took >= minPiece {
			if err := p.room(); err != nil {
				return err
			}
			p.rest(ctx, took)
		}
		return context.Cause(ctx)
	}
}

// pacer is the pace of one snapshot.
type pacer struct {
	m        *Member
	begin    time.Time // of the piece
	looked   time.Time // at the disk
	revision int64     // when the piece began
}

func (p *pacer) room() error {
	if time.Since(p.looked) < lookEvery {
		return nil
	}
	p.looked = time.Now()
	usage, err := vfs.Default.GetDiskUsage(p.m.dir.Snapshots())
	if err == nil && usage.AvailBytes < spareBytes {
		err = fmt.Errorf("the disk of the data directory has %d MiB left, and a snapshot leaves %d MiB to the member: free some space, or ask another member",
			usage.AvailBytes>>20, spareBytes>>20)
	}
	return err
}

// rest waits if somebody waits for a write at this member, or something was written while the piece was made.
func (p *pacer) rest(ctx context.Context, took time.Duration) {
	revision := p.m.machine.state.Load().Store.Revision()
	if p.m.waiters.any() || revision != p.revision {
		select {
		case <-ctx.Done():
		case <-time.After(min(restFactor*took, maxRest)):
		}
	}
	p.begin, p.revision = time.Now(), revision
}

// snapshotFile is a file without a name.
type snapshotFile struct {
	*os.File
	size   int64
	done   func()
	closed atomic.Bool
}

// Size is how long the file is.
func (f *snapshotFile) Size() int64 { return f.size }

// Close gives the space back.
func (f *snapshotFile) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	defer f.done()
	return f.File.Close()
}
