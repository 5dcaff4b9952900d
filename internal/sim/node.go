package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trivet-kv/trivet/internal/metrics"
	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/server"
	"github.com/trivet-kv/trivet/internal/transport"
)

// node is one member of the simulated cluster: its name and its disk stay, its lives come and go.
type node struct {
	name    string
	disk    *Disk
	network *transport.Network
	history *History
	options server.Options // the same for each life, but for FS, Transport and Origin

	// Only the goroutine of Run starts and ends lives. No lock is held meanwhile: in a bubble, time would stand still for
	// whoever waits for it.
	life  atomic.Pointer[life] // nil while the node is down
	lives int
	id    uint64 // of the member in the last life
	in    bool   // it is one of the cluster, as far as Run knows; it runs then, but for moments

	wiped []*Disk        // that it had before
	ended sync.WaitGroup // lives that are being buried

	untold bool // the planted bug Zombies
}

// life is one process of a node, from its start to its end.
type life struct {
	id       uint64 // of the member
	member   *server.Member
	services *rpc.Services
	dead     atomic.Bool // no answer counts any more
	leaving  atomic.Bool // it was told to stop: its streams end, without a fault of anybody
	ctx      context.Context
	end      context.CancelFunc
}

func (l *life) alive() bool { return !l.dead.Load() }

// start begins a new life. The node must be down.
func (n *node) start() error {
	if n.life.Load() != nil {
		panic("sim: start of a node that runs: " + n.name)
	}
	l, o := n.conceive()
	m, err := server.Start(o)
	if err != nil {
		return fmt.Errorf("%s does not start in its life %d: %w", n.name, n.lives, err)
	}
	l.member = m
	l.services = rpc.New(rpc.Options{Backend: m, Logger: o.Logger, Metrics: metrics.New(metrics.Identity{})})
	l.ctx, l.end = context.WithCancel(context.Background())
	n.life.Store(l)
	return nil
}

// conceive makes a life that is still to start, with these options.
func (n *node) conceive() (*life, server.Options) {
	n.lives++
	l := &life{}
	o := n.options
	o.FS = n.disk.FS()
	o.Origin = uint64(n.lives)<<8 | uint64(len(n.name)) + uint64(n.name[len(n.name)-1])
	o.Logger = n.options.Logger.With("member", n.name, "life", n.lives)
	o.Transport = func(c server.TransportConfig) (t server.Transport, err error) {
		n.history.Locked(func() {
			if !l.alive() {
				err = errCrashed // the network is that of the next life
				return
			}
			l.id, n.id = c.MemberID, c.MemberID
			var e *transport.Endpoint
			e, err = n.network.Join(transport.EndpointConfig{ID: c.MemberID, FS: c.FS, Incoming: c.Incoming})
			if t = e; n.untold {
				t = silent{e}
			}
		})
		return t, err
	}
	return l, o
}

var errCrashed = errors.New("sim: the power is gone")

// startAndCrash begins a life that loses its power so long afterwards, mostly in the middle of its start. The node must be
// down, and is down again.
func (n *node) startAndCrash(after time.Duration, keepPercent int) {
	l, o := n.conceive()
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.member, _ = server.Start(o)
	}()
	select {
	case <-done:
	case <-time.After(after):
	}
	n.history.Locked(func() {
		l.dead.Store(true)
		if l.id != 0 {
			n.network.Crash(l.id)
		}
		n.disk.Crash(keepPercent)
	})
	n.ended.Go(func() { // Start comes back by itself, for want of anybody who answers if not before
		if <-done; l.member != nil {
			l.member.Kill()
		}
	})
}

// current is the node's life, nil if it is down.
func (n *node) current() *life { return n.life.Load() }

// crash ends the node's life as a loss of power would: no answer gets out from this moment on, what is under way to
// and from it is lost, and so is what it had not synced, but for a share in percent.
func (n *node) crash(keepPercent int) {
	l := n.life.Swap(nil)
	if l == nil {
		return
	}
	n.history.Locked(func() {
		l.dead.Store(true)
		n.network.Crash(l.id)
		n.disk.Crash(keepPercent)
	})
	l.end()
	n.ended.Go(func() { // whatever its goroutines still do, it touches nothing that lives
		l.services.Stop()
		l.member.Kill()
	})
}

// stop ends the node's life in good order. Answers count until the end.
func (n *node) stop(within time.Duration) error {
	l := n.life.Swap(nil)
	if l == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	l.leaving.Store(true)
	l.services.Stop()
	l.end()
	err := l.member.Stop(ctx)
	n.history.Locked(func() { l.dead.Store(true) })
	if err != nil {
		return fmt.Errorf("%s does not stop in good order: %w", n.name, err)
	}
	return nil
}

// voters is how many members have a vote, as far as the node knows; zero if it is down.
func (n *node) voters() (count int) {
	if l := n.current(); l != nil {
		for _, m := range l.member.Members() {
			if !m.Learner {
				count++
			}
		}
	}
	return count
}

// failed tells why the node's member cannot go on, nil if it can or is down.
func (n *node) failed() error {
	l := n.current()
	if l == nil {
		return nil
	}
	select {
	case err := <-l.member.Failed():
		return fmt.Errorf("%s cannot go on: %w", n.name, err)
	default:
		return nil
	}
}

// silent is a network on which nobody is told that it was removed.
type silent struct{ server.Transport }

// RemovePeer does nothing.
func (silent) RemovePeer(uint64) {}

var discard = slog.New(slog.DiscardHandler)
