package server

import (
	"sync"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// TestDeadlines: whoever begins at any time waits for at least the time given, and for no more than a step longer; those who come
// together share a channel.
func TestDeadlines(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		d := newDeadlines(6400 * time.Millisecond)
		if a, b := d.next(time.Now()), d.next(time.Now().Add(100*time.Millisecond)); a != b {
			t.Error("two requests of one step do not share an end")
		}
		var waiting sync.WaitGroup
		for range 300 {
			begin := time.Now()
			over := d.next(begin)
			waiting.Go(func() {
				<-over
				if took := time.Since(begin); took < 6400*time.Millisecond || took > 6500*time.Millisecond {
					t.Errorf("a request was over after %s", took)
				}
			})
			time.Sleep(37 * time.Millisecond)
		}
		waiting.Wait()
		time.Sleep(time.Minute)
		select {
		case <-d.next(time.Now()):
			t.Error("a request after a rest is over when it begins")
		default:
		}
	})
}
