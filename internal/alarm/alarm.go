// Package alarm holds the alarms as the log agreed on them: which member is out of space or damaged. It keeps state only:
// rows in the engine and a table in memory that mirrors them. Changes are made inside the state machine's batch and
// become visible to readers by Publish, after the batch was committed. What a raised alarm refuses is package fsm's.
//
// Invariants, attacked by the model test beside this file:
//
//   - the table in memory and the rows of the committed state name the same alarms;
//   - there is at most one alarm of a type and a member, and it is a member's own only while nobody raised it by hand.
package alarm

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// MaxAlarms bounds the table: clients may raise alarms of any type for any member.
const MaxAlarms = 4096

// Alarms is the table of alarms. Reading is safe from any goroutine; writing is for the state machine alone.
type Alarms struct {
	published atomic.Pointer[[]kv.Alarm] // sorted; never changed once stored
	next      []kv.Alarm                 // what Publish will show; meaningful if changed
	changed   bool
}

// Open reads the table from its rows.
func Open(r engine.Reader) (*Alarms, error) {
	it, err := r.NewIter(engine.PrefixBounds([]byte{engine.PrefixAlarm}))
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var all []kv.Alarm
	for ok := it.First(); ok; ok = it.Next() {
		a, err := Decode(it.Key(), it.Value())
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	slices.SortFunc(all, compare) // rows of negative types, which clients may choose, come last
	a := &Alarms{}
	a.published.Store(&all)
	return a, it.Err()
}

// Decode reads one row.
func Decode(key, value []byte) (kv.Alarm, error) {
	typ, member, err := engine.DecodeAlarm(key)
	if err != nil {
		return kv.Alarm{}, err
	}
	if len(value) != 1 || value[0] > 1 {
		return kv.Alarm{}, fmt.Errorf("%w: alarm value %x", engine.ErrMalformed, value)
	}
	return kv.Alarm{Type: kv.AlarmType(typ), MemberID: member, Own: value[0] == 1}, nil
}

// All returns every alarm, by type and member. The caller must not change it.
func (a *Alarms) All() []kv.Alarm { return *a.published.Load() }

// Current is the table as the batch in work sees it. It is for the apply loop, which must not change it.
func (a *Alarms) Current() []kv.Alarm {
	if a.changed {
		return a.next
	}
	return a.All()
}

// Raise raises an alarm and returns how it stands now. One that is raised already stays as it is, except that what was
// raised by hand is no longer the member's own.
func (a *Alarms) Raise(b *engine.Batch, want kv.Alarm) (kv.Alarm, error) {
	i, found := find(a.Current(), want)
	switch {
	case found && (want.Own || !a.Current()[i].Own):
		return a.Current()[i], nil
	case !found && len(a.Current()) >= MaxAlarms:
		return kv.Alarm{}, kv.ErrTooManyRequests
	}
	value := []byte{0}
	if want.Own {
		value[0] = 1
	}
	if err := b.Set(engine.AppendAlarm(nil, int32(want.Type), want.MemberID), value); err != nil {
		return kv.Alarm{}, err
	}
	next := slices.Clone(a.Current())
	if found {
		next[i] = want
	} else {
		next = slices.Insert(next, i, want)
	}
	a.next, a.changed = next, true
	return want, nil
}

// Clear clears an alarm and reports whether it was raised. A member that clears its own leaves one alone that was raised
// by hand.
func (a *Alarms) Clear(b *engine.Batch, want kv.Alarm) (cleared bool, err error) {
	i, found := find(a.Current(), want)
	if !found || want.Own && !a.Current()[i].Own {
		return false, nil
	}
	if err := b.Delete(engine.AppendAlarm(nil, int32(want.Type), want.MemberID)); err != nil {
		return false, err
	}
	a.next, a.changed = slices.Delete(slices.Clone(a.Current()), i, i+1), true
	return true, nil
}

// Publish shows readers what was written since the last call. Call it after the batch was committed.
func (a *Alarms) Publish() {
	if a.changed {
		next := a.next
		a.published.Store(&next)
		a.Discard()
	}
}

// Discard forgets what was written since the last Publish, when the batch is given up.
func (a *Alarms) Discard() { a.next, a.changed = nil, false }

func find(all []kv.Alarm, want kv.Alarm) (int, bool) {
	return slices.BinarySearchFunc(all, want, compare)
}

func compare(x, y kv.Alarm) int {
	return cmp.Or(cmp.Compare(x.Type, y.Type), cmp.Compare(x.MemberID, y.MemberID))
}
