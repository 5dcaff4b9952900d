package leader

import (
	"context"
	"sync"
	"time"
)

const (
	// beat is how often a clock is looked at.
	beat = 200 * time.Millisecond
	// beatAtMost is how much of the time between two looks counts.
	beatAtMost = 2 * beat
)

// clock is the time of a term. Time in which the process, or the machine, stood still (SIGSTOP, a pause of the virtual machine) does not
// count, but for beatAtMost: meanwhile nobody could renew a lease here, and the renewals of those who went on sending wait in
// sockets to be read. It is behind the true time if anything, so leases only ever live longer by it.
type clock struct {
	base  time.Time
	since func(time.Time) time.Duration

	mu     sync.Mutex
	looked time.Duration // the true time at the last look
	still  time.Duration // what does not count
}

// now may be the first to look after the process goes on; whoever is, it leaves out what must be.
func (c *clock) now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.since(c.base)
	c.still += max(0, now-c.looked-beatAtMost)
	c.looked = max(c.looked, now)
	return now - c.still
}

// run looks at the clock as long as the term lasts.
func (c *clock) run(ctx context.Context) {
	for ticker := time.NewTicker(beat); ; {
		select {
		case <-ticker.C:
			c.now()
		case <-ctx.Done():
			ticker.Stop()
			return
		}
	}
}
