package fsm

import (
	"fmt"

	"github.com/trivet-kv/trivet/internal/auth"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/mvcc"
)

// Waiters is who waits on this member for the results of commands.
type Waiters interface {
	// Wants reports whether somebody waits here for the command, so that its whole answer must be made.
	Wants(origin, id uint64) bool
}

// Outcome is what a run of entries did, for those who are told after the batch was committed.
type Outcome struct {
	Results []Answer
	Events  []kv.Event // in order of revision
	// Revision is the store's after the last entry.
	Revision int64
	// Leases that were granted, revoked or checkpointed, in order: what the leader's clock must know.
	Leases []LeaseChange
	// Tokens that users were given, for every member to know them.
	Tokens []Token
	// MembersChanged tells that members, or what is known of them, are others now.
	MembersChanged bool
	// AuthChanged tells that users, roles or permissions are others now.
	AuthChanged bool
	// Compacted is the newest revision that a compaction in this run asked for; 0 if none did.
	Compacted int64
	// Diverged, if set, tells that what this member applied is not what the majority did (Mark).
	Diverged *Divergence
	// Ran is what was run, command by command.
	Ran []Ran
	// Deletes is how often keys were deleted: once for each delete, however many keys it found, and for each key of a lease
	// that ended.
	Deletes int
}

// Ran is one command that was run.
type Ran struct {
	Name    string // command.Name
	Refused error  // nil: it was done
}

// Answer is the result of one command that somebody here waits for.
type Answer struct {
	ID     uint64
	Result command.Result
}

// Token is a simple token of a user, made under an auth revision. It is a secret.
type Token struct {
	Token string
	Who   auth.Who
}

// LeaseChange is one change of a lease. Revoked means that it is gone; otherwise it was granted or, if not, checkpointed,
// and Lease is how it is now.
type LeaseChange struct {
	Lease            kv.Lease
	Granted, Revoked bool
}

// Apply applies committed entries in log order, all in one batch, and commits it. An error means that the engine failed
// or that the log holds what this binary cannot read: the member must stop. A command that is refused is no error; its
// result says so. Only one goroutine may call Apply, ApplyConf or replace the state.
func (s *State) Apply(entries []command.Entry, waiters Waiters) (Outcome, error) {
	b := s.Engine.NewBatch()
	defer b.Close()
	a := s.newApplier(b, waiters)
	if err := a.prepare(entries); err != nil {
		a.discard()
		return Outcome{}, err
	}
	for i := range entries {
		e := &entries[i]
		if e.Index != s.Applied.Index+uint64(i)+1 {
			panic(fmt.Sprintf("fsm: entry %d after %d", e.Index, s.Applied.Index+uint64(i)))
		}
		a.entry = e
		if err := command.Batch(e.Data, a.apply); err != nil {
			a.discard()
			return Outcome{}, fmt.Errorf("apply entry %d of term %d: %w", e.Index, e.Term, err)
		}
	}
	last := Position{Index: a.entry.Index, Term: a.entry.Term}
	if err := a.commit(last, nil); err != nil {
		return Outcome{}, err
	}
	return a.outcome, nil
}

// prepare has the keys that the entries put looked up together, which costs less than one by one. It decides nothing: what
// cannot be read is for Apply to meet.
func (a *applier) prepare(entries []command.Entry) error {
	var keys [][]byte
	for i := range entries {
		_ = command.Batch(entries[i].Data, func(_ uint64, encoded []byte) error {
			a.commands++
			command.PutKeys(encoded, func(key []byte) { keys = append(keys, key) })
			return nil
		})
	}
	if err := a.writer.Prepare(keys); err != nil {
		return fmt.Errorf("look up the keys of entries %d to %d: %w", entries[0].Index, entries[len(entries)-1].Index, err)
	}
	return nil
}

// applier is the work on one batch.
type applier struct {
	*State
	batch    *engine.Batch
	writer   *mvcc.Writer
	waiters  Waiters
	entry    *command.Entry
	command  command.Command // decoded in place, one after the other
	commands int             // in all entries, as far as they can be read
	outcome  Outcome
	conf     bool // raft counts with the members after the entry

	sum   sum // as it will be
	mixer mixer
}

func (s *State) newApplier(b *engine.Batch, waiters Waiters) *applier {
	return &applier{State: s, batch: b, writer: s.Store.NewWriter(b), waiters: waiters, sum: s.sum}
}

// commit writes the position of the last entry into the batch, commits it and shows readers the new state.
func (a *applier) commit(last Position, confState []byte) error {
	if err := writePosition(a.batch, last, confState); err != nil {
		return err
	}
	if err := a.sum.write(a.batch); err != nil {
		return err
	}
	// Permissions first: whoever reads what this batch wrote is measured by the permissions that it made. What is in the
	// log is agreed on, so that nobody is told too early.
	a.outcome.AuthChanged = a.Auth.Changed()
	a.Auth.Publish()
	events, err := a.writer.Publish()
	if err != nil {
		a.discard()
		return fmt.Errorf("commit the state at entry %d: %w", last.Index, err)
	}
	a.Leases.Publish()
	a.outcome.MembersChanged = a.Members.Changed()
	a.Members.Publish()
	a.Alarms.Publish()
	a.Applied = last
	a.State.sum = a.sum
	a.notes.Store(&a.sum.notes)
	a.outcome.Events = events
	a.outcome.Revision = a.Store.Revision()
	return nil
}

