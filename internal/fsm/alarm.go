package fsm

import (
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

// alarmed says why a raised alarm refuses c. The alarms are state, so every member refuses the same commands. As in etcd,
// NOSPACE stops what could make the store grow, judged by its form: deletes, revocations, compactions and transactions
// without a put go on. CORRUPT stops everything that changes keys or leases, unless it is that of a member which takes
// care of itself; it comes first. Whether the caller may make the call at all is decided elsewhere, alarm or not
// (E#22386).
func (a *applier) alarmed(c *command.Command) error {
	var refused error
	for _, raised := range a.Alarms.Current() {
		switch {
		case raised.Type == kv.AlarmCorrupt && !raised.Own && changes(c):
			return kv.ErrCorrupt
		case raised.Type == kv.AlarmNoSpace && c.Cost() > 0:
			refused = kv.ErrNoSpace
		}
	}
	return refused
}

// changes reports whether c is of those that change keys or leases on behalf of clients.
func changes(c *command.Command) bool {
	return c.Put != nil || c.DeleteRange != nil || c.Txn != nil || c.Compact != nil || c.LeaseGrant != nil || c.LeaseRevoke != nil
}

// alarm raises or clears an alarm. It leaves the revision as it is.
func (a *applier) alarm(c *command.Alarm, r *command.Result) error {
	r.Revision = a.writer.Revision()
	if c.Type == kv.AlarmNone {
		return nil
	}
	if c.Raise {
		raised, err := a.Alarms.Raise(a.batch, c.Alarm)
		refused, err := refusal(err)
		if r.Err = refused; err == nil && refused == nil {
			r.Alarms = []kv.Alarm{raised}
		}
		return err
	}
	cleared, err := a.Alarms.Clear(a.batch, c.Alarm)
	if cleared {
		r.Alarms = []kv.Alarm{c.Alarm}
	}
	return err
}
