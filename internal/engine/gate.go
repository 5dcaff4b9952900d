package engine

import (
	"errors"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// ErrClosed is returned for what begins after Close was called.
var ErrClosed = errors.New("engine: closed")

// gate lets Close wait for everything that is under way: open iterators, batches, and the calls that read or flush. A
// store may be closed while requests read it, when a checkpoint of another member takes its place.
type gate struct {
	inside  atomic.Int64
	closing atomic.Bool
	left    chan struct{} // capacity 1: somebody has left while the gate was closing
	damaged func(error)   // is told of damage that a read has met
}

func newGate(damaged func(error)) *gate { return &gate{left: make(chan struct{}, 1), damaged: damaged} }

// read returns err, which a read ended with, and tells of it if it is damage: Pebble tells of damaged tables by itself, and not of
// files of values.
func (g *gate) read(err error) error {
	if err != nil && pebble.IsCorruptionError(err) {
		g.damaged(err)
	}
	return err
}

// enter must be followed by leave, unless it returns an error.
func (g *gate) enter() error {
	g.inside.Add(1)
	if g.closing.Load() {
		g.leave()
		return ErrClosed
	}
	return nil
}

func (g *gate) leave() {
	if g.inside.Add(-1) == 0 && g.closing.Load() {
		select {
		case g.left <- struct{}{}:
		default:
		}
	}
}

// close lets nobody in any more and waits until all have left. It reports false if it was called before.
func (g *gate) close() bool {
	if g.closing.Swap(true) {
		return false
	}
	for g.inside.Load() > 0 {
		<-g.left
	}
	return true
}
