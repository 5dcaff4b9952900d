package certs

import (
	"log/slog"
	"sync"
	"time"
)

// Bounds of what the log hears of connections that fail.
const (
	complainEvery = time.Minute // about one cause and one remote host
	maxComplaints = 1024        // kept apart; those beyond share one place for each cause
)

// complaints keeps the log readable while somebody knocks with the wrong key again and again.
type complaints struct {
	log *slog.Logger

	mu   sync.Mutex
	made map[complaint]*complained
}

type complaint struct{ host, what string }

type complained struct {
	at      time.Time
	skipped int // since then
}

// note logs what happened, unless it was logged for this host within complainEvery.
func (c *complaints) note(host, what string, args ...any) {
	skipped, ok := c.due(complaint{host, what}, time.Now())
	if !ok {
		return
	}
	if skipped > 0 {
		args = append(args, "skipped-since-last", skipped)
	}
	c.log.Warn(what, args...)
}

// due tells whether it is time to log again, and how often it was not since the last time.
func (c *complaints) due(k complaint, now time.Time) (skipped int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made == nil {
		c.made = make(map[complaint]*complained)
	}
	m := c.made[k]
	if m == nil && len(c.made) >= maxComplaints {
		for old, o := range c.made {
			if now.Sub(o.at) >= complainEvery {
				delete(c.made, old)
			}
		}
		if len(c.made) >= maxComplaints {
			k.host = ""
			m = c.made[k]
		}
	}
	switch {
	case m == nil:
		c.made[k] = &complained{at: now}
		return 0, true
	case now.Sub(m.at) < complainEvery:
		m.skipped++
		return 0, false
	}
	skipped = m.skipped
	*m = complained{at: now}
	return skipped, true
}
