// Package member holds the members of the cluster as the log agreed on them: who they are and where they are reached,
// whose ids are gone for good, and which version of the API all of them serve. It keeps state only: rows in the engine
// and a table in memory that mirrors them. Changes are made inside the state machine's batch and become visible to
// readers by Publish, after the batch was committed.
//
// Invariants (docs/invariants.md, N1 to N4): an id that was removed never comes back; no two members share a peer URL; a
// learner becomes a voter by Promote alone; the members here are those that raft counts with, because a change of both
// is in one batch.
package member

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// Member is one member of the cluster.
type Member struct {
	ID         uint64   `json:"id"`
	Name       string   `json:"name,omitempty"` // empty while a member that was added has not started
	PeerURLs   []string `json:"peer_urls"`
	ClientURLs []string `json:"client_urls,omitempty"`
	Learner    bool     `json:"learner,omitempty"`
}

// Started reports whether the member has ever said that it runs.
func (m *Member) Started() bool { return m.Name != "" }

// table is what readers see; never changed once it is published.
type table struct {
	members   []Member // sorted by id
	removed   map[uint64]struct{}
	version   string
	downgrade Downgrade
}

// Members is the table of members. Reading is safe from any goroutine; writing is for the state machine alone.
type Members struct {
	published atomic.Pointer[table]
	next      *table // what Publish will show; nil if nothing changed
}

// Open reads the table from its rows.
func Open(r engine.Reader) (*Members, error) {
	t := &table{removed: make(map[uint64]struct{})}
	lower, upper := engine.PrefixBounds([]byte{engine.PrefixMember})
	it, err := r.NewIter(lower, upper)
	if err != nil {
		return nil, err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		var m Member
		if err := json.Unmarshal(it.Value(), &m); err != nil {
			return nil, fmt.Errorf("member row %x: %w", it.Key(), err)
		}
		t.members = append(t.members, m)
	}
	if err := it.Err(); err != nil {
		return nil, err
	}
	if err := t.readRemoved(r); err != nil {
		return nil, err
	}
	if err := t.readVersion(r); err != nil {
		return nil, err
	}
	m := &Members{}
	m.published.Store(t)
	return m, nil
}

// All returns every member, sorted by id. The caller must not change it.
func (m *Members) All() []Member { return m.published.Load().members }

// Get returns the member with the given id.
func (m *Members) Get(id uint64) (Member, bool) { return find(m.All(), id) }

// Removed reports whether a member of this id was removed.
func (m *Members) Removed(id uint64) bool {
	_, is := m.published.Load().removed[id]
	return is
}

// RemovedIDs returns the ids of all members that were removed, sorted.
func (m *Members) RemovedIDs() []uint64 {
	return slices.Sorted(maps.Keys(m.published.Load().removed))
}

// Set writes the member's row into b, whether the member is known already or not.
func (m *Members) Set(b *engine.Batch, member Member) error {
	row, err := json.Marshal(member)
	if err != nil {
		return err
	}
	if err := b.Set(engine.AppendMember(nil, member.ID), row); err != nil {
		return err
	}
	t := m.change()
	i, found := slices.BinarySearchFunc(t.members, member.ID, compareID)
	if found {
		t.members[i] = member
	} else {
		t.members = slices.Insert(t.members, i, member)
	}
	return nil
}

// CheckAdd tells why the member may not be added: kv.ErrMemberRemoved, kv.ErrMemberExists, kv.ErrPeerURLExists, or, if it
// were a learner too many, kv.ErrTooManyLearners.
func (m *Members) CheckAdd(member Member, maxLearners uint64) error {
	t := m.current()
	if _, removed := t.removed[member.ID]; removed {
		return kv.ErrMemberRemoved
	}
	if _, exists := find(t.members, member.ID); exists {
		return kv.ErrMemberExists
	}
	if err := t.checkURLs(member.ID, member.PeerURLs); err != nil {
		return err
	}
	if !member.Learner {
		return nil
	}
	learners := uint64(1)
	for i := range t.members {
		if t.members[i].Learner {
			learners++
		}
	}
	if learners > maxLearners {
		return kv.ErrTooManyLearners
	}
	return nil
}

// checkURLs makes sure that no other member has one of these peer URLs.
func (t *table) checkURLs(id uint64, urls []string) error {
	for i := range t.members {
		if t.members[i].ID != id && slices.ContainsFunc(t.members[i].PeerURLs, func(u string) bool { return slices.Contains(urls, u) }) {
			return kv.ErrPeerURLExists
		}
	}
	return nil
}

