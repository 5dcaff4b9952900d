package server

import (
	"time"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// quotaEvery is how often a member compares the size of its state with the quota.
const quotaEvery = time.Second

// hasRoom reports whether this member's state may take the command. If not, the alarm is about to be raised. Once it is,
// commands go through the log again, where the alarm refuses them on every member alike.
func (m *Member) hasRoom(c *command.Command) bool {
	quota := m.options.QuotaBytes
	if quota < 0 {
		return true
	}
	cost := c.Cost()
	if cost == 0 || m.machine.state.Load().Engine.Size()+cost < quota {
		return true
	}
	if raised, _ := m.noSpace(); raised {
		return true
	}
	select {
	case m.overQuota <- struct{}{}:
	default:
	}
	return false
}

// noSpace reports whether this member's alarm is raised, and by the member itself.
func (m *Member) noSpace() (raised, own bool) {
	for _, a := range m.Alarms() {
		if a.Type == kv.AlarmNoSpace && a.MemberID == m.identity.MemberID {
			return true, a.Own
		}
	}
	return false, false
}

// watchQuota raises this member's alarm and clears it again, and while it leads those of members that are gone. It runs
// until the member stops.
func (m *Member) watchQuota() {
	tick := time.NewTicker(quotaEvery)
	defer tick.Stop()
	for {
		over := false
		select {
		case <-m.life.Done():
			return
		case <-m.overQuota:
			over = true
		case <-tick.C:
		}
		e := m.machine.state.Load().Engine
		m.measure(e)
		m.keepQuota(e.Size(), over)
		m.clearForgotten()
	}
}

// measure finds out how large the state is. Near a quota that is small beside the memtables, it flushes to know.
func (m *Member) measure(e *engine.Engine) {
	e.Measure()
	quota := m.options.QuotaBytes
	if quota < 0 || !nearly(e.Size(), quota) || e.Unflushed() <= quota/10 || m.room.full() {
		return
	}
	if err := e.Flush(); err != nil {
		m.logger.Warn("flushing the state to learn its size failed; it will be tried again", "error", err)
		return
	}
	e.Measure()
}

// nearly reports whether size is 90 % of the quota or more: below, an alarm that a member has raised is cleared.
func nearly(size, quota int64) bool { return size >= quota/10*9 }

// keepQuota makes the alarm what the size asks for; over says that a command was refused already.
func (m *Member) keepQuota(size int64, over bool) {
	quota := m.options.QuotaBytes
	raised, own := m.noSpace()
	alarm := kv.Alarm{Type: kv.AlarmNoSpace, MemberID: m.identity.MemberID, Own: !m.options.QuotaManualDisarm}
	switch {
	case !raised && quota > 0 && (over || size >= quota):
		m.logger.Warn("the state has reached its quota: raising the alarm NOSPACE; delete keys and compact, or give a larger --quota-backend-bytes",
			"size", size, "quota", quota, "clears-by-itself", alarm.Own)
		m.proposeQuietly(&command.Command{Alarm: &command.Alarm{Alarm: alarm, Raise: true, Found: true}})
	case own && alarm.Own && (quota < 0 || !nearly(size, quota)):
		m.logger.Info("the state is below its quota again: clearing the alarm NOSPACE", "size", size, "quota", quota)
		m.proposeQuietly(&command.Command{Alarm: &command.Alarm{Alarm: alarm, Found: true}})
	}
}

// clearForgotten clears, while this member leads, the alarms that members raised about themselves and that are gone now.
func (m *Member) clearForgotten() {
	if s := m.replica.Status(); s.Leader != m.identity.MemberID || s.AppliedTerm != s.Term {
		return
	}
	members := m.machine.state.Load().Members
	for _, a := range m.Alarms() {
		if !a.Own {
			continue
		}
		if _, there := members.Get(a.MemberID); !there {
			m.proposeQuietly(&command.Command{Alarm: &command.Alarm{Alarm: a, Found: true}})
		}
	}
}
