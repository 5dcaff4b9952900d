package compat

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// episodeCalls is how many calls an episode has. A failing one is shortened, so it is not to be long; each begins with
// empty stores, so it is not to be short either.
const episodeCalls = 1000

// TestRandom makes random calls of both systems until they differ.
func TestRandom(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(rand.Uint32())
	}
	t.Logf("seed %d", seed)
	began, calls := time.Now(), 0
	for episode, voided := *firstFlag, 0; calls < *callsFlag; {
		err := runEpisode(&systems, seed, uint64(episode), min(episodeCalls, *callsFlag-calls))
		var d *difference
		switch {
		case err == nil:
			calls += systems.calls
			episode++
		case errors.As(err, &d) && d.void && voided < 5:
			voided++
			t.Logf("episode %d counts for nothing, the machine stood still: %v", episode, err)
			systems.both(func(t *target) error { t.stop(); return nil })
		default:
			script := systems.done
			t.Errorf("seed %d, episode %d, after %d calls: %v", seed, episode, calls+systems.calls, err)
			shortened, err := shorten(t, script, err)
			if len(shortened) > 40 {
				whole := filepath.Join(os.TempDir(), fmt.Sprintf("compat-%d-%d.txt", seed, episode))
				if err := os.WriteFile(whole, []byte(formatScript(shortened)), 0o644); err != nil {
					t.Error(err)
				}
				t.Fatalf("the script of %d lines is in %s\n%v", len(shortened), whole, err)
			}
			t.Fatalf("the shortest script that differs:\n\n%s\n%v", formatScript(shortened), err)
		}
	}
	took := time.Since(began)
	t.Logf("%d calls in %v, %.0f a second", calls, took.Round(time.Millisecond), float64(calls)/took.Seconds())
}

func runEpisode(p *pair, seed, episode uint64, calls int) error {
	if err := p.begin(false); err != nil {
		return err
	}
	d := newDriver(p, seed, episode)
	for p.calls < calls {
		ops := d.next()
		for len(ops) > 0 {
			n := batch(ops)
			if err := p.do(ops[:n]); err != nil {
				return err
			}
			ops = ops[n:]
		}
	}
	return p.do([]op{{verb: "settle"}})
}
