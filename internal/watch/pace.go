package watch

import "time"

// Catching up shares the processors with the writers. It reads one piece of history at a time (Options.Reads), and while
// there are writers it rests after each: restFactor times as long as reading the piece took. That is time on the clock, so
// where others want the processors too, catching up takes less of them. A piece that another stream has read already counts
// as much: sending it costs about what reading it did.
//
// A rest ends early when the writers have got far enough: all who lag must come nearer to them, by one revision for each
// that is written. Without writers there is none.

const (
	restFactor = 4
	// maxRest bounds a rest.
	maxRest = 50 * time.Millisecond
	// restStep is how often it is looked whether a rest is over.
	restStep = time.Millisecond
	// idleAfter is how long nothing must have been published, and nobody wait for a write here, for there to be no writers.
	idleAfter = 10 * time.Millisecond
)

// rest gives the place in reads back, at once or after a rest. took is what reading a piece took, got the revisions by
// which it brought the watchers on.
func (h *Hub) rest(took time.Duration, got int64) {
	_, last := h.ring.bounds()
	enough := last + got/(2*max(1, h.behind.Load()))
	until := time.Now().Add(min(restFactor*took, maxRest))
	var step func()
	step = func() {
		_, last := h.ring.bounds()
		left := time.Until(until)
		if left <= 0 || last > enough || h.idle() {
			<-h.reads
			return
		}
		time.AfterFunc(min(left, restStep), step)
	}
	step()
}

// idle reports whether there are no writers.
func (h *Hub) idle() bool {
	return time.Since(h.start)-time.Duration(h.published.Load()) > idleAfter && !h.o.Writing()
}
