package server

import (
	"time"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// quotaEvery is how often a member compares the size of its state with the quota.
const quotaEvery = time.Second

// sayQuota logs the quota at the start, as etcd does, and what cannot be meant.
func (m *Member) sayQuota() {
	quota := m.options.QuotaBytes
	if quota < 0 {
		m.logger.Info("disabled backend quota", "quota-size-bytes", quota)
		return
	}
	m.logger.Info("enabled backend quota", "quota-size-bytes", quota, "clears-by-itself", !m.options.QuotaManualDisarm)
	if most := int64(m.options.MaxRequestBytes); quota < most {
		m.logger.Warn("the quota is less than one request may take, so that few writes will fit; give a larger --quota-backend-bytes",
			"quota-size-bytes", quota, "max-request-bytes", most)
	}
	usage, err := m.options.FS.GetDiskUsage(m.options.DataDir)
	if err == nil && uint64(quota) > usage.TotalBytes { // not every file system can tell
		m.logger.Warn("the quota is more than the whole disk of the data directory holds, so that the disk will be full first; give a smaller --quota-backend-bytes",
			"quota-size-bytes", quota, "disk-bytes", usage.TotalBytes)
	}
}

// fits returns nil if there is room for the command in this member's state and on its disk, else what its user is to hear.
// The alarm may be about to be raised then. Once it is, commands go through the log again, where the alarm refuses them on
// every member alike.
func (m *Member) fits(c *command.Command) error {
	cost := c.Cost()
	if cost == 0 {
		return nil
	}
	s, quota, full := m.machine.state.Load(), m.options.QuotaBytes, m.room.full()
	if !full && (quota < 0 || s.Engine.Size()+cost < quota) {
		return nil
	}
	if raised, _ := m.noSpace(); raised && !full {
		return nil
	}
	if err := s.Allowed(c); err != nil {
		return err // who may not write cannot raise an alarm for all others by trying
	}
	if !full {
		select {
		case m.overQuota <- struct{}{}:
		default:
		}
	}
	return kv.ErrNoSpace
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

// keepQuota makes the alarm what the size asks for; over says that a command was refused already. Below 90 % of the quota that
// one was too large alone: there is room for others, so only who clears alarms by hand, as with etcd, is to have one.
func (m *Member) keepQuota(size int64, over bool) {
	quota := m.options.QuotaBytes
	raised, own := m.noSpace()
	alarm := kv.Alarm{Type: kv.AlarmNoSpace, MemberID: m.identity.MemberID, Own: !m.options.QuotaManualDisarm}
	switch {
	case !raised && quota > 0 && (size >= quota || over && (nearly(size, quota) || !alarm.Own)):
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
