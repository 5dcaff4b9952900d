// Package member holds the members of the cluster as the log agreed on them: who they are and where they are reached.
// It keeps state only: rows in the engine and a table in memory that mirrors them. Changes are made inside the state
// machine's batch and become visible to readers by Publish, after the batch was committed.
package member

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/trivet-kv/trivet/internal/engine"
)

// Member is one member of the cluster.
type Member struct {
	ID         uint64   `json:"id"`
	Name       string   `json:"name,omitempty"` // empty while a member that was added has not started
	PeerURLs   []string `json:"peer_urls"`
	ClientURLs []string `json:"client_urls,omitempty"`
	Learner    bool     `json:"learner,omitempty"`
}

// Members is the table of members. Reading is safe from any goroutine; writing is for the state machine alone.
type Members struct {
	published atomic.Pointer[[]Member] // sorted by id; never changed once stored
	next      []Member                 // what Publish will show; nil if nothing changed
}

// Open reads the table from its rows.
func Open(r engine.Reader) (*Members, error) {
	lower, upper := engine.PrefixBounds([]byte{engine.PrefixMember})
	it, err := r.NewIter(lower, upper)
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var all []Member
	for ok := it.First(); ok; ok = it.Next() {
		var m Member
		if err := json.Unmarshal(it.Value(), &m); err != nil {
			return nil, fmt.Errorf("member row %x: %w", it.Key(), err)
		}
		all = append(all, m)
	}
	m := &Members{}
	m.published.Store(&all)
	return m, it.Err()
}

// All returns every member, sorted by id. The caller must not change it.
func (m *Members) All() []Member { return *m.published.Load() }

// Get returns the member with the given id.
func (m *Members) Get(id uint64) (Member, bool) { return find(m.All(), id) }

// Set writes the member's row into b, whether the member is known already or not.
func (m *Members) Set(b *engine.Batch, member Member) error {
	row, err := json.Marshal(member)
	if err != nil {
		return err
	}
	if err := b.Set(engine.AppendMember(nil, member.ID), row); err != nil {
		return err
	}
	next := slices.Clone(m.current())
	i, found := slices.BinarySearchFunc(next, member.ID, compareID)
	if found {
		next[i] = member
	} else {
		next = slices.Insert(next, i, member)
	}
	m.next = next
	return nil
}

// Describe records the name and the client URLs that a member gave of itself. A member that is not in the table is left
// out: it was removed while it started.
func (m *Members) Describe(b *engine.Batch, id uint64, name string, clientURLs []string) error {
	member, ok := find(m.current(), id)
	if !ok {
		return nil
	}
	member.Name, member.ClientURLs = name, clientURLs
	return m.Set(b, member)
}

// Publish shows readers what was written since the last call. Call it after the batch was committed.
func (m *Members) Publish() {
	if m.next != nil {
		next := m.next
		m.published.Store(&next)
		m.next = nil
	}
}

// current is the table as the batch being built sees it.
func (m *Members) current() []Member {
	if m.next != nil {
		return m.next
	}
	return m.All()
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
