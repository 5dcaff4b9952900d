package mvcc

import (
	"fmt"
	"testing"
)

// Whatever is done to the store, it answers as the model does, and its rows agree with one another.
func TestModel(t *testing.T) {
	seeds, steps := uint64(6), 250
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, seed, 5+20*int(seed%3))
			defer w.close()
			for i := range steps {
				w.step()
				if i%50 == 49 {
					w.verify(false)
				}
				if w.rng.IntN(60) == 0 {
					w.reopen()
					w.verify(false)
				}
			}
			w.sweepAll()
			w.verify(true)
			w.read()
		})
	}
}
