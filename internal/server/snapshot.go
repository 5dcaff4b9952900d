package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/trivet-kv/trivet/internal/backup"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/replica"
	"github.com/trivet-kv/trivet/internal/rpc"
)

const (
	// maxSnapshots is how many snapshots are sent at once.
	maxSnapshots = 2
	// snapshotPieces is how many pieces of a snapshot are made ahead of what its client has taken.
	snapshotPieces = 4
	// maxStandstill is how long a client may take nothing of a snapshot: until the end the engine keeps what belongs to its moment.
	maxStandstill = time.Minute
	// A piece of a snapshot takes minPiece or a little longer. While there are writers a rest of restFactor times what it took
	// follows, maxRest at most.
	minPiece   = time.Millisecond
	restFactor = 2
	maxRest    = 10 * time.Millisecond
)

// Snapshot begins a snapshot of the state of one moment; see rpc.Backend. It is made as it is read, and lies on no disk.
func (m *Member) Snapshot(ctx context.Context) (rpc.Snapshot, error) {
	if m.snapshots.Add(1) > maxSnapshots {
		m.snapshots.Add(-1)
		return nil, kv.ErrTooManyRequests
	}
	s, err := m.beginSnapshot(ctx)
	if err != nil {
		m.snapshots.Add(-1)
		return nil, err
	}
	return s, nil
}

func (m *Member) beginSnapshot(ctx context.Context) (*snapshot, error) {
	ctx, cancel := context.WithCancel(ctx)
	p := &pacer{m: m, begin: time.Now()}
	for {
		state := m.machine.state.Load()
		rows, err := state.Engine.NewSnapshot()
		var x *backup.Export
		if err == nil {
			x, err = backup.NewExport(ctx, rows, backup.Options{
				StorageVersion: rpc.StorageVersion, Members: replica.DecodeConfState,
				Pause: func() error { return p.pause(ctx) },
			})
			if err != nil {
				err = errors.Join(err, rows.Close())
			}
		}
		switch {
		case err == nil:
			s := &snapshot{
				size: x.Bytes(), pieces: make(chan []byte, snapshotPieces), taken: make(chan []byte, snapshotPieces+1),
				cancel: cancel, pacer: p, ctx: ctx, done: func() { m.snapshots.Add(-1) },
			}
			go s.make(x, rows)
			return s, nil
		case errors.Is(err, engine.ErrClosed) && state != m.machine.state.Load():
			// a checkpoint of another member took its place
		default:
			cancel()
			return nil, err
		}
	}
}

// snapshot is a file while it is made. One goroutine makes it, and the caller reads.
type snapshot struct {
	ctx    context.Context
	cancel context.CancelFunc
	size   int64
	pacer  *pacer
	pieces chan []byte // closed by the maker at the end
	err    error       // of the maker; set before pieces is closed
	taken  chan []byte // memory of pieces that were read
	piece  []byte      // what is read
	left   []byte      // of it
	done   func()
	closed atomic.Bool
}

// make writes the file until its end, an error or Close.
func (s *snapshot) make(x *backup.Export, rows *engine.Snapshot) {
	begin := time.Now()
	_, err := x.Write(s.ctx, s)
	if s.err = errors.Join(err, rows.Close()); s.err == nil {
		s.pacer.m.logger.Info("made a snapshot for a client", "bytes", s.size, "took", time.Since(begin))
	}
	close(s.pieces)
}

// Write is the maker's. It waits while the client has not taken what was made before.
func (s *snapshot) Write(b []byte) (int, error) {
	var piece []byte
	select {
	case piece = <-s.taken:
	default:
	}
	piece = append(piece[:0], b...)
	select {
	case s.pieces <- piece:
		return len(b), nil
	default:
	}
	begin := time.Now()
	t := time.NewTimer(maxStandstill)
	defer t.Stop()
	select {
	case s.pieces <- piece:
	case <-s.ctx.Done():
		return 0, context.Cause(s.ctx)
	case <-t.C:
		return 0, fmt.Errorf("the client of a snapshot has taken nothing for %v", maxStandstill)
	}
	s.pacer.waited(time.Since(begin))
	return len(b), nil
}

// Read implements io.Reader.
func (s *snapshot) Read(b []byte) (int, error) {
	for len(s.left) == 0 {
		if s.piece != nil {
			select {
			case s.taken <- s.piece:
			default:
			}
		}
		var ok bool
		if s.piece, ok = <-s.pieces; !ok {
			if s.err != nil {
				return 0, s.err
			}
			return 0, io.EOF
		}
		s.left = s.piece
	}
	n := copy(b, s.left)
	s.left = s.left[n:]
	return n, nil
}

// Size is how long the file is.
func (s *snapshot) Size() int64 { return s.size }

// Close ends the maker and waits for it.
func (s *snapshot) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	defer s.done()
	s.cancel()
	for range s.pieces {
	}
	return nil
}

// pacer is the pace of one snapshot.
type pacer struct {
	m        *Member
	begin    time.Time // of the piece
	revision int64     // when the piece began
}

// pause is called between two pieces of a snapshot. While there are writers it rests for some times as long as the piece
// took, by the clock: where others want the processors, pieces take longer and so do the rests.
func (p *pacer) pause(ctx context.Context) error {
	if took := time.Since(p.begin); took >= minPiece {
		p.rest(ctx, took)
	}
	return context.Cause(ctx)
}

// waited takes time out of the piece in which nothing was done.
func (p *pacer) waited(d time.Duration) { p.begin = p.begin.Add(d) }

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
