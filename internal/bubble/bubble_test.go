package bubble

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// Goroutines that start timers which are due at once, all together: with more than one processor the race detector crashes here.
func TestTimersDueAtOnce(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	for range 50 {
		Test(t, func(*testing.T) {
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for range 300 {
						<-time.NewTimer(0).C
					}
				})
			}
			wg.Wait()
		})
	}
	if now := runtime.GOMAXPROCS(0); now != before {
		t.Fatalf("%d processors after the bubbles, %d before", now, before)
	}
}

// Bubbles side by side: the processors come back with the last of them.
func TestSideBySide(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	t.Run("all", func(t *testing.T) {
		for range 4 {
			t.Run("one", func(t *testing.T) {
				t.Parallel()
				for range 20 {
					Test(t, func(t *testing.T) {
						if underRace && runtime.GOMAXPROCS(0) != 1 {
							t.Error("several processors inside a bubble under the race detector")
						}
						time.Sleep(time.Second)
					})
				}
			})
		}
	})
	if now := runtime.GOMAXPROCS(0); now != before {
		t.Fatalf("%d processors after the bubbles, %d before", now, before)
	}
}
