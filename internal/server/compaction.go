package server

import (
	"errors"
	"time"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/leader"
)

// compactNowAndThen compacts history as the retention says while this member leads, and notes the revisions that it needs
// for that while it does not. It runs until the member stops.
func (m *Member) compactNowAndThen() {
	c := leader.NewCompaction(m.options.Retention)
	begun := time.Now()
	looks := time.NewTicker(c.Interval())
	defer looks.Stop()
	for {
		now := time.Since(begun)
		to := c.Look(now, m.Store().Revision())
		if to > 0 && m.replica.Status().Leader == m.identity.MemberID && m.compact(to) {
			c.Done(now, to)
		}
		select {
		case <-looks.C:
		case <-m.life.Done():
			return
		}
	}
}

// compact reports whether history up to a revision is compacted, by this or before.
func (m *Member) compact(to int64) bool {
	if to <= m.Store().CompactRevision() {
		return true
	}
	r, err := m.Propose(m.life, &command.Command{Compact: &command.Compact{Revision: to}})
	if err == nil {
		err = r.Err
	}
	switch {
	case err == nil:
		m.logger.Info("history was compacted by itself", "revision", to, "period", m.options.Retention.Period.String(),
			"revisions", m.options.Retention.Revisions)
		return true
	case errors.Is(err, kv.ErrCompacted):
		return true
	case m.life.Err() == nil:
		m.logger.Warn("history could not be compacted by itself; it will be tried again", "revision", to, "error", err)
	}
	return false
}
