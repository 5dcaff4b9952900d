package compat

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	mvccpb "go.etcd.io/etcd/api/v3/mvccpb"
)

// recovery is how long two members may take to go on without the third.
const recovery = 30 * time.Second

// killOrStart kills a member of both systems with kill -9, or starts it again. Nothing is under way meanwhile, so both must
// know the same afterwards; what is under way when a member dies is the business of internal/sim.
func (p *pair) killOrStart(o op) error {
	if o.verb == "start" {
		return blameless(p.both(func(t *target) error { return t.revive(o.member) }))
	}
	if err := p.settle(); err != nil {
		return err
	}
	return blameless(p.both(func(t *target) error { return t.kill(o.member) }))
}

// kill does nothing if the member is dead, or if it would leave no majority.
func (t *target) kill(member int) error {
	if slices.Contains(t.dead[:], true) {
		return nil
	}
	for name, w := range t.streams {
		if w.member == member {
			w.close()
			delete(t.streams, name)
		}
	}
	if err := t.cluster.Members[member].Kill(); err != nil {
		return err
	}
	t.dead[member], t.lenient, t.behind = true, 60, true
	ctx, cancel := context.WithTimeout(context.Background(), recovery)
	defer cancel()
	for t.catchUp(ctx) != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%s: does not go on without m%d within %v", t.name, member+1, recovery)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if t.witness.member != member {
		return nil
	}
	// Another witness has seen what the first one had, for history may be compacted by now, and sees what comes. It does not
	// say from which revision: with one that is still to come it would be told of no progress.
	seen := t.witness.first()
	t.witness.close()
	if err := t.openWitness((member+1)%memberCount, t.witness.user, 0); err != nil {
		return err
	}
	t.witness.mu.Lock()
	defer t.witness.mu.Unlock()
	all := t.witness.watchers[0]
	all.events = append(append([]*mvccpb.Event{}, seen...), all.events...)
	return nil
}

// revive starts a dead member again and waits until it serves.
func (t *target) revive(member int) error {
	if !t.dead[member] {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), recovery)
	defer cancel()
	if err := t.cluster.Members[member].Start(); err != nil {
		return err
	}
	t.dead[member], t.behind = false, true
	if err := t.cluster.Members[member].Ready(ctx); err != nil {
		return err
	}
	if t.witness != nil && t.witness.user != "" {
		return nil // only users are told the versions, which were agreed on long ago
	}
	_, err := settled(ctx, t.conns[member])
	return err
}

// TestKills makes random calls while members are killed and started again, at the same places of both systems.
func TestKills(t *testing.T) {
	const each = 3 // kills in an episode
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(rand.Uint32())
	}
	t.Logf("seed %d", seed)
	defer systems.with("--heartbeat-interval=100", "--election-timeout=1000")()
	_ = systems.both(func(s *target) error { s.stop(); return nil }) // those that run have other flags
	defer systems.both(func(s *target) error { s.stop(); return nil })
	began, calls, voided := time.Now(), 0, 0
	for killed, episode := 0, uint64(*firstFlag); killed < *killsFlag; {
		n := min(each, *killsFlag-killed)
		err := killingEpisode(&systems, seed, episode, n)
		switch {
		case err == nil:
			calls, killed, episode = calls+systems.calls, killed+n, episode+1
		case systems.void(err) && voided < 3+*killsFlag/10:
			voided++
			t.Logf("episode %d counts for nothing, the machine stood still: %v", episode, err)
			_ = systems.both(func(s *target) error { s.stop(); return nil })
		default:
			script := systems.done
			t.Errorf("seed %d, episode %d, after %d calls: %v\n%v", seed, episode, calls+systems.calls, err, systems.crashed())
			shortened, err := shorten(t, script, err)
			t.Fatalf("the shortest script that differs:\n\n%s\n%v", formatScript(shortened), err)
		}
	}
	t.Logf("%d calls, %d kills in %v", calls, *killsFlag, time.Since(began).Round(time.Millisecond))
}

func killingEpisode(p *pair, seed, episode uint64, kills int) error {
	if err := p.begin(false); err != nil {
		return err
	}
	d := newDriver(p, seed, 1<<33+episode)
	some := func(calls int) error {
		for end := p.calls + calls; p.calls < end; {
			if err := p.all(d.next()); err != nil {
				return err
			}
		}
		return nil
	}
	for range kills {
		if err := some(20 + d.IntN(120)); err != nil {
			return err
		}
		if err := p.all(d.killOrStart()); err != nil {
			return err
		}
		if err := some(20 + d.IntN(120)); err != nil {
			return err
		}
		if err := p.do([]op{{verb: "start", member: d.dead}}); err != nil {
			return err
		}
		d.dead = memberCount
	}
	if err := some(40); err != nil {
		return err
	}
	return p.do([]op{{verb: "settle"}})
}
