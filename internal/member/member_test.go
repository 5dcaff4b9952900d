package member_test

import (
	"errors"
	"reflect"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/member"
)

func open(t *testing.T) (*engine.Engine, *member.Members) {
	t.Helper()
	e, err := engine.Open(engine.Options{FS: vfs.NewMem(), Dir: "state"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	m, err := member.Open(e)
	if err != nil {
		t.Fatal(err)
	}
	return e, m
}

// write makes changes in one batch, publishes them, and makes sure that the rows say the same as the table.
func write(t *testing.T, e *engine.Engine, m *member.Members, f func(b *engine.Batch) error) {
	t.Helper()
	b := e.NewBatch()
	defer b.Close()
	if err := errors.Join(f(b), b.Commit()); err != nil {
		t.Fatal(err)
	}
	m.Publish()
	again, err := member.Open(e)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.All())+len(again.All()) > 0 && !reflect.DeepEqual(m.All(), again.All()) {
		t.Errorf("table %+v, rows %+v", m.All(), again.All())
	}
	if a, b := m.RemovedIDs(), again.RemovedIDs(); len(a)+len(b) > 0 && !reflect.DeepEqual(a, b) {
		t.Errorf("removed in the table %x, in the rows %x", a, b)
	}
	if m.Version() != again.Version() || m.Downgrade() != again.Downgrade() {
		t.Error("versions in table and rows differ")
	}
}

func is(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestMembers(t *testing.T) {
	e, m := open(t)
	write(t, e, m, func(b *engine.Batch) error {
		return errors.Join(
			m.Set(b, member.Member{ID: 5, PeerURLs: []string{"http://e"}, Learner: true}),
			m.Set(b, member.Member{ID: 1, Name: "a", PeerURLs: []string{"http://a"}}),
			m.SetVersion(b, "3.7.0"), m.SetDowngrade(b, member.Downgrade{Enabled: true, Target: "3.6.0"}))
	})
	if all := m.All(); len(all) != 2 || all[0].ID != 1 || all[1].ID != 5 {
		t.Fatalf("%+v", all)
	}
	is(t, "add a known id", m.CheckAdd(member.Member{ID: 5}, 9), kv.ErrMemberExists)
	is(t, "add a known URL", m.CheckAdd(member.Member{ID: 6, PeerURLs: []string{"http://x", "http://e"}}, 9), kv.ErrPeerURLExists)
	is(t, "a learner too many", m.CheckAdd(member.Member{ID: 6, Learner: true}, 1), kv.ErrTooManyLearners)
	is(t, "a second learner of two", m.CheckAdd(member.Member{ID: 6, Learner: true}, 2), nil)
	is(t, "a voter beside a learner", m.CheckAdd(member.Member{ID: 6}, 1), nil)
	is(t, "promote a voter", m.CheckPromote(1), kv.ErrMemberNotLearner)
	is(t, "promote nobody", m.CheckPromote(9), kv.ErrMemberNotFound)
	is(t, "remove nobody", m.CheckRemove(9), kv.ErrMemberNotFound)
	write(t, e, m, func(b *engine.Batch) error {
		for _, c := range []struct {
			id   uint64
			url  string
			want error
		}{{5, "http://a", kv.ErrPeerURLExists}, {9, "http://z", kv.ErrMemberNotFound}, {5, "http://f", nil}, {5, "http://f", nil}} {
			refused, err := m.Update(b, c.id, []string{c.url})
			is(t, c.url, refused, c.want)
			if err != nil {
				return err
			}
		}
		return m.Describe(b, 5, "e", []string{"http://client"})
	})
	want := member.Member{ID: 5, Name: "e", PeerURLs: []string{"http://f"}, ClientURLs: []string{"http://client"}, Learner: true}
	if got, _ := m.Get(5); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	write(t, e, m, func(b *engine.Batch) error { return m.Promote(b, 5) })
	want.Learner = false
	if got, _ := m.Get(5); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	write(t, e, m, func(b *engine.Batch) error { return errors.Join(m.Remove(b, 5), m.Describe(b, 5, "e", nil)) })
	if _, there := m.Get(5); there || !m.Removed(5) {
		t.Error("a removed member that described itself is there")
	}
	is(t, "add what was removed", m.CheckAdd(member.Member{ID: 5, PeerURLs: []string{"http://n"}}, 9), kv.ErrMemberRemoved)
	is(t, "remove it again", m.CheckRemove(5), kv.ErrMemberRemoved)
	is(t, "its URLs are free", m.CheckAdd(member.Member{ID: 6, PeerURLs: []string{"http://f"}}, 9), nil)
}

// What a batch changes is seen by checks at once, by readers after Publish, and by nobody after Discard.
func TestPublishAndDiscard(t *testing.T) {
	e, m := open(t)
	b := e.NewBatch()
	defer b.Close()
	if err := m.Set(b, member.Member{ID: 1, PeerURLs: []string{"http://a"}}); err != nil {
		t.Fatal(err)
	}
	is(t, "inside of the batch", m.CheckAdd(member.Member{ID: 1}, 1), kv.ErrMemberExists)
	if len(m.All()) != 0 || !m.Changed() {
		t.Error("readers see it already")
	}
	m.Discard()
	is(t, "after Discard", m.CheckAdd(member.Member{ID: 1}, 1), nil)
	if m.Publish(); len(m.All()) != 0 || m.Changed() {
		t.Error("what was discarded is published")
	}
}

func TestForceAlone(t *testing.T) {
	e, m := open(t)
	write(t, e, m, func(b *engine.Batch) error {
		return errors.Join(m.Set(b, member.Member{ID: 1}), m.Set(b, member.Member{ID: 2, Learner: true}), m.Set(b, member.Member{ID: 3}), m.Remove(b, 3))
	})
	write(t, e, m, func(b *engine.Batch) error { return m.ForceAlone(b, member.Member{ID: 2, Learner: true}) })
	if all := m.All(); len(all) != 1 || all[0].ID != 2 || all[0].Learner || !m.Removed(1) || !m.Removed(3) || m.Removed(2) {
		t.Errorf("%+v, removed %x", all, m.RemovedIDs())
	}
	// Also one that was removed itself.
	write(t, e, m, func(b *engine.Batch) error { return m.ForceAlone(b, member.Member{ID: 3}) })
	if all := m.All(); len(all) != 1 || all[0].ID != 3 || m.Removed(3) || !m.Removed(2) {
		t.Errorf("%+v, removed %x", all, m.RemovedIDs())
	}
}
