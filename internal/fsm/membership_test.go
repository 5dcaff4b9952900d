package fsm

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/member"
)

// change is the next entry with one change of members, proposed as number id of the first origin.
func change(s *State, id uint64, c *command.Command) command.Entry {
	c.ID = id
	return command.Entry{Index: s.Applied.Index + 1, Term: 5, Data: command.AppendBatch(nil, 1, [][]byte{c.Append(nil)})}
}

func addition(id uint64) *command.Command {
	return &command.Command{MemberAdd: &command.MemberAdd{ID: id, PeerURLs: []string{fmt.Sprintf("http://%d", id)}}}
}

func removal(id uint64) *command.Command {
	return &command.Command{MemberRemove: &command.MemberRemove{ID: id}}
}

// A change of members that is proposed twice is made once, also over a restart: without the memory of it the second
// addition would be refused for the id, but a second removal or promotion could undo what came between.
func TestChangeIsMadeOnce(t *testing.T) {
	fsys := vfs.NewMem()
	s := openState(t, fsys)
	defer func() { s.Engine.Close() }()
	do := func(id uint64, c *command.Command, fits bool) {
		t.Helper()
		e := change(s, id, c)
		got, err := s.CheckConf(e)
		if err != nil || got != fits {
			t.Fatalf("entry %d, change %d: fits %t, %v; want %t", e.Index, id, got, err, fits)
		}
		var conf []byte
		if fits {
			conf = fmt.Appendf(nil, "conf%d", e.Index)
		}
		if _, err := s.ApplyConf(e, conf, everybody{}); err != nil {
			t.Fatal(err)
		}
		if fits && string(s.ConfState) != string(conf) {
			t.Fatalf("conf state %q", s.ConfState)
		}
	}
	is := func(id uint64, want bool) {
		t.Helper()
		if _, got := s.Members.Get(id); got != want {
			t.Fatalf("member %d is there: %t", id, got)
		}
	}
	reopen := func() {
		t.Helper()
		if err := s.Engine.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := s.Engine.Close(); err != nil {
			t.Fatal(err)
		}
		s = openState(t, fsys)
	}
	do(1, addition(7), true)
	do(1, addition(7), false)
	is(7, true)
	reopen()
	do(1, addition(7), false)
	do(2, addition(7), false) // another proposal of what is there
	// One that was refused stays refused, whatever has come to be since.
	do(3, removal(8), false)
	do(4, addition(8), true)
	do(3, removal(8), false)
	is(8, true)
	reopen()
	do(3, removal(8), false)
	is(8, true)
	// The memory is bounded: the oldest go, and the last maxSeen are known.
	for i := range uint64(maxSeen) {
		do(100+i, removal(1000+i), false)
	}
	do(100, addition(2000), false)
	is(2000, false)
	do(3, removal(8), true) // forgotten by now
	is(8, false)
	do(200, addition(8), false) // never again
	is(8, false)
}

// After a new cluster was made of one member, what the log still holds for the old one is void.
func TestForcedVoidsChanges(t *testing.T) {
	s := openState(t, vfs.NewMem())
	defer s.Engine.Close()
	next := s.Applied.Index + 1
	if err := s.ForceAlone(member.Member{ID: 1, Name: "a", PeerURLs: []string{"http://a"}}, []byte("alone"), next); err != nil {
		t.Fatal(err)
	}
	for i, fits := range []bool{false, true} {
		e := change(s, uint64(i), addition(uint64(7+i)))
		got, err := s.CheckConf(e)
		if err != nil || got != fits {
			t.Fatalf("entry %d, with those up to %d void: fits %t, %v", e.Index, next, got, err)
		}
		var conf []byte
		if fits {
			conf = []byte("two")
		}
		if _, err := s.ApplyConf(e, conf, everybody{}); err != nil {
			t.Fatal(err)
		}
	}
	if all := s.Members.All(); len(all) != 2 || all[1].ID != 8 {
		t.Errorf("members: %+v", all)
	}
}