// checkKnown tells why there is no such member: kv.ErrMemberRemoved or kv.ErrMemberNotFound.
func (t *table) checkKnown(id uint64) (Member, error) {
	if _, removed := t.removed[id]; removed {
		return Member{}, kv.ErrMemberRemoved
	}
	member, ok := find(t.members, id)
	if !ok {
		return Member{}, kv.ErrMemberNotFound
	}
	return member, nil
}

// CheckRemove tells why the member may not be removed: kv.ErrMemberRemoved or kv.ErrMemberNotFound.
func (m *Members) CheckRemove(id uint64) error {
	_, err := m.current().checkKnown(id)
	return err
}

// Remove forgets a member and remembers that its id was removed.
func (m *Members) Remove(b *engine.Batch, id uint64) error {
	if err := b.Delete(engine.AppendMember(nil, id)); err != nil {
		return err
	}
	if err := b.Set(removedRow(id), nil); err != nil {
		return err
	}
	t := m.change()
	t.members = slices.DeleteFunc(t.members, func(m Member) bool { return m.ID == id })
	t.removed[id] = struct{}{}
	return nil
}

// CheckPromote tells why the member cannot be given a vote: as CheckRemove, or kv.ErrMemberNotLearner.
func (m *Members) CheckPromote(id uint64) error {
	member, err := m.current().checkKnown(id)
	if err == nil && !member.Learner {
		err = kv.ErrMemberNotLearner
	}
	return err
}

// Promote gives a learner a vote.
func (m *Members) Promote(b *engine.Batch, id uint64) error {
	member, _ := find(m.current().members, id)
	member.Learner = false
	return m.Set(b, member)
}

// Update changes a member's peer URLs and nothing else. The error is one of the engine; refused says why it was not done:
// as CheckRemove, or kv.ErrPeerURLExists.
func (m *Members) Update(b *engine.Batch, id uint64, peerURLs []string) (refused, err error) {
	t := m.current()
	member, refused := t.checkKnown(id)
	if refused == nil {
		refused = t.checkURLs(id, peerURLs)
	}
	if refused != nil {
		return refused, nil
	}
	member.PeerURLs = peerURLs
	return nil, m.Set(b, member)
}

// Describe records the name and the client URLs that a member gave of itself. A member that is not in the table is left
// out: it was removed while it started.
func (m *Members) Describe(b *engine.Batch, id uint64, name string, clientURLs []string) error {
	member, ok := find(m.current().members, id)
	if !ok {
		return nil
	}
	member.Name, member.ClientURLs = name, clientURLs
	return m.Set(b, member)
}

// ForceAlone makes the member the only one, with a vote, and remembers all others as removed. It is for a start that makes
// a new cluster out of one member's data.
func (m *Members) ForceAlone(b *engine.Batch, self Member) error {
	for _, other := range slices.Clone(m.current().members) {
		if other.ID != self.ID {
			if err := m.Remove(b, other.ID); err != nil {
				return err
			}
		}
	}
	if err := b.Delete(removedRow(self.ID)); err != nil {
		return err
	}
	delete(m.change().removed, self.ID)
	self.Learner = false
	return m.Set(b, self)
}

// Changed reports whether something was written since the last Publish or Discard.
func (m *Members) Changed() bool { return m.next != nil }

// Publish shows readers what was written since the last call. Call it after the batch was committed.
func (m *Members) Publish() {
	if m.next != nil {
		m.published.Store(m.next)
		m.next = nil
	}
}

// Discard forgets what was written since the last Publish: the batch was given up.
func (m *Members) Discard() { m.next = nil }

// change is the table to be changed, a copy of what readers see.
func (m *Members) change() *table {
	if m.next == nil {
		t := *m.published.Load()
		t.members, t.removed = slices.Clone(t.members), maps.Clone(t.removed)
		m.next = &t
	}
	return m.next
}

// current is the table as the batch being built sees it.
func (m *Members) current() *table {
	if m.next != nil {
		return m.next
	}
	return m.published.Load()
}

func find(all []Member, id uint64) (Member, bool) {
	i, found := slices.BinarySearchFunc(all, id, compareID)
	if !found {
		return Member{}, false
	}
	return all[i], true
}

func compareID(m Member, id uint64) int {
	switch {
	case m.ID < id:
		return -1
	case m.ID > id:
		return 1
	}
	return 0
}