// discard forgets what a batch that is given up has changed in the tables beside the rows.
func (a *applier) discard() {
	a.Leases.Discard()
	a.Auth.Discard()
	a.Alarms.Discard()
	a.Members.Discard()
}

func (a *applier) apply(origin uint64, encoded []byte) error {
	c := &a.command
	if err := c.Decode(encoded); err != nil {
		return err
	}
	wanted := a.waiters.Wants(origin, c.ID)
	r := command.Result{Index: a.entry.Index, Term: a.entry.Term}
	if err := a.run(c, &r, wanted); err != nil {
		return fmt.Errorf("%s: %w", c.Name(), err)
	}
	a.mix(c.Kind(), &r)
	if a.outcome.Ran == nil {
		a.outcome.Ran = make([]Ran, 0, a.commands)
	}
	a.outcome.Ran = append(a.outcome.Ran, Ran{Name: c.Name(), Refused: r.Err})
	if wanted {
		a.outcome.Results = append(a.outcome.Results, Answer{ID: c.ID, Result: r})
	}
	return nil
}

// run does c and fills r. What refuses c goes into r.Err; the error returned is the engine's.
func (a *applier) run(c *command.Command, r *command.Result, wanted bool) error {
	if refused, err := refusal(a.allowed(c)); err != nil || refused != nil {
		r.Revision, r.Err = a.writer.Revision(), refused
		return err
	}
	if r.Err = a.alarmed(c); r.Err != nil {
		r.Revision = a.writer.Revision()
		return nil
	}
	switch {
	case c.Put != nil, c.DeleteRange != nil, c.Txn != nil:
		return a.write(c, r, wanted)
	case c.LeaseRevoke != nil:
		return a.revoke(c.LeaseRevoke, r)
	case c.LeaseGrant != nil:
		return a.grant(c.LeaseGrant, r)
	case c.LeaseCheckpoint != nil:
		return a.checkpoint(c.LeaseCheckpoint, r)
	case c.Compact != nil:
		r.Revision = a.writer.Revision()
		refused, err := refusal(a.writer.Compact(c.Compact.Revision))
		if r.Err = refused; err == nil && refused == nil {
			a.outcome.Compacted = c.Compact.Revision
		}
		return err
	case c.Auth != nil:
		return a.auth(c, r)
	case c.MemberPublish != nil:
		p := c.MemberPublish
		r.Revision = a.writer.Revision()
		return a.Members.Describe(a.batch, p.ID, p.Name, p.ClientURLs)
	case c.Alarm != nil:
		return a.alarm(c.Alarm, r)
	case c.Fence != nil:
		r.Revision = a.writer.Revision()
		return nil
	case c.Mark != nil:
		r.Revision = a.writer.Revision()
		return a.mark(c.Mark)
	}
	return a.membership(c, r)
}

func (a *applier) grant(g *command.LeaseGrant, r *command.Result) error {
	r.Revision = a.writer.Revision()
	refused, err := refusal(a.Leases.Grant(a.batch, kv.Lease{ID: g.ID, TTL: g.TTL, Granted: a.entry.Index}))
	if r.Err = refused; err != nil || refused != nil {
		return err
	}
	granted, _ := a.Leases.Get(g.ID)
	r.Lease = &granted
	a.outcome.Leases = append(a.outcome.Leases, LeaseChange{Lease: granted, Granted: true})
	return nil
}

// revoke ends a lease and deletes its keys in one revision. A lease without keys leaves the revision as it is.
func (a *applier) revoke(v *command.LeaseRevoke, r *command.Result) error {
	r.Revision = a.writer.Revision()
	if v.Term != 0 && v.Term != a.entry.Term {
		r.Err = kv.ErrNotLeader // its proposer led no more when the entry was made (E#15247)
		return nil
	}
	if l, ok := a.Leases.Get(v.ID); !ok || v.Granted != 0 && l.Granted != v.Granted {
		r.Err = kv.ErrLeaseNotFound
		return nil
	}
	keys, err := a.Leases.Keys(a.batch, v.ID)
	if err != nil {
		return err
	}
	a.outcome.Deletes += len(keys)
	txn := a.writer.Begin()
	for _, key := range keys {
		if _, err := txn.Delete(kv.Range{Key: key}, false, nil); err != nil {
			return err
		}
	}
	r.Revision = txn.End()
	if err := a.Leases.Revoke(a.batch, v.ID); err != nil {
		return err
	}
	a.outcome.Leases = append(a.outcome.Leases, LeaseChange{Lease: kv.Lease{ID: v.ID}, Revoked: true})
	return nil
}

// checkpoint records the remaining times of the leases that still are; those that went meanwhile, or went and were granted
// anew, are passed over.
func (a *applier) checkpoint(c *command.LeaseCheckpoint, r *command.Result) error {
	r.Revision = a.writer.Revision()
	if c.Term != 0 && c.Term != a.entry.Term {
		r.Err = kv.ErrNotLeader
		return nil
	}
	for _, l := range c.Leases {
		if now, ok := a.Leases.Get(l.ID); ok && l.Granted != 0 && l.Granted != now.Granted {
			continue // the time of a lease that is gone is not that of a later one
		}
		refused, err := refusal(a.Leases.Checkpoint(a.batch, l.ID, l.Remaining))
		if err != nil {
			return err
		}
		if refused != nil {
			continue
		}
		if now, ok := a.Leases.Get(l.ID); ok {
			a.outcome.Leases = append(a.outcome.Leases, LeaseChange{Lease: now})
		}
	}
	return nil
}
